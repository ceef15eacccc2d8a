"""Checkpoints: trainable parameters and Adam state as plain safetensors, valid at any world size, written atomically, never unpickled.

    checkpoints/step-000200/weights.safetensors   every trainable parameter, the optimizer's float32 copy
                            moments.safetensors   <parameter>.exp_avg, <parameter>.exp_avg_sq
                            trainer.json          step, Adam's own step, and what the caller ties the run to (digests, seed, frozen base)
                            COMMIT.json           sha256 of the three, written last

`checkpoint_saver` writes them. The frozen base is not saved, only its fingerprint. DeepSpeed's own checkpoints unpickle on load and
depend on the world size.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from speechkd.core import dist
from speechkd.core.errors import DataError
from speechkd.core.files import read_json, sha256_file
from speechkd.core.log import say
from speechkd.core.tensors import Stored, read_header
from speechkd.engine.loading import fill_parameter
from speechkd.engine.wrap import Engine
from speechkd.engine.zero import full_shape

FORMAT = 1
WEIGHTS, MOMENTS, TRAINER, COMMIT = "weights.safetensors", "moments.safetensors", "trainer.json", "COMMIT.json"
FILES = (WEIGHTS, MOMENTS, TRAINER)
KEYS = ("exp_avg", "exp_avg_sq")
SEEN_S = 60.0
NAME = re.compile(r"step-(\d{6,12})")


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint."""
    match = NAME.fullmatch(folder.name)
    assert match is not None
    return int(match.group(1))


def newest_first(checkpoints: Path) -> list[Path]:
    """The folders that are named as checkpoints are, valid or not."""
    if not checkpoints.is_dir():
        return []
    folders = [p for p in checkpoints.iterdir() if NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    return sorted(folders, key=step_of, reverse=True)


def latest(checkpoints: Path, checked: str | None = None) -> Path | None:
    """The newest checkpoint whose files all match the digests in COMMIT.json, or None. Collective: rank 0 checks and tells all ranks.

    Incomplete checkpoints are skipped, with one line that says why. `checked`: what `seal` says of one that this machine has just read
    and found whole; it is not read again.
    """
    found = (folder for folder in newest_first(checkpoints) if _valid(folder, checked))
    name = dist.from_rank_zero(next((folder.name for folder in found), None) if dist.rank() == 0 else None)
    return _seen(checkpoints / name) if name is not None else None


def _seen(folder: Path) -> Path:
    """Wait until this rank sees it, too: on a shared folder, other nodes see a rename seconds later."""
    end = time.monotonic() + SEEN_S
    while not all((folder / file).is_file() for file in (*FILES, COMMIT)):
        if time.monotonic() > end:
            raise DataError(
                f"`{folder}` is not whole on {socket.gethostname()} after {SEEN_S:g} s, though rank 0 reads it: is it on a shared folder?"
            )
        time.sleep(0.2)
    return folder


def seal(checkpoint: Path) -> str:
    """Which checkpoint it is, to the byte, in one word: its name, and the digest of the marker that holds the digests of its files."""
    return f"{checkpoint.name}@{sha256_file(checkpoint / COMMIT)}"


def committed(checkpoints: Path) -> list[Path]:
    """Checkpoints with a marker, newest first. Their files are not read: one may be damaged."""
    return [folder for folder in newest_first(checkpoints) if (folder / COMMIT).is_file()]


def ever_published(checkpoints: Path) -> bool:
    """True if any checkpoint was committed here, valid or not, so that starting again at step 0 would lose work."""
    return bool(committed(checkpoints))


def _valid(folder: Path, checked: str | None) -> bool:
    whole = all((folder / file).is_file() for file in (*FILES, COMMIT))
    why = "" if checked is not None and whole and seal(folder) == checked else why_invalid(folder)
    if why:
        say(f"checkpoint {folder.name} is ignored: {why}")
    return not why


def why_invalid(folder: Path) -> str:
    """Why a folder is not a complete checkpoint; empty if it is one."""
    if not (folder / COMMIT).is_file():
        return "it was never committed"
    try:
        commit = read_json(folder / COMMIT)
        if commit["format"] != FORMAT or sorted(commit["files"]) != sorted(FILES):
            return f"its {COMMIT} is of another format"
        return next((f"{file} is not what was committed" for file in FILES if sha256_file(folder / file) != commit["files"][file]), "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"its {COMMIT} or a file of it cannot be read ({error})"


def read_trainer(checkpoint: Path) -> dict[str, Any]:
    """trainer.json of a checkpoint that `latest` returned: `step`, `adam_step` and the `state` given to `save`."""
    trainer = read_json(checkpoint / TRAINER)
    if not isinstance(trainer, dict) or not isinstance(trainer.get("step"), int) or not isinstance(trainer.get("adam_step"), int):
        raise DataError(f"no step in `{checkpoint / TRAINER}`")
    return trainer


def load_weights(module: nn.Module, checkpoint: Path) -> None:
    """Load the trainable parameters of `module` (partitioned or not) before it is wrapped. Raises DataError if names or shapes differ."""
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    stored = _matching(checkpoint / WEIGHTS, {name: tuple(full_shape(p)) for name, p in trainable})
    for name, param in trainable:
        fill_parameter(param, stored[name])


def load_moments(engine: Engine, checkpoint: Path) -> int:
    """Restore Adam's moments and step count, and the float32 master weights, after wrapping; returns the global step."""
    trainer = read_trainer(checkpoint)
    shapes = {name: tuple(full_shape(p)) for name, p in engine.trainable()}
    weights = _matching(checkpoint / WEIGHTS, shapes)
    moments = _matching(checkpoint / MOMENTS, {f"{name}.{key}": shape for name, shape in shapes.items() for key in KEYS})
    engine.prepare_restore(trainer["adam_step"])
    for name, param in engine.trainable():
        engine.restore(param, {"": weights[name], **{key: moments[f"{name}.{key}"] for key in KEYS}})
    return int(trainer["step"])


def _matching(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
    stored = read_header(path)
    for name in [*shapes, *stored]:
        ours, theirs = shapes.get(name), stored[name].shape if name in stored else None
        if ours != theirs:
            raise DataError(f"`{name}` is {ours or 'absent'} in the student and {theirs or 'absent'} in the checkpoint ({path})")
    return stored
