"""The sum of an encoder's layers in blocks of rows against the loop over layers: values, gradients, memory, dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.kernels.layer_sum import blocked, layer_sum


def states(layers: int = 5, shape: tuple[int, ...] = (3, 7, 6), dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return tuple((torch.randn(*shape, generator=g, dtype=torch.float64) * (layer + 1) + layer).to(dtype) for layer in range(layers))


def summed(given: tuple[Tensor, ...], impl: str, normalise: bool) -> tuple[Tensor, Tensor]:
    """The sum, and the gradient of the weights."""
    weights = torch.linspace(0.1, 0.6, len(given), dtype=torch.float64).to(given[0].dtype).float()
    weights = (weights.double() if given[0].dtype == torch.float64 else weights).requires_grad_()
    out = layer_sum(given, weights, normalise, impl)
    (grad,) = torch.autograd.grad(out, weights, torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
    return out.detach(), grad


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("shape", [(3, 7, 6), (1, 1, 6), (2, 0, 6), (1, 50, 1)])
@pytest.mark.parametrize("block", [1, 12, 1 << 17])
def test_blocks_of_rows_are_the_loop_over_layers(
    shape: tuple[int, ...], normalise: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(blocked.BLOCK, "cpu", block)
    for layers in (1, 5):
        given = states(layers, shape)
        for ours, wanted in zip(summed(given, "blocked", normalise), summed(given, "reference", normalise), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("frames", [[], [0], [3, 4, 5, 6, 7, 14, 15, 2], [20, 20, 0]])
def test_some_frames_are_what_the_whole_sum_has_there(frames: list[int], normalise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And others are not read."""
    monkeypatch.setitem(blocked.BLOCK, "cpu", 12)
    given, frames_X = states(), torch.tensor(frames, dtype=torch.long)
    for state in given:
        state.view(-1, 6)[[x for x in range(21) if x not in frames]] = torch.nan
    found = []
    for impl in ("blocked", "reference"):
        weights = torch.linspace(0.1, 0.6, len(given), dtype=torch.float64).requires_grad_()
        out = layer_sum(given, weights, normalise, impl, frames_X)
        assert out.shape == (len(frames), 6)
        found.append((out, *torch.autograd.grad(out, weights, torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out))))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_no_further_from_the_truth_than_the_loop_in_the_same_precision(dtype: torch.dtype, unit: float, normalise: bool) -> None:
    given = states(dtype=dtype)
    truth = summed(tuple(x.double() for x in given), "reference", normalise)
    for ours, theirs, wanted in zip(summed(given, "blocked", normalise), summed(given, "reference", normalise), truth, strict=True):
        off, eager = ((x.double() - wanted).norm() for x in (ours, theirs))
        assert off <= eager + unit * wanted.norm()
    assert summed(given, "blocked", normalise)[0].dtype == dtype


def test_views_of_a_larger_tensor_are_read_where_they_stand() -> None:
    whole = torch.randn(2, 9, 4, 6, dtype=torch.float64)
    given = tuple(whole[:, 1:8, layer] for layer in range(4))
    for ours, wanted in zip(summed(given, "blocked", False), summed(given, "reference", False), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)


def test_states_that_want_a_gradient_go_through_the_loop() -> None:
    given = states()
    given[2].requires_grad_()
    weights = torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True)
    grads = torch.autograd.grad(layer_sum(given, weights).sum(), [given[2], weights])
    torch.testing.assert_close(grads[0], torch.full_like(given[2], 0.2))
    with pytest.raises(InputError, match="the states want a gradient"):
        layer_sum(given, weights, impl="blocked")
    with torch.no_grad():
        assert torch.allclose(layer_sum(given, weights, impl="blocked"), layer_sum(given, weights, impl="reference"))


@pytest.mark.parametrize("normalise", [False, True])
def test_no_copy_of_a_state_is_kept_for_backward(normalise: bool) -> None:
    """Two numbers for each row of a normalised state, no more."""
    given, kept = states(dtype=torch.float32), []
    own = {x.data_ptr() for x in given}

    def keep(tensor: Tensor) -> Tensor:
        kept.extend([] if tensor.data_ptr() in own else [tensor.numel()])
        return tensor

    weights = torch.full((5,), 0.2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer_sum(given, weights, normalise)
    rows = given[0].numel() // given[0].shape[-1] if normalise else 0
    assert sorted(kept) == sorted([len(weights), len(given) * rows, len(given) * rows])


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="5 states need as many weights"):
        layer_sum(states(), torch.ones(4))
    with pytest.raises(InputError, match="allowed: auto, blocked, reference"):
        layer_sum(states(), torch.ones(5), impl="fused")
