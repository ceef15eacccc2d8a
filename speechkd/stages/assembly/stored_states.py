"""Which hidden states the recipe's teacher columns store: for losses on layers that have no live teacher."""

from __future__ import annotations

from speechkd.core.errors import InputError
from speechkd.losses import LossConfig
from speechkd.recipe import Recipe
from speechkd.stages.assembly.model_facts import student_depth
from speechkd.train.distiller import StoredStates


def stored_states(recipe: Recipe, loss: str, config: LossConfig) -> StoredStates:
    """The states that the columns store for a loss on layers.

    Raises InputError for a layer that they lack, and where two roles store different layers or widths.
    """
    found: dict[str, StoredStates] = {}
    for role in recipe.train.roles:
        if "hidden" not in recipe.stored_signals(config, role):
            continue
        teacher, store = recipe.teachers[role], recipe.teachers[role].signals_config().hidden
        assert store is not None, "a recipe's losses have the signals that they need"
        found[role] = StoredStates(layers=store.layers, depth=teacher.state_depth(), width=teacher.state_width())
    if not found:
        raise InputError(
            f"loss `{loss}` counts no stream of regime `{recipe.train.regime}` whose column stores states: set "
            "`streams` of the loss, or `teachers.*.signals.hidden`"
        )
    role, states = next(iter(found.items()))
    for other, theirs in found.items():
        if theirs != states:
            raise InputError(f"teachers `{role}` and `{other}` store different states; losses on layers compare with one kind")
    for _, layer in config.pairs(student_depth(recipe.student), states.depth):
        if layer not in states.layers:
            raise InputError(
                f"teacher `{role}` stores layers {', '.join(map(str, states.layers))}, not {layer}: "
                f"set `teachers.{role}.signals.hidden.layers`, or `losses.{loss}.map`"
            )
    return states
