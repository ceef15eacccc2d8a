"""Several short runs in one launch of ranks, `torchrun ... tests/e2e/several.py RUN_DIR...`: starting ranks takes longer than steps."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from speechkd.cluster.local import run_ranks
from speechkd.core.log import say
from speechkd.engine.zero import close_distributed
from speechkd.recipe import Recipe
from speechkd.stages.assembly.preflight import check_method
from speechkd.stages.inputs.prompt import open_prompt
from speechkd.stages.inputs.sources import make_schedule, open_train_sources
from speechkd.stages.run_folder import Resume, prepare_run
from speechkd.stages.teach import teach
from speechkd.stages.worker import work
from speechkd.tracking.journal import JOURNAL, metric_series


def train_several(recipes: Sequence[Recipe], ranks: int = 2, resume: Resume = "never") -> None:
    """Columns of all recipes, then all trained by the very worker of `speechkd train` in one launch; each must show all its losses."""
    for recipe in recipes:
        assert all(teach(recipe))
        check_method(recipe)
        prepare_run(
            recipe.run_dir,
            recipe,
            make_schedule(recipe, open_train_sources(recipe, open_prompt(recipe.prompt, recipe.student.llm))).digest,
            resume,
        )
    assert run_ranks([__file__, *(str(recipe.run_dir) for recipe in recipes)], ranks).code == 0
    for recipe in recipes:
        trained(recipe)


def trained(recipe: Recipe) -> None:
    """Every step is in the journal with every loss of the recipe, none of them less than nothing."""
    series = metric_series(recipe.run_dir / JOURNAL)
    assert len(series["train/loss"]) == recipe.train.steps, recipe.name
    for loss in recipe.losses:
        values = dict(series[f"train/loss_{loss}"])
        assert all(-1e-6 <= value < 1e4 for value in values.values()), (recipe.name, loss, values)  # of equals, 0 up to rounding


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        say(f"several: {folder}")
        work(Path(folder))
        gc.collect()
    close_distributed()
