"""Runs many short jobs as forks of one process that has imported everything; fresh interpreters for sixty runs would cost ten minutes.

Each fork runs the stages of `speechkd run` on one rank. The training worker runs inside the fork, because one rank needs no torchrun.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechkd.cluster.nodes import Ended
from speechkd.core.errors import InputError
from speechkd.core.log import say


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a recipe, its overrides, and its log file."""

    name: str
    recipe: Path
    sets: Sequence[str]
    log: Path


def run_jobs(jobs: Sequence[Job], side_by_side: int) -> None:
    """Run all jobs, at most `side_by_side` at a time. If one fails, wait for those that have started, then raise SystemExit."""
    _import_everything()
    running: dict[int, Job] = {}
    waiting, failed = list(jobs), []
    while running or (waiting and not failed):
        while waiting and len(running) < side_by_side and not failed:
            job = waiting.pop(0)
            running[_fork(job)] = job
        pid, status = os.wait()
        job = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        say(f"── {job.name}: {'done' if code == 0 else f'failed ({code}), see {job.log}'}; {len(waiting)} to begin")
        failed += [code] if code else []
    if failed:
        raise SystemExit(1)


def _import_everything() -> None:
    """Import everything that a run imports lazily, so that forks share it."""
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, WhisperFeatureExtractor, WhisperModel  # noqa: F401

    from speechkd.engine.zero import import_deepspeed
    from speechkd.stages import run, worker  # noqa: F401

    import_deepspeed()


def _fork(job: Job) -> int:
    """Process id of a fork that runs the job, writing to its log."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with job.log.open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            code = _run(job)
        except InputError as error:
            say(f"error: {error}")
        except BaseException:  # noqa: BLE001  (a fork must never return into its parent's code)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def _run(job: Job) -> int:
    import torch

    import speechkd.stages.train
    from speechkd.recipe import load_recipe
    from speechkd.stages.run import run

    torch.set_num_threads(1)
    speechkd.stages.train.run_ranks = _run_in_process  # type: ignore[assignment]
    return run(load_recipe(job.recipe, list(job.sets)), ranks=1)


def _run_in_process(words: Sequence[str], ranks: int, folder: Path) -> Ended:
    """Replacement for `run_ranks`: runs the worker in this process."""
    from speechkd.engine.zero import close_distributed
    from speechkd.stages.worker import work

    assert words[1] == "speechkd.stages.worker" and ranks == 1
    work(folder)
    close_distributed()
    return Ended(0, "finished")
