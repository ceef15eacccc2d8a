"""Projectors and the layer mix, both ways, beside their plain composition: `python -m tests.bench.projector [CASE ...] [--json]`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, pad, silu

from speechkd.kernels.layer_sum import layer_sum
from speechkd.kernels.layer_sum.states import LayerStates
from speechkd.models.projectors import PROJECTORS
from tests.bench.interleaved import Row, asked, bf16_products, compare, peak_mib, peak_of_this, report
from tests.kernels.ragged import valid_rows

CLIPS, FRAMES, WIDTH, STACK, HIDDEN, OUT = 4, 1500, 512, 5, 1024, 1024
LENGTHS = {"equal": [1500] * 4, "1-30 s": [50, 533, 1017, 1500]}
LAYERS, MIX = 33, (2, 1500, 1280)
Step = Callable[[], object]


def eager(projector: Any, states_BFD: Tensor) -> Tensor:
    """The projector as torch's own layers, over every position of the window."""
    if projector.Config.model_fields["kind"].default == "gated_mlp":
        z = silu(projector.linear_in(_stacked(projector.norm(states_BFD))))
        out: Tensor = projector.linear_out(silu(projector.gate(z)) * projector.pool(z))
        return out
    x_BQS = layer_norm(_stacked(states_BFD), projector.norm_weight.shape, projector.norm_weight, projector.norm_bias)
    return linear(silu(linear(x_BQS, projector.in_weight, projector.in_bias)), projector.out_weight, projector.out_bias)


def _stacked(states_BFD: Tensor) -> Tensor:
    B, F, D = states_BFD.shape
    return pad(states_BFD, (0, 0, 0, -F % STACK)).reshape(B, -1, STACK * D)


def _step(module: nn.Module, forward: Callable[[], Tensor], grad_BQE: Tensor) -> Step:
    def step() -> None:
        module.zero_grad()
        forward().backward(grad_BQE)

    return step


def projector_rows(kind: str, dtype: torch.dtype, lengths: str, frozen: bool, compiled: bool) -> list[Row]:
    """One projector with clips of these lengths beside eager, and beside torch.compile if asked."""
    torch.manual_seed(0)
    part: Any = PROJECTORS.get(kind)
    keys = {"norm": True} if kind == "mlp_stack" else {}
    made: Any = part(part.Config(kind=kind, stack=STACK, hidden=HIDDEN, **keys), WIDTH, OUT).to(dtype)
    lengths_B = torch.tensor(LENGTHS[lengths])
    real_BF1 = (torch.arange(FRAMES) < lengths_B[:, None]).unsqueeze(2)
    states_BFD = (torch.randn(CLIPS, FRAMES, WIDTH) * real_BF1).to(dtype).requires_grad_(not frozen)
    read_A = valid_rows(lengths_B, STACK, FRAMES)
    Q = made.positions(FRAMES)
    grad_BQE = torch.zeros(CLIPS * Q, OUT).index_copy(0, read_A, torch.randn(len(read_A), OUT)).view(CLIPS, Q, OUT).to(dtype)
    candidates = {
        "ours": _step(made, lambda: made(states_BFD, read_A), grad_BQE),
        "eager": _step(made, lambda: eager(made, states_BFD), grad_BQE),
    }
    if compiled:
        fused = torch.compile(eager)
        candidates["torch.compile"] = _step(made, lambda: fused(made, states_BFD), grad_BQE)
    share = len(read_A) / (CLIPS * Q)
    case = f"{kind}, {str(dtype)[6:]}, {lengths} ({share:.0%} of positions read), {'frozen' if frozen else 'trained'} states"
    return compare("Projector", case, "ours", candidates)


def mix_step(impl: str, normalise: bool) -> Step:
    """Forward and backward of the layer mix over as many states as Whisper-large-v3 has."""
    torch.manual_seed(0)
    states = tuple(torch.randn(*MIX) for _ in range(LAYERS))
    logits_L, grad_BFD = torch.zeros(LAYERS, requires_grad=True), torch.randn(*MIX)

    def step() -> None:
        logits_L.grad = None
        layer_sum(states, torch.softmax(logits_L, 0), normalise, impl).backward(grad_BFD)

    return step


def mix_rows() -> list[Row]:
    """The blocked sum beside the loop over layers."""
    out = []
    for normalise in (False, True):
        candidates = {name: mix_step(impl, normalise) for name, impl in (("ours", "blocked"), ("loop over layers", "reference"))}
        case = f"{LAYERS} states of {list(MIX)}{', normalised' if normalise else ''}"
        out += compare("Layer mix", case, "ours", candidates)
        peaks = {name: peak_mib("tests.bench.projector", f"{impl},{int(normalise)}") for name, impl in _IMPLS.items()}
        out.append(
            Row("Layer mix, peak MiB", f"{case}, the sum itself included", "loop over layers", peaks["ours"], peaks["loop over layers"])
        )
    return out


_IMPLS = {"ours": "blocked", "loop over layers": "reference"}


def fused_rows(lengths: str) -> list[Row]:
    """The mix of all layers and `mlp_stack` with norm behind it, as one and one after the other as torch's own layers."""
    torch.manual_seed(0)
    part: Any = PROJECTORS.get("mlp_stack")
    made: Any = part(part.Config(stack=STACK, hidden=HIDDEN, norm=True), MIX[2], OUT)
    lengths_B = torch.tensor(LENGTHS[lengths][-MIX[0] :])
    real_BF1 = (torch.arange(MIX[1]) < lengths_B[:, None]).unsqueeze(2)
    states, logits_L = [torch.randn(*MIX) * real_BF1 for _ in range(LAYERS)], torch.zeros(LAYERS, requires_grad=True)
    read_A, Q = valid_rows(lengths_B, STACK, MIX[1]), made.positions(MIX[1])
    grad_BQE = torch.zeros(MIX[0] * Q, OUT).index_copy(0, read_A, torch.randn(len(read_A), OUT)).view(MIX[0], Q, OUT)

    def plainly() -> Tensor:
        return eager(made, layer_sum(states, torch.softmax(logits_L, 0), impl="reference"))

    candidates = {
        "ours": _step(made, lambda: made(LayerStates(states, torch.softmax(logits_L, 0)), read_A), grad_BQE),
        "blocked sum, then the projector": _step(made, lambda: made(layer_sum(states, torch.softmax(logits_L, 0)), read_A), grad_BQE),
        "loop over layers, eager": _step(made, plainly, grad_BQE),
    }
    share = len(read_A) / (MIX[0] * Q)
    return compare("Layer mix and projector", f"{LAYERS} states of {list(MIX)}, {lengths} ({share:.0%} read)", "ours", candidates)


def typed(kind: str, dtype: torch.dtype, lengths: str, frozen: bool = True) -> list[Row]:
    """`projector_rows` where this CPU has products of the type."""
    if dtype == torch.bfloat16 and not bf16_products():
        print("bench: bfloat16 not measured: this CPU has no products for it", file=sys.stderr)
        return []
    return projector_rows(kind, dtype, lengths, frozen, kind == "mlp_stack" and frozen and dtype == torch.float32 and lengths == "equal")


CASES: dict[str, Callable[[], list[Row]]] = {
    "equal": partial(typed, "mlp_stack", torch.float32, "equal"),
    "mixed": partial(typed, "mlp_stack", torch.float32, "1-30 s"),
    "equal-bf16": partial(typed, "mlp_stack", torch.bfloat16, "equal"),
    "mixed-bf16": partial(typed, "mlp_stack", torch.bfloat16, "1-30 s"),
    "trained": partial(typed, "mlp_stack", torch.float32, "equal", False),
    "gated-equal": partial(typed, "gated_mlp", torch.float32, "equal"),
    "gated-mixed": partial(typed, "gated_mlp", torch.float32, "1-30 s"),
    "mix": mix_rows,
    "fused-equal": partial(fused_rows, "equal"),
    "fused-mixed": partial(fused_rows, "1-30 s"),
}


if __name__ == "__main__":
    if "--peak" in sys.argv:
        impl, normalise = sys.argv[sys.argv.index("--peak") + 1].split(",")
        run = mix_step(impl, bool(int(normalise)))
        run()  # threads and buffers of a first call are not what is asked
        print(peak_of_this(run))
    else:
        report(asked(CASES))
