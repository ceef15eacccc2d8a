"""Run folder: stores the resolved recipe and rejects a different one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from speechkd.core.config import build, differences, dump_yaml, read_yaml
from speechkd.core.errors import InputError
from speechkd.core.files import canonical_json, read_json, write_json, write_text
from speechkd.data.storage.store import parse_location
from speechkd.engine.checkpoint import ever_published, latest
from speechkd.engine.checkpoint_copy import SecondPlace, bring_back
from speechkd.engine.checkpoint_saver import Retention
from speechkd.recipe import Recipe
from speechkd.stages.grown_data import plan_facts
from speechkd.train.history import History

Resume = Literal["auto", "require", "never"]
RECIPE, RUN, CHECKPOINTS, PROBES = "recipe.yaml", "run.json", "checkpoints", "probes"
HELD_OUT = "held_out.json"
NOT_THE_STUDENTS = ("data", "teachers", "gates", "deepspeed")
"""Blocks in which export and evaluation of a run may differ from its training: another corpus can be asked about, with other teachers"""


def run_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run. Raises InputError where the folder has none, or one that this version does not read."""
    if not (folder / RECIPE).is_file():
        raise InputError(f"`{folder}` is no run folder: it has no {RECIPE}; name the folder below `runs` that `speechkd train` wrote")
    try:
        return build(Recipe, read_yaml(folder / RECIPE), str(folder / RECIPE))
    except InputError as error:
        raise InputError(
            f"this version does not read the run in `{folder}` ({error}); if an earlier one began it, use another `name`"
        ) from None


def read_history(folder: Path, step: int) -> History:
    """The held-out losses of a run up to `step`, where it goes on from; those after it belong to steps that are done again."""
    if not (folder / HELD_OUT).is_file():
        return History()
    data = read_json(folder / HELD_OUT)
    return History([(int(at), float(loss)) for at, loss in data["values"] if at <= step])


def write_history(folder: Path, history: History) -> None:
    """Keep the held-out losses, the best of them, and where the run stopped by itself."""
    best = {"step": history.best[0], "loss": history.best[1]} if history.best is not None else None
    write_json(folder / HELD_OUT, {"values": history.values, "best": best, "stopped": history.stopped})


def last_step(folder: Path, steps: int) -> int:
    """The step at which a run ends: where the held-out loss stopped it, else after all its `steps`."""
    stopped = read_json(folder / HELD_OUT)["stopped"] if (folder / HELD_OUT).is_file() else None
    return steps if stopped is None else int(stopped)


def same_recipe(folder: Path, recipe: Recipe, but: Collection[str] = ()) -> None:
    """Raises InputError naming the first key in which `recipe` differs from the recipe of the run in `folder`; blocks in `but` may differ.

    How a student is judged, logged and saved is never compared, nor where the shards are.
    """
    if (found := _difference(recipe, run_recipe(folder), but)) is not None:
        raise InputError(
            f"run `{folder}` was trained by another recipe: {found}; give the one that stands there (`{folder / RECIPE}`), "
            "or train this one under another `name`"
        )


def other_data(folder: Path, recipe: Recipe) -> bool:
    """Whether the recipe names other corpora than the run in `folder` was trained on."""
    return bool(recipe.trained_by()["data"] != run_recipe(folder).trained_by()["data"])


def _difference(recipe: Recipe, stored: Recipe, but: Collection[str] = ()) -> str | None:
    """The first key in which `recipe` would train another student than the `stored` recipe, in words; None where there is none."""
    if recipe.digest() == stored.digest():
        return None
    first = next(differences(_by_key(recipe, but), _by_key(stored, but)), None)
    return first and f"`{first[0]}` is {_brief(first[1])}, there {_brief(first[2])}"


def _by_key(recipe: Recipe, but: Collection[str]) -> dict[str, Any]:
    """What changes the trained student, by the keys that a user writes in a recipe."""
    data = {key: value for key, value in recipe.trained_by().items() if key not in but}
    data["student"] = {key: value for key, value in data["student"].items() if key != "config_root"}  # of dry runs only
    regime, phases, spike = recipe.train.regime, data.pop("phases"), data.pop("spike", None)
    return {
        "train": {"regime": regime, "regimes": {regime: phases}, "spike": spike},
        **data,
    }  # whoever forgot `--set train.regime` should read just that


def _brief(value: Any) -> str:
    text = "not set" if value is None else f"`{canonical_json(value)}`"
    return text if len(text) <= 60 else text[:56] + "...`"


def second_place(recipe: Recipe, folder: Path, retention: Retention) -> SecondPlace | None:
    """Where the run's checkpoints are copied to: a folder of this run and recipe below `train.copy_to`; None where that is not set.

    Raises InputError for a URL that no driver opens.
    """
    if recipe.train.copy_to is None:
        return None
    place = parse_location(recipe.train.copy_to) / f"{folder.name}-{recipe.digest()[:12]}"
    return SecondPlace(place, retention.stays, retention.for_good)


def prepare_run(folder: Path, recipe: Recipe, plan_digest: str, resume: Resume) -> Path | None:
    """Write the resolved recipe into the run folder, or prove that it is the one already there. Returns the checkpoint to continue from.

    Raises InputError if the folder belongs to another recipe or other data, if `require` finds no checkpoint, if `never` finds one,
    or if checkpoints were published once and none of them is valid now: a run never silently starts over.
    """
    newest, facts = _continued(folder, recipe, plan_digest, resume, fetch=True)
    write_text(folder / RECIPE, dump_yaml(recipe.model_dump(mode="json")))
    write_json(folder / RUN, {"recipe": recipe.digest(), **facts})
    return newest


def check_run(folder: Path, recipe: Recipe, plan_digest: str, resume: Resume) -> Path | None:
    """What `prepare_run` would refuse, without writing anything; a checkpoint's second copy is not fetched."""
    return _continued(folder, recipe, plan_digest, resume, fetch=False)[0]


def _continued(folder: Path, recipe: Recipe, plan_digest: str, resume: Resume, fetch: bool) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to continue from, and what run.json says of the data."""
    checkpoints, stored = folder / CHECKPOINTS, None
    if (folder / RUN).is_file():
        stored = read_json(folder / RUN)
        if stored.get("recipe") != recipe.digest():
            found = _difference(recipe, run_recipe(folder)) or f"its digest is {str(stored.get('recipe'))[:8]}"
            raise InputError(f"run folder `{folder}` belongs to another recipe ({found}): use another `name`, or remove it")
    newest = latest(checkpoints)
    second = second_place(recipe, folder, Retention())
    if newest is None and second is not None and resume != "never" and fetch:
        newest = bring_back(second.place, checkpoints)
    if resume == "require" and newest is None:
        raise InputError(f"`--resume require`: no valid checkpoint in `{checkpoints}`: `--resume auto` begins anew")
    if resume == "never" and newest is not None:
        raise InputError(f"`--resume never`: `{newest}` exists; use another `name`, or remove the run folder")
    if resume == "auto" and newest is None and ever_published(checkpoints):
        raise InputError(
            f"`{checkpoints}` holds checkpoints and none is valid: repair or remove the run folder; it is not started over silently"
        )
    return newest, plan_facts(recipe, plan_digest, stored, newest, folder)
