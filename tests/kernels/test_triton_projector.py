"""The projector's kernels in Triton's interpreter: prologue and epilogues against float64 autograd, over ragged utterances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, pad, silu

from speechkd.core.errors import InputError
from speechkd.kernels import triton_launch
from speechkd.kernels.layer_sum import layer_sum
from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.kernels.layer_sum.triton_stack_norm import Prologue, stack_norm, stack_norm_backward_, stacks
from speechkd.kernels.stack_norm_mlp import act_linear, stack_norm_mlp
from speechkd.kernels.stack_norm_mlp.rows import stack_frames
from speechkd.kernels.stack_norm_mlp.triton_activation import activate, activate_backward_
from tests.kernels.ragged import valid_rows

pytestmark = pytest.mark.usefixtures("interpreter")
sweep = settings(max_examples=8, deadline=None, derandomize=True)
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""Relative, of a result in its own type (the interpreter cuts off where the GPU rounds)"""
dtypes = st.sampled_from(list(ROUNDING))


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(ours: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    assert ours.shape == truth.shape and ours.isfinite().all()
    assert (ours.double() - truth).norm() <= ROUNDING[dtype] * truth.norm() + 1e-6


def truth_rows(
    states: list[Tensor], weights_L: Tensor | None, lengths: list[int], stack: int, norm: str, normalise: bool, per_frame: bool
) -> tuple[Tensor, Tensor]:
    """(x [R, S], x_hat [R, S]) in float64: each utterance alone, as the plain modules do it."""
    if normalise:
        states = [layer_norm(state, state.shape[-1:]) for state in states]
    mixed_BFC = states[0] if weights_L is None else sum(weight * state for weight, state in zip(weights_L, states, strict=True))
    x_RS = torch.cat([stack_frames(mixed_BFC[b : b + 1, :length], stack)[0] for b, length in enumerate(lengths)])
    groups_RkX = x_RS.unflatten(1, (stack, -1)) if per_frame else x_RS
    if norm == "layer":
        return x_RS, layer_norm(groups_RkX, groups_RkX.shape[-1:]).view_as(x_RS)
    scaled = groups_RkX / (groups_RkX.square().mean(-1, keepdim=True) + 1e-5).sqrt() if norm == "rms" else groups_RkX
    return x_RS, scaled.view_as(x_RS)


@sweep
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    C=st.integers(1, 20),
    L=st.integers(0, 3),
    stack=st.integers(1, 5),
    norm=st.sampled_from(["none", "layer", "rms"]),
    normalise=st.booleans(),
    per_frame=st.booleans(),
    dtype=dtypes,
)
def test_prologue(lengths: list[int], C: int, L: int, stack: int, norm: str, normalise: bool, per_frame: bool, dtype: torch.dtype) -> None:
    C = max(C, 2) if normalise or norm == "layer" else C  # of one value there is no variance: its gradient is rounding alone
    states = [2.0 * normal(seed, len(lengths), 7, C, dtype=dtype) + 0.3 for seed in range(max(L, 1))]
    for state in states:
        for b, length in enumerate(lengths):
            state[b, length:] = 0.0  # as encoders leave them
            state[b, -(-length // stack) * stack :] = torch.nan  # what stands behind its last stack is not read
    weights_L = normal(9, L).softmax(0) if L else None
    rows = stacks(valid_rows(torch.tensor(lengths), stack, 7), 7, stack)
    prologue = Prologue(states, weights_L, rows, stack, norm, per_frame=per_frame, normalise=normalise)  # type: ignore[arg-type]
    normed = stack_norm(prologue, dtype)

    exact = None if weights_L is None else weights_L.double().requires_grad_()
    x_RS, x_hat_RS = truth_rows([state.double().nan_to_num() for state in states], exact, lengths, stack, norm, normalise, per_frame)
    close(normed.x_hat_RS, x_hat_RS.detach(), dtype)

    grad_RS = normal(8, *normed.x_hat_RS.shape, dtype=dtype)
    if exact is not None and len(x_RS):
        wanted = torch.autograd.grad(x_hat_RS, [x_RS, exact], grad_RS.double())
        weight_grads_L = stack_norm_backward_(grad_RS, normed, prologue, want_input=True)
        assert weight_grads_L is not None
        # x_hat is kept in its own type: what its rounding moves along the norm's directions counts too
        assert (grad_RS.double() - wanted[0]).norm() <= 3 * ROUNDING[dtype] * wanted[0].norm() + 1e-5
        assert (weight_grads_L.double() - wanted[1]).norm() <= 3 * ROUNDING[dtype] * (
            wanted[1].norm() + wanted[0].norm() * x_RS.norm()
        ) + 1e-5


def test_states_that_lie_apart_and_stacked_states_are_the_same() -> None:
    stacked_LBFC, weights_L = normal(1, 3, 2, 6, 8), torch.tensor([0.2, 0.3, 0.5])
    rows = stacks(valid_rows(torch.tensor([6, 3]), 2, 6), 6, 2)
    apart = [stacked_LBFC[layer].clone() for layer in (0, 1, 2)]
    one = stack_norm(Prologue(stacked_LBFC, weights_L, rows, 2), torch.float32)  # type: ignore[arg-type]
    assert one.x_hat_RS.equal(stack_norm(Prologue(apart, weights_L, rows, 2), torch.float32).x_hat_RS)


def test_the_last_stack_is_filled_up_and_reads_nothing_of_the_next_utterance() -> None:
    rows = stacks(torch.tensor([0, 2, 3, 4]), 5, 2)
    assert rows.starts_R.tolist() == [0, 4, 5, 7] and rows.frames_R.tolist() == [2, 1, 2, 2]
    frames_BFC = normal(1, 2, 5, 4)
    x_RS = stack_norm(Prologue([frames_BFC], None, rows, 2), torch.float32).x_hat_RS
    assert x_RS[1].equal(pad(frames_BFC[0, 4], (0, 4))) and x_RS[3].equal(frames_BFC[1, 2:4].flatten())


def test_a_batch_without_frames_is_no_launch() -> None:
    prologue = Prologue([normal(1, 2, 7, 4)] * 2, torch.ones(2), stacks(torch.empty(0, dtype=torch.long), 7, 2), 2, "layer")
    normed = stack_norm(prologue, torch.float32)
    assert normed.x_hat_RS.shape == (0, 8)
    assert stack_norm_backward_(normed.x_hat_RS.clone(), normed, prologue, True).tolist() == [0.0, 0.0]  # type: ignore[union-attr]


@sweep
@given(
    R=st.integers(1, 3),
    H=st.integers(1, 40),
    kind=st.sampled_from(["silu", "gelu"]),
    biased=st.booleans(),
    gate=st.sampled_from(["none", "plain", "biased"]),
    in_place=st.booleans(),
    dtype=dtypes,
)
def test_epilogues(R: int, H: int, kind: str, biased: bool, gate: str, in_place: bool, dtype: torch.dtype) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(triton_launch.LAUNCH, "activation", (triton_launch.Launch(triton_launch.ANY, 16, 4),))
        both_RG = 2.0 * normal(1, R, 2 * H, dtype=dtype)
        z_RH, up_RH = both_RG[:, :H], None if gate == "none" else both_RG[:, H:]
        bias_H, up_bias_H = normal(2, H, dtype=dtype) if biased else None, normal(3, H, dtype=dtype) if gate == "biased" else None
        leaves = [z_RH.double().requires_grad_(), *([] if up_RH is None else [up_RH.double().requires_grad_()])]
        truth = {"silu": silu, "gelu": gelu}[kind](leaves[0] + (0.0 if bias_H is None else bias_H.double()))
        if up_RH is not None:
            truth = truth * (leaves[1] + (0.0 if up_bias_H is None else up_bias_H.double()))
        a_RH = activate(z_RH, bias_H, kind, up_RH, up_bias_H)  # type: ignore[arg-type]
        close(a_RH, truth.detach(), dtype)
        if in_place:
            same_RH = z_RH.clone()
            assert activate(same_RH, bias_H, kind, up_RH, up_bias_H, out_RH=same_RH).equal(a_RH)  # type: ignore[arg-type]
        grad_RH = normal(4, R, H, dtype=dtype)
        wanted = torch.autograd.grad(truth, leaves, grad_RH.double())
        activate_backward_(grad_RH, z_RH, bias_H, kind, up_RH, up_bias_H)  # type: ignore[arg-type]
        assert grad_RH.equal(a_RH)
        close(z_RH, wanted[0], dtype)
        if up_RH is not None:
            close(up_RH, wanted[1], dtype)
        else:
            assert both_RG[:, H:].equal((2.0 * normal(1, R, 2 * H, dtype=dtype))[:, H:]), "the neighbours in memory are left alone"


def test_what_does_not_fit_is_one_line() -> None:
    rows = stacks(torch.tensor([0, 1]), 7, 2)
    with pytest.raises(InputError, match="as many weights"):
        stack_norm(Prologue([normal(1, 1, 7, 4)] * 2, torch.ones(3), rows, 2), torch.float32)
    with pytest.raises(InputError, match="one shape, device and type"):
        stack_norm(Prologue([normal(1, 1, 7, 4), normal(1, 1, 7, 5)], torch.ones(2), rows, 2), torch.float32)
    with pytest.raises(InputError, match="holds up to 32768 values a row, given 65536"):
        stack_norm(Prologue([normal(1, 1, 7, 8192)], None, stacks(torch.tensor([0]), 7, 8), 8), torch.float32)
    with pytest.raises(InputError, match=r"must have the shape \[2, 3\] of z_RH"):
        activate(torch.zeros(2, 3), None, "silu", torch.zeros(2, 4))


def gradients(impl: str, dtype: torch.dtype, lengths: list[int] | None, form: str, source: str) -> dict[str, Tensor]:
    """Output and gradients of the whole op; the inputs are rounded to bfloat16 in every type."""
    words = form.split()
    width, first = (4 if "frames" in words else 12), (12 if "gated" in words else 6)
    shapes = {"in_weight_HS": (first, 12), "out_weight_DH": (4, 6)}
    shapes |= {"in_bias_H": (first,), "out_bias_D": (4,)} if "bias" in words else {}
    shapes |= {"norm_weight_S": (width,)} if {"layer", "rms", "frames"} & set(words) else {}
    shapes |= {"norm_bias_S": (width,)} if {"layer", "frames"} & set(words) else {}
    shapes |= {"post_weight_D": (4,)} if "post" in words else {}
    made = {name: normal(seed, *shape, dtype=torch.bfloat16) for seed, (name, shape) in enumerate(shapes.items())}
    leaves = {name: value.to(dtype).requires_grad_() for name, value in made.items()}
    given = {"in_bias_H": None, "out_bias_D": None, **leaves}
    states = [normal(9 + layer, 2, 7, 4, dtype=torch.bfloat16).to(dtype) for layer in range(3)]
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    weights_L = torch.tensor([0.5, 0.2, 0.3], dtype=torch.bfloat16).to(kind).requires_grad_()
    frames = LayerStates(states, weights_L, True) if source == "layers" else states[0].requires_grad_(source == "trained")
    rows_R = None if lengths is None else valid_rows(torch.tensor(lengths), 3, 7)
    out = stack_norm_mlp(frames, 3, **given, rows_R=rows_R, impl=impl, gated="gated" in words)  # type: ignore[arg-type]
    assert out.dtype == dtype
    wanted = leaves | {"frozen": {}, "trained": {"frames": states[0]}, "layers": {"layers": weights_L}}[source]
    grads = torch.autograd.grad(out, list(wanted.values()), normal(5, *out.shape).to(dtype))
    return {"out": out.detach(), **dict(zip(wanted, grads, strict=True))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "form", "source"),
    [
        (None, "bias layer", "frozen"),
        ([7, 2], "bias layer", "trained"),
        ([0, 4], "", "frozen"),
        ([0, 0], "bias layer gated", "trained"),
        (None, "bias rms gated post", "layers"),
        ([7, 4], "frames bias gated", "layers"),
        ([6, 7], "frames", "trained"),
        ([0, 0], "frames bias", "layers"),
    ],
)
def test_the_whole_projector(lengths: list[int] | None, form: str, source: str, dtype: torch.dtype) -> None:
    truth = gradients("reference", torch.float64, lengths, form, source)
    eager = gradients("reference", dtype, lengths, form, source)
    for name, ours in gradients("triton", dtype, lengths, form, source).items():
        off, theirs = (ours.double() - truth[name]).norm(), (eager[name].double() - truth[name]).norm()
        # a bfloat16 weight times gamma is rounded once more; the interpreter cuts off, which adds up in sums over all that was cut
        unit = ROUNDING[dtype] * (4 if name == "layers" else 1)
        assert off <= 2.0 * theirs + unit * truth[name].norm() + 1e-9, name


@pytest.mark.parametrize("owned", [False, True])
def test_a_layer_behind_a_gate_of_its_own(owned: bool) -> None:
    """As `gated_mlp` has it; what is not owned is left as it was."""
    given = [normal(seed, *shape) for seed, shape in enumerate([(3, 6), (3, 6), (4, 6), (4,)])]
    found = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        pre_RH, up_RH, weight_DH, bias_D = leaves = [x.to(dtype).requires_grad_() for x in given]
        inputs = (pre_RH * 1.0, up_RH * 1.0) if owned else (pre_RH, up_RH)
        out = act_linear(inputs[0], weight_DH, bias_D, inputs[1], impl, owned)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, normal(5, 3, 4).to(dtype))])
        assert owned or pre_RH.detach().equal(given[0].to(dtype))
    for ours, truth in zip(*found, strict=True):
        close(ours, truth, torch.float32)


def test_a_second_backward_is_refused() -> None:
    frames_BFC, weight = normal(1, 1, 4, 4), normal(2, 6, 8).requires_grad_()
    out = stack_norm_mlp(frames_BFC, 2, weight, None, normal(3, 4, 6), None, impl="triton").sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        out.backward()


def test_a_stack_wider_than_one_program_is_the_packed_form() -> None:
    frames_BFC, weight = normal(1, 1, 2, 40_000), normal(2, 3, 40_000)
    ours, packed = (stack_norm_mlp(frames_BFC, 1, weight, None, torch.eye(3), None, impl=impl) for impl in ("triton", "packed"))
    assert ours.equal(packed)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_of_layers(dtype: torch.dtype, normalise: bool) -> None:
    states = tuple(normal(layer, 2, 2, 6, dtype=dtype) * (layer + 1) for layer in range(3))
    results = {}
    for impl, kind in (("triton", dtype), ("reference", torch.float64)):
        weights_L = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float32 if kind == dtype else kind, requires_grad=True)
        out = layer_sum([state.to(kind) for state in states], weights_L, normalise, impl)
        results[impl] = out.detach(), *torch.autograd.grad(out, weights_L, normal(7, 2, 2, 6, dtype=dtype).to(kind))
    assert results["triton"][0].dtype == dtype and results["triton"][1].dtype == torch.float32
    for ours, truth in zip(*results.values(), strict=True):
        close(ours, truth, dtype)
