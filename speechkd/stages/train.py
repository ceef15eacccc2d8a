"""`speechkd train`: checks everything, writes the run folder, starts the ranks and records how they ended."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import speechkd
from speechkd.cluster.local import BY_HAND, run_ranks
from speechkd.cluster.nodes import Ended
from speechkd.core.errors import EXIT_FAILED, EXIT_REQUEUE, DataError
from speechkd.core.failures import forget_failures, one_line
from speechkd.core.files import write_json
from speechkd.core.locks import exclusive
from speechkd.core.log import say
from speechkd.data.training_range import RANGE, measure_range, write_range
from speechkd.engine.checkpoint import latest, read_trainer, seal
from speechkd.engine.ds_config import read_ds_config
from speechkd.recipe import Recipe
from speechkd.stages.assembly.base_models import same_base
from speechkd.stages.assembly.preflight import check_method
from speechkd.stages.inputs.corpora import check_clips, open_corpora, train_splits
from speechkd.stages.inputs.held_out import check_held_out
from speechkd.stages.inputs.names import check_columns, check_training_names
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import TrainSource, make_schedule, open_train_sources
from speechkd.stages.lineage import record_checkpoints, record_datasets
from speechkd.stages.restart import record_end, record_start
from speechkd.stages.run_folder import CHECKPOINTS, Resume, last_step, prepare_run
from speechkd.stages.saved_steps import markers, reached
from speechkd.tracking.journal import JOURNAL, Journal, last_status
from speechkd.tracking.sender_process import start_sender
from speechkd.train.schedule import Schedule

DATASETS, LAUNCH_LOCK = "datasets.json", ".train.lock"
REASON = "reason"
"""Tag with why a run failed; empty once it goes on"""
WORKER = ("-m", "speechkd.stages.worker")
SENDER_GRACE_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run that has passed its checks; its folder is written and locked."""

    folder: Path
    recipe: Recipe
    sources: Sequence[TrainSource]
    schedule: Schedule
    newest: Path | None
    """the checkpoint that it continues from"""


def train(recipe: Recipe, ranks: int, resume: Resume = "auto", run_dir: Path | None = None) -> int:
    """Train to the end on this machine's `ranks` processes; returns the exit code (75: stopped cleanly, wants to be continued).

    A finished run is left as it is. Raises InputError for anything that can be known to be wrong before a process starts.
    """
    with prepared(recipe, ranks, resume, run_dir or recipe.run_dir) as run:
        return launch(run, lambda: run_ranks(worker(run.folder, run.newest), ranks, run.folder), ranks)


@contextmanager
def prepared(recipe: Recipe, ranks: int, resume: Resume, folder: Path) -> Iterator[Prepared]:
    """Check everything for a training on `ranks` processes in all, write the run folder and hold its lock during the block."""
    read_ds_config(Path(recipe.deepspeed))  # refuses a bad file
    opened = open_corpora(recipe.data)
    check_training_names(recipe, opened)
    check_columns(recipe, opened)
    sources = open_train_sources(recipe, open_prompt(recipe.prompt, recipe.student.llm))
    for train_source in sources:
        if train_source.left_out.count:
            say(f"train: stream `{train_source.stream}`: {train_source.left_out.line()}")
    schedule = make_schedule(recipe, sources)
    schedule.share(0, 0, ranks)  # refuses a number of ranks that the plan cannot deal out
    check_method(recipe)
    corpora = [*{id(train_source.corpus): train_source.corpus for train_source in sources}.values()]
    check_clips(corpora, recipe.student.encoder, recipe.train.roles, recipe.evaluation)
    check_held_out(recipe)
    # Held before anything is written: a second training must not touch the first one's journal, nor start ranks that only wait.
    with exclusive(folder / LAUNCH_LOCK, 0.0, f"another training is at work in `{folder}`"):
        newest = prepare_run(folder, recipe, schedule.digest, resume)
        yield Prepared(folder=folder, recipe=recipe, sources=sources, schedule=schedule, newest=newest)


def worker(folder: Path, newest: Path | None) -> list[str]:
    """The command of a rank. It is told which checkpoint was found whole: reading gigabytes twice would double the wait for a start."""
    return [*WORKER, str(folder), *([seal(newest)] if newest is not None else [])]


def launch(run: Prepared, start: Callable[[], Ended], ranks: int, nodes: int = 1) -> int:
    """Keep the books of a prepared run while `start` runs its ranks: journal, MLflow sender, history. Returns the exit code."""
    folder, recipe = run.folder, run.recipe
    journal = Journal(folder / JOURNAL)
    if (done := finished(run)) is not None:
        say(f"train: {done}")
        if last_status(folder / JOURNAL) != "FINISHED":  # killed after the last checkpoint, before it journalled the end
            journal.status("FINISHED")
        return 0
    journal.status("RUNNING")
    forget_failures(folder)
    ended, sender = Ended(EXIT_FAILED, "the launcher failed"), None
    begin, before = start_step(run), markers(folder)  # read now: the checkpoint that the run begins from may be pruned while it trains
    try:
        _describe(journal, folder, recipe, run.sources)
        journal.tags({"ranks": str(ranks), "nodes": str(nodes)})
        restarts = record_start(folder, begin, ranks, nodes)
        if restarts:
            journal.tags({REASON: ""})  # of an earlier failure
        journal.metrics(restarts, {"run/restarts": float(restarts)})  # one point for each, for its steps may be none
        sender = start_sender(folder, recipe.tracking)
        ended = _by_hand(start(), folder)
        if ended.code == EXIT_REQUEUE:
            say(f"train: {ended.reason}; the same command continues")
    except Exception as error:
        ended = Ended(EXIT_FAILED, one_line(f"the launcher failed: {type(error).__name__}: {error}"))
        raise
    finally:
        record_checkpoints(Journal(folder / JOURNAL), folder / CHECKPOINTS)  # a fresh view: rank 0 has written most of them
        record_end(folder, reached(folder, begin, before), ended.code, ended.reason)
        if ended.code not in (0, EXIT_REQUEUE):
            journal.tags({REASON: ended.reason})
        status = "FINISHED" if ended.code == 0 else "KILLED" if ended.code == EXIT_REQUEUE else "FAILED"
        journal.status(status, ended.reason if ended.code else "")
        journal.close()
        if sender is not None:
            _let_finish(sender)
    return ended.code


def _by_hand(ended: Ended, folder: Path) -> Ended:
    """A run that its user ended in the middle of a step goes on from its newest checkpoint, if that is whole."""
    if BY_HAND not in ended.reason:
        return ended
    newest = latest(folder / CHECKPOINTS)
    if newest is None:
        say(f"train: {BY_HAND}, before a checkpoint; the same command begins anew")
        return ended
    return Ended(EXIT_REQUEUE, f"{BY_HAND}; {newest.name} is whole")


def start_step(run: Prepared) -> int:
    """Steps that are done when the ranks start."""
    return int(read_trainer(run.newest)["step"]) if run.newest is not None else 0


def finished(run: Prepared) -> str | None:
    """In words, where nothing is left to train; the checkpoint must be of these base models."""
    steps = last_step(run.folder, run.schedule.steps)
    if run.newest is None or start_step(run) < steps:
        return None
    same_base(read_trainer(run.newest), run.newest, run.recipe.student, run.recipe.live)
    return f"finished before at step {steps} ({run.newest})"


def _describe(journal: Journal, folder: Path, recipe: Recipe, sources: Sequence[TrainSource]) -> None:
    """Journal what is known before the first step: settings, tags, what the data holds."""
    journal.params(recipe.model_dump(mode="json"))
    journal.tags(_tags(recipe, {s.corpus.card.name: s.corpus.shards.digest for s in sources}))
    quarantined = sum({s.corpus.shards.digest: s.corpus.shards.manifest["quarantined"] for s in sources}.values())
    gated = sum(train_source.gate_result.dropped for train_source in sources if train_source.gate_result is not None)
    too_long = sum(train_source.left_out.count for train_source in sources)
    journal.metrics(
        0, {"data/quarantined": quarantined, "data/too_long": too_long} | ({"data/gated": gated} if recipe.gates.active else {})
    )
    datasets = {s.corpus.card.name: s.corpus.shards.manifest["totals"] | {"version": s.corpus.card.version} for s in sources}
    write_json(folder / DATASETS, datasets)
    _measure_range(folder, recipe, sources)
    record_datasets(journal, [train_source.corpus for train_source in sources])
    record_checkpoints(journal, folder / CHECKPOINTS)  # a killed run may not have told of its last one


def _measure_range(folder: Path, recipe: Recipe, sources: Sequence[TrainSource]) -> None:
    """Keep what the clips are like that this run trains on, once: its exports say which others are unlike them."""
    if (folder / RANGE).is_file():
        return
    corpora = {s.corpus.shards.digest: (s.corpus.shards, train_splits(s.corpus, recipe.train.roles)) for s in sources}
    try:
        found = measure_range([*corpora.values()])
    except DataError as error:  # the ranks meet the same bytes, and say which they are
        say(f"train: the clips' range is not measured: {error}")
        return
    if found is not None:
        write_range(folder, found)


def _let_finish(sender: subprocess.Popen[bytes]) -> None:
    """Wait up to SENDER_GRACE_S for the MLflow sender, so that MLflow is complete when the command ends; it exits by itself in any case."""
    try:
        sender.wait(timeout=SENDER_GRACE_S)
    except subprocess.TimeoutExpired:
        say("train: MLflow is slow; the sender goes on in the background, and the journal has everything")


def _tags(recipe: Recipe, datasets: dict[str, str]) -> dict[str, str]:
    tags = {"recipe": recipe.name, "paper": recipe.paper, "recipe_digest": recipe.digest(), "host": socket.gethostname()}
    tags |= {"description": recipe.description} if recipe.description else {}
    tags |= {"user": _user()} | _revision(Path(speechkd.__file__).parent)
    tags |= {f"dataset.{name}": digest for name, digest in datasets.items()}
    if "SLURM_JOB_ID" in os.environ:
        tags["slurm_job_id"] = os.environ["SLURM_JOB_ID"]
    return tags


def _user() -> str:
    """User name; the user id in a container that has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _revision(code: Path) -> dict[str, str]:
    """The commit of the running code, and whether its files changed since; empty outside a git repository."""
    if not shutil.which("git"):
        return {}

    def git(*args: str) -> str | None:
        done = subprocess.run(["git", *args], cwd=code, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if not revision or git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed inside another project's repository
        return {}
    return {"git": revision, "git_dirty": "true" if git("status", "--porcelain", "--", ".") else "false"}
