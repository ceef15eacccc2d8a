"""Writes checkpoints beside training: the step loop waits only while tensors are copied to host memory, a thread of rank 0 does the rest.

The thread writes, hashes, syncs, commits and removes old checkpoints. It runs no collective: those of two threads would interleave. At most
one save is in flight. Rank 0 keeps 12 bytes per trained parameter in host memory for it, the same for every save.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from speechkd.core import dist
from speechkd.core.files import fsync_folder, sha256_file, write_json
from speechkd.core.tensors import TensorWriter
from speechkd.engine.checkpoint import COMMIT, FORMAT, KEYS, MOMENTS, TRAINER, WEIGHTS, newest_first, step_of
from speechkd.engine.checkpoint_copy import SecondPlace
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import full_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which checkpoints stay: the newest `keep`, and for good those of every `every`-th step."""

    keep: int = 2
    every: int | None = None

    def __post_init__(self) -> None:
        assert self.keep >= 2, "keep at least two checkpoints: the newest may be the one that is being written"

    def stays(self, step: int, newest_steps: Collection[int]) -> bool:
        """`newest_steps`: of all committed checkpoints, in descending order."""
        kept = list(newest_steps)[: self.keep]
        return len(kept) < self.keep or step >= kept[-1] or self.for_good(step)

    def for_good(self, step: int) -> bool:
        """Whether the checkpoint of this step is never removed."""
        return self.every is not None and step % self.every == 0


@dataclass(frozen=True, slots=True)
class SaveTimes:
    """How long a save took: `stall_s` of the step loop, `seconds` until it was committed."""

    step: int
    stall_s: float
    seconds: float


class _HostCopy:
    """Host memory for one checkpoint, on rank 0, with everything in its place; other ranks keep nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.params = engine.trainable()
        self.keys = ("", *KEYS)
        self._sizes = [engine.host_size(param) for _, param in self.params]
        self._flat: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        if dist.rank() == 0:  # written to now: the first save must not be the one that waits for pages
            on_gpu = engine.device.type == "cuda"
            self._flat = torch.zeros(len(self.keys) * sum(self._sizes), dtype=torch.float32, pin_memory=on_gpu)
            self._copied = torch.cuda.Event() if on_gpu else None

    def fill(self) -> None:
        """Copy weights and moments here. Collective; on a GPU the copies are only queued."""
        start = 0
        with torch.no_grad():
            for (_, param), size in zip(self.params, self._sizes, strict=True):
                for key in self.keys:
                    self._engine.bring_to_host(param, key, None if self._flat is None else self._flat[start : start + size])
                    start += size
        if self._copied is not None:
            self._copied.record()

    def tensors(self, keys: tuple[str, ...]) -> dict[str, Tensor]:
        """name -> tensor of the kinds `keys`, for the thread that writes: waits for queued copies."""
        assert self._flat is not None
        if self._copied is not None:
            self._copied.synchronize()
        found, start = {}, 0
        for (name, param), size in zip(self.params, self._sizes, strict=True):
            shape = full_shape(param)
            for key in self.keys:
                if key in keys:
                    found[f"{name}.{key}" if key else name] = self._flat[start : start + shape.numel()].view(shape)
                start += size
        return found


class Saver:
    """Saves checkpoints of `engine` below `checkpoints`. Every rank makes one and calls it at the same steps."""

    def __init__(self, engine: Engine, checkpoints: Path, retention: Retention, second: SecondPlace | None = None) -> None:
        self._engine, self._checkpoints, self._retention = engine, checkpoints, retention
        self._second = second if dist.rank() == 0 else None
        self._host = _HostCopy(engine)
        self._thread: Thread | None = None
        self._step = 0
        self._problem: str | None = None
        self._kept: set[str] = set()
        self._times: list[SaveTimes] = []

    def begin(self, step: int, state: Mapping[str, Any], beside: Callable[[], None] | None = None) -> Path:
        """Begin to save `step`; returns the folder that it will be. Collective. Waits for the save before, and raises if it failed.

        `state` is JSON that ties the checkpoint to its run: recipe digest, plan digest, seed, fingerprints of the frozen base. `beside` is
        called in the thread after the commit; what it raises fails the save.
        """
        began = time.monotonic()
        self.finish()
        self._host.fill()
        final = self._checkpoints / f"step-{step:06d}"
        self._step = step
        dist.barrier()  # every rank has contributed all its parts: only now may the checkpoint be committed
        if dist.rank() == 0:
            trainer = {**state, "format": FORMAT, "step": step, "adam_step": self._engine.adam_step()}
            stall = time.monotonic() - began
            self._thread = Thread(target=self._run, args=(final, trainer, beside, began, stall), name=f"checkpoint-{step}")
            self._thread.start()
        return final

    def keep(self, step: int) -> None:
        """Let the checkpoint of this step stay, until another is named; call it before that step is saved."""
        self._kept = {f"step-{step:06d}"}

    def finish(self) -> None:
        """Wait for the save in flight. Collective: a failure on rank 0 (a full disk) raises OSError on every rank."""
        self.wait()
        problem = dist.from_rank_zero(self._problem)
        if problem:
            raise OSError(f"checkpoint of step {self._step} could not be written: {problem}")

    def wait(self) -> None:
        """Wait for the save in flight, without a collective and whether it failed or not: for a rank that is about to end."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def failed(self) -> bool:
        """Whether the last save has failed already; False while it is being written. Only rank 0 knows."""
        return self._problem is not None

    def drain_times(self) -> list[SaveTimes]:
        """Saves that were committed since the last call; on rank 0."""
        times, self._times = self._times, []
        return times

    def _run(self, final: Path, trainer: dict[str, Any], beside: Callable[[], None] | None, began: float, stall_s: float) -> None:
        try:
            self._write(final, trainer)
            self._times = [*self._times, SaveTimes(trainer["step"], stall_s, time.monotonic() - began)]
            if self._second is not None:
                self._second.offer(final)
            prune(self._checkpoints, self._retention, {*self._kept, *(self._second.held() if self._second else ())})
            if beside is not None:
                beside()
        except Exception as error:  # noqa: BLE001  (kept, not raised: every rank raises it at the next step boundary)
            self._problem = str(error) or repr(error)

    def _write(self, final: Path, trainer: dict[str, Any]) -> None:
        temporary = final.parent / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        digests = {}
        for file, keys in ((WEIGHTS, ("",)), (MOMENTS, KEYS)):
            tensors = self._host.tensors(keys)
            writer = TensorWriter(temporary / file, [(name, tuple(tensor.shape)) for name, tensor in tensors.items()])
            for name, tensor in tensors.items():
                writer.add(name, tensor)
            digests[file] = writer.close()
        write_json(temporary / TRAINER, trainer)
        digests[TRAINER] = sha256_file(temporary / TRAINER)
        write_json(temporary / COMMIT, {"format": FORMAT, "files": digests})
        if final.exists():  # left by an interrupted attempt, or the same step again
            (final / COMMIT).unlink(missing_ok=True)
            shutil.rmtree(final)
        os.rename(temporary, final)
        fsync_folder(final.parent)


def prune(checkpoints: Path, retention: Retention, held: Collection[str] = ()) -> None:
    """Remove the checkpoints that need not stay, but those named in `held`; the marker goes first, so a half-removed one is invalid."""
    for torn in checkpoints.glob(".step-*.tmp"):  # of a save or fetch that was killed; no other is at work now
        shutil.rmtree(torn, ignore_errors=True)
    folders = newest_first(checkpoints)
    committed = [step_of(folder) for folder in folders if (folder / COMMIT).is_file()]
    for folder in folders:
        if not retention.stays(step_of(folder), committed) and folder.name not in held:
            (folder / COMMIT).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
