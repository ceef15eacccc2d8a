"""Which implementation of each fused op runs on this machine, and whether it computes what its reference does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from speechkd.stages.doctor.finding import Finding

TOLERANCE = 0.02
"""Largest relative difference from the reference: bfloat16 keeps 8 bits"""


def check_kernels() -> list[Finding]:
    """One line for each op: what `impl: auto` takes for this device, and why nothing better; a failure where its result is wrong."""
    import torch

    from speechkd.kernels import dispatch

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    found = []
    for op, call in _calls(device, dtype).items():
        expected, result = call("reference").float(), call("auto").float()
        choice = dispatch.latest(op)
        apart = ((result - expected).norm() / expected.norm()).item()
        if apart < TOLERANCE:
            found.append(Finding(op, "ok", str(choice)))
        else:
            text = f"{choice.name} is {apart:.1%} off its reference on {device}"
            found.append(Finding(op, "fail", text, "set `impl: reference` in the recipe, and report this with the versions above"))
    return found


def _calls(device: str, dtype: Any) -> dict[str, Callable[[str], Any]]:
    """Each op on a small input: implementation -> result."""
    import torch

    from speechkd import kernels
    from speechkd.kernels.stack_norm_mlp import act_linear, stack_norm_linear
    from speechkd.kernels.stack_norm_mlp.norm import Norm

    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=g).to(device, dtype)

    T, D, V, K = 48, 64, 515, 16
    hidden_TD, weight_VD, other_TD, other_VD = normal(T, D), normal(V, D), normal(T, D), normal(V, D)
    mask_T = torch.ones(T, dtype=torch.bool, device=device)
    top = torch.randn(T, V, generator=g).log_softmax(1).topk(K)
    ids_TK, logp_TK = top.indices.to(device), top.values.to(device)
    frames_BFC, weights_L = normal(2, 30, 16), torch.tensor([0.2, 0.3, 0.5], device=device)
    in_HS, out_DH = normal(32, 64), normal(D, 32)
    attention_BF, clip_BF = torch.rand(2, 30, generator=g).to(device), torch.ones(2, 30, dtype=torch.bool, device=device)
    return {
        "linear_cross_entropy": lambda impl: kernels.linear_cross_entropy(hidden_TD, weight_VD, ids_TK[:, 0], mask_T, impl).total,
        "linear_topk_kl": lambda impl: kernels.linear_topk_kl(hidden_TD, weight_VD, ids_TK, logp_TK, mask_T, impl=impl).total,
        "linear_kl": lambda impl: kernels.linear_kl(hidden_TD, weight_VD, other_TD, other_VD, mask_T, "jsd", impl=impl).total,
        "stack_norm_mlp": lambda impl: kernels.stack_norm_mlp(frames_BFC, 4, in_HS, None, out_DH, None, impl=impl),
        "stack_norm_linear": lambda impl: stack_norm_linear(frames_BFC, 4, in_HS, None, Norm(in_HS[0], None), impl=impl),
        "act_linear": lambda impl: act_linear(hidden_TD[:, :32], out_DH, None, other_TD[:, :32], impl),
        "layer_sum": lambda impl: kernels.layer_sum([frames_BFC, frames_BFC.flip(0), frames_BFC.flip(1)], weights_L, impl=impl),
        "weighted_cka": lambda impl: kernels.weighted_cka(frames_BFC, frames_BFC.flip(1), attention_BF, clip_BF, impl=impl),
    }
