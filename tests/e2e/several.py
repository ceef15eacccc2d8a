"""Several short runs of which all ranks share one import: `python -m tests.e2e.several RANKS RUN_DIR [RANKS RUN_DIR ...]`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from speechkd.recipe import Recipe
from speechkd.stages.assembly.preflight import check_method
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import make_schedule, open_train_sources
from speechkd.stages.run_folder import Resume, prepare_run
from speechkd.stages.teach import teach
from speechkd.tracking.journal import JOURNAL, metric_series

ROOT = Path(__file__).parents[2]


def train_several(recipes: Sequence[Recipe], ranks: int | Sequence[int] = 2, resume: Resume = "never") -> None:
    """Columns of all recipes, then each trained by the very worker of `speechkd train` on `ranks` ranks; each must show all its losses."""
    for recipe in recipes:
        assert all(teach(recipe))
        check_method(recipe)
        prepare_run(
            recipe.run_dir,
            recipe,
            make_schedule(recipe, open_train_sources(recipe, open_prompt(recipe.prompt, recipe.student.llm))).digest,
            resume,
        )
    worlds = [ranks] * len(recipes) if isinstance(ranks, int) else ranks
    words = [str(word) for world, recipe in zip(worlds, recipes, strict=True) for word in (world, recipe.run_dir.resolve())]
    command = [sys.executable, "-W", "ignore", "-m", "tests.e2e.several", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    for recipe in recipes:
        trained(recipe)


def trained(recipe: Recipe) -> None:
    """Every step is in the journal with every loss of the recipe, none of them less than nothing."""
    series = metric_series(recipe.run_dir / JOURNAL)
    assert len(series["train/loss"]) == recipe.train.steps, recipe.name
    for loss in recipe.losses:
        values = dict(series[f"train/loss_{loss}"])
        assert all(-1e-6 <= value < 1e4 for value in values.values()), (recipe.name, loss, values)  # of equals, 0 up to rounding


def _work(folder: str) -> None:
    sys.argv = ["worker", folder]
    worker.main()


if __name__ == "__main__":
    from speechkd.stages import worker
    from tests.forked import get_ready, start, wait_for_all

    get_ready()
    for ranks, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        if not wait_for_all(start(partial(_work, folder), int(ranks))):
            sys.exit(f"{folder} on {ranks} ranks has failed")
