"""The proportional layer map, and what layer-wise distillation refuses."""

from __future__ import annotations

import pytest
import torch

from speechkd.core.errors import InputError
from speechkd.kernels.linear_kl.divergence import Divergence
from speechkd.kernels.logits import Head
from speechkd.losses.layer_wise import LayerBridges, check_layer_map, layer_map, layer_states, logit_lens


def test_the_papers_map() -> None:
    """28 student layers on 36 of the teacher: one pair a layer, and the 1-in-7 skip lands on whole numbers."""
    full = layer_map(28, 36)
    assert [i for i, _ in full] == list(range(1, 29))
    assert full[:4] == ((1, 1), (2, 3), (3, 4), (4, 5)) and full[-1] == (28, 36)
    assert layer_map(28, 36, every=7) == ((7, 9), (14, 18), (21, 27), (28, 36))
    assert layer_map(28, 36, every=0) == ()


@pytest.mark.parametrize(("student", "teacher"), [(1, 9), (4, 2), (24, 24), (2, 5), (48, 4)])
def test_maps_stay_in_range_rise_and_end_at_the_top(student: int, teacher: int) -> None:
    pairs = layer_map(student, teacher)
    check_layer_map(pairs, student, teacher)
    assert [g for _, g in pairs] == sorted(g for _, g in pairs) and pairs[-1] == (student, teacher)
    assert all(g == max(1, int(i * teacher / student + 0.5)) for i, g in pairs)


def test_halves_round_up() -> None:
    assert layer_map(2, 5)[0] == (1, 3)
    assert layer_map(4, 2) == ((1, 1), (2, 1), (3, 2), (4, 2))


def test_out_of_range_is_one_line() -> None:
    with pytest.raises(InputError, match=r"layer map 3->9 is out of range: student layers 1..4, teacher layers 1..8"):
        check_layer_map([(1, 2), (3, 9)], 4, 8)
    with pytest.raises(InputError, match="out of range"):
        check_layer_map([(0, 1)], 4, 8)
    with pytest.raises(InputError, match="`every` must be between 0"):
        layer_map(4, 8, every=5)
    with pytest.raises(InputError, match="at least one layer"):
        layer_map(0, 8)


def test_bridges_carry_the_students_width_to_the_teachers() -> None:
    torch.manual_seed(0)
    bridges, mask = LayerBridges(2, 3, 5), torch.ones(4, dtype=torch.bool)
    student, teacher = [torch.randn(4, 3) for _ in range(2)], [torch.randn(4, 5) for _ in range(2)]
    with pytest.raises(InputError, match="one width, has 3 and 5"):
        layer_states(student, teacher, mask)
    mapped = bridges(student)
    for states, bridge, before in zip(mapped, bridges.bridges, student, strict=True):
        torch.testing.assert_close(states, before @ bridge.weight.T)
    layer_states(mapped, teacher, mask, "mse").total.backward()
    assert all(p.grad is not None and p.grad.any() for p in bridges.parameters()) and len(list(bridges.parameters())) == 2


def test_sum_and_mean_over_layers() -> None:
    mask = torch.ones(4, dtype=torch.bool)
    student, teacher = [torch.randn(4, 3) for _ in range(3)], [torch.randn(4, 3) for _ in range(3)]
    summed, averaged = (layer_states(student, teacher, mask, "mse", how) for how in ("sum", "mean"))  # type: ignore[arg-type]
    torch.testing.assert_close(summed.total, 3 * averaged.total)
    assert summed.count == averaged.count == 4


def test_unpaired_layers_and_unknown_distances_are_refused() -> None:
    states, mask = [torch.zeros(4, 3)], torch.ones(4, dtype=torch.bool)
    head = Head(states[0], torch.zeros(6, 3))
    with pytest.raises(InputError, match="given 1 of the student and 2 of the teacher"):
        logit_lens([head], [head, head], mask, Divergence(name="jsd"))
    with pytest.raises(InputError, match="given 0"):
        layer_states([], [], mask)
    with pytest.raises(InputError, match="did you mean `cosine`"):
        layer_states(states, states, mask, "cosin")
