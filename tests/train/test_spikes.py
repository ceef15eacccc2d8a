"""Which updates are dropped, and that a resumed guard decides as the uninterrupted one does."""

from __future__ import annotations

import json
import math
import random

from speechkd.train.config import SpikeConfig
from speechkd.train.spikes import SpikeGuard


def values(count: int, spikes: dict[int, float], seed: int = 1) -> list[tuple[float, float]]:
    """Losses around 2 and norms around 1, `spikes` times as large at some steps."""
    choice = random.Random(seed)
    return [(choice.gauss(2, 0.1) * spikes.get(step, 1), choice.gauss(1, 0.1)) for step in range(count)]


def test_what_is_far_above_is_dropped_and_nothing_else() -> None:
    guard = SpikeGuard(SpikeConfig(window=32))
    dropped = [step for step, (loss, norm) in enumerate(values(300, {3: 9, 100: 9, 200: 3})) if guard.drops(loss, norm)]
    assert dropped == [100, 200] and guard.dropped == 2, "nothing is judged before half a window"


def test_a_gradient_alone_is_enough_and_a_low_value_is_none() -> None:
    guard = SpikeGuard(SpikeConfig(window=16, sigmas=4))
    for loss, norm in values(40, {}):
        guard.drops(loss, norm)
    assert guard.drops(2.0, 50.0) and not guard.drops(0.0, 0.0)


def test_a_level_that_has_changed_for_good_is_accepted() -> None:
    guard = SpikeGuard(SpikeConfig(window=16))
    for loss, norm in values(40, {}):
        guard.drops(loss, norm)
    later = [guard.drops(loss + 5, norm) for loss, norm in values(40, {}, seed=2)]
    assert later[0] and not any(later[16:])


def test_what_is_not_finite_is_left_to_the_engine_and_not_remembered() -> None:
    guard = SpikeGuard(SpikeConfig(window=8))
    for loss, norm in values(20, {}):
        guard.drops(loss, norm)
    before = guard.state()
    assert not guard.drops(math.nan, 1.0) and not guard.drops(2.0, math.inf) and guard.state() == before


def test_a_resumed_guard_decides_as_the_uninterrupted_one() -> None:
    seen = values(200, {60: 4, 140: 4, 141: 4})
    whole, first, second = (SpikeGuard(SpikeConfig(window=64)) for _ in range(3))
    wanted = [whole.drops(*pair) for pair in seen]
    half = [first.drops(*pair) for pair in seen[:100]]
    second.restore(json.loads(json.dumps(first.state())))
    assert half + [second.drops(*pair) for pair in seen[100:]] == wanted and sum(wanted) >= 2
    assert second.state() == whole.state()
