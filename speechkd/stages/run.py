"""`speechkd run`: every stage in order. Each skips what is done and unchanged, so a second run takes seconds and continues a killed one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TypeVar

from speechkd.core.errors import InputError
from speechkd.core.files import read_json, write_json
from speechkd.core.locks import exclusive
from speechkd.core.log import say
from speechkd.engine.checkpoint import latest, read_trainer
from speechkd.engine.ds_config import read_ds_config
from speechkd.evaluation.report import write_report
from speechkd.models.exported import MANIFEST
from speechkd.recipe import Recipe
from speechkd.stages.assembly.preflight import check_method
from speechkd.stages.evaluate import EVAL, EXPORT, SUMMARY, evaluate, is_current
from speechkd.stages.export import export
from speechkd.stages.inputs.corpora import check_clips, open_corpora
from speechkd.stages.inputs.names import check_evaluation_names, check_training_names
from speechkd.stages.results import REPORT, publish_results, show_results
from speechkd.stages.run_folder import CHECKPOINTS, last_step, same_recipe
from speechkd.stages.shard import shard
from speechkd.stages.teach import teach
from speechkd.stages.train import train

T = TypeVar("T")
SECONDS = "seconds.json"


class Stopwatch:
    """Seconds of each stage, kept in the run folder. Time adds up over several runs of a stage; a skipped stage keeps its time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = read_json(path) if path.is_file() else {}

    def time(self, stage: str, work: Callable[[], T]) -> T:
        """Run `work` as `stage` and add its time, even where it fails."""
        say(f"── {stage}")
        began = monotonic()
        try:
            return work()
        finally:
            took = monotonic() - began
            if took > 1.0 or stage not in self.seconds:
                self.seconds[stage] = round(self.seconds.get(stage, 0.0) + took, 1)
                write_json(self.path, self.seconds)


def run(recipe: Recipe, ranks: int) -> int:
    """shard, teach, train, export, eval, report; returns the exit code of the stage that stopped it, else 0.

    Raises InputError, before the teacher has spent its hours, for whatever training or evaluation would refuse later.
    """
    recipe.plan.per_rank(ranks)
    read_ds_config(Path(recipe.deepspeed))
    check_method(recipe)
    folder = recipe.run_dir
    with exclusive(folder / ".run.lock", 5.0, f"another `speechkd run` is at work in `{folder}`"):
        return _run(recipe, ranks, folder)


def _run(recipe: Recipe, ranks: int, folder: Path) -> int:
    watch = Stopwatch(folder / SECONDS)
    watch.time("shard", lambda: [shard(Path(corpus.card), recipe.data.root) for corpus in recipe.data.corpora])
    check_training_names(recipe, open_corpora(recipe.data))
    check_clips(open_corpora(recipe.data), recipe.student.encoder, recipe.train.roles, recipe.evaluation)
    watch.time("teach", lambda: teach(recipe))
    code = watch.time("train", lambda: train(recipe, ranks))
    if code:
        return code
    return _conclude(recipe, folder, watch)


def conclude(recipe: Recipe) -> int:
    """export, eval, report and what is published of them, for a run that is trained.

    Raises InputError where another recipe trained it, its training has not come to its end, or the evaluation names what the data lacks.
    """
    check_evaluation_names(recipe)
    folder = recipe.run_dir
    same_recipe(folder, recipe)
    newest = latest(folder / CHECKPOINTS)
    step = read_trainer(newest)["step"] if newest is not None else 0
    if step < last_step(folder, recipe.train.steps):
        raise InputError(f"run `{folder}` is at step {step} of {recipe.train.steps}: train it to its end, or grade one with `--checkpoint`")
    return _conclude(recipe, folder, Stopwatch(folder / SECONDS))


def is_concluded(recipe: Recipe) -> bool:
    """Whether the newest checkpoint was exported and evaluated on the recipe's questions, and its report is there."""
    folder = recipe.run_dir
    if not (folder / EXPORT / MANIFEST).is_file() or not (folder / EVAL / SUMMARY).is_file():
        return False
    summary = read_json(folder / EVAL / SUMMARY)
    trained = read_json(folder / EXPORT / MANIFEST)["step"] == last_step(folder, recipe.train.steps)
    return trained and is_current(summary, recipe, folder / EXPORT) and _is_published(folder, summary)


def _conclude(recipe: Recipe, folder: Path, watch: Stopwatch) -> int:
    exported = watch.time("export", lambda: export(folder, folder / EXPORT))
    graded = watch.time("eval", lambda: evaluate(recipe, exported, folder / EVAL))
    summary = read_json(graded / SUMMARY)
    if not _is_published(folder, summary):
        write_json(folder / SUMMARY, {**summary, "seconds": watch.seconds})
        watch.time("report", lambda: write_report(folder, folder / REPORT))
        publish_results(recipe.tracking, folder, summary["tasks"], read_json(exported / MANIFEST)["step"], files=(REPORT,))
        write_json(folder / SUMMARY, {**summary, "seconds": watch.seconds})
    show_results(folder, folder / SUMMARY)
    return 0


def _is_published(folder: Path, summary: dict[str, object]) -> bool:
    """Whether summary and report of this very evaluation are there already."""
    if not ((folder / REPORT).is_file() and (folder / SUMMARY).is_file()):
        return False
    earlier = read_json(folder / SUMMARY)
    return all(earlier.get(name) == value for name, value in summary.items())
