"""What the GPU bench compares: this project's ops, plain torch, torch.compile and other libraries' losses, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from speechkd.kernels import linear_cross_entropy, linear_kl, linear_topk_kl, stack_norm_mlp
from speechkd.kernels.stack_norm_mlp.mlp import Mlp
from speechkd.kernels.stack_norm_mlp.norm import Norm
from speechkd.kernels.stack_norm_mlp.reference import stack_norm_mlp as plain_stack_norm_mlp
from tests.bench.gpu_timer import Candidate
from tests.kernels.ragged import valid_rows


@dataclass(frozen=True)
class Sizes:
    """Of one bench."""

    tokens: int = 8192
    dense_tokens: tuple[int, ...] = (1024, 2048, 4096, 8192)
    width: int = 4096
    vocabulary: int = 151_936
    kept: int = 64
    batch: int = 64
    frames: int = 1500
    encoder_width: int = 1280
    stack: int = 8
    hidden: int = 4096
    product: int = 8192
    """side of the matrices of the ceiling"""
    checked: int = 64
    """rows on which values and gradients are compared with float64 before anything is timed"""


TINY = Sizes(8, (4, 8), 16, 96, 4, 3, 9, 8, 2, 16, 32, 4)
"""For the CPU and the interpreter: the same calls, in seconds"""


def gradient(loss: Callable[[Tensor], Tensor], hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
    """(value, gradient in the hidden states) of one pass forward and backward."""
    leaf_TD = hidden_TD.detach().requires_grad_()
    value = loss(leaf_TD)
    return value.detach(), torch.autograd.grad(value, leaf_TD)[0]


@dataclass
class Heads:
    """Student and teacher before their heads, a teacher's stored rows, and targets."""

    hidden_TD: Tensor
    weight_VD: Tensor
    teacher_TD: Tensor
    teacher_weight_VD: Tensor
    ids_TK: Tensor
    logp_TK: Tensor
    tail_logp_T: Tensor
    targets_T: Tensor
    mask_T: Tensor

    @staticmethod
    def make(tokens: int, s: Sizes, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Heads:
        """Random, the same for the same sizes; the teacher's logits exist a few rows at a time."""
        g = torch.Generator(device).manual_seed(1)
        hidden, teacher = (torch.randn(tokens, s.width, generator=g, device=device) for _ in range(2))
        weight, teacher_weight = (torch.randn(s.vocabulary, s.width, generator=g, device=device) * s.width**-0.5 for _ in range(2))
        found = []
        for rows in teacher.split(512):
            logp = (2.0 * rows @ teacher_weight.T).log_softmax(1)
            top = logp.topk(s.kept, 1)
            found.append((top.indices, top.values, logp.scatter(1, top.indices, -torch.inf).logsumexp(1)))
        ids, values, tails = (torch.cat(parts) for parts in zip(*found, strict=True))
        targets = torch.randint(s.vocabulary, (tokens,), generator=g, device=device)
        mask = torch.ones(tokens, dtype=torch.bool, device=device)
        student, teacher = (hidden.to(dtype), weight.to(dtype)), (teacher.to(dtype), teacher_weight.to(dtype))
        return Heads(*student, *teacher, ids, values, tails, targets, mask)

    def sparse(self, impl: str = "auto") -> Callable[[Tensor], Tensor]:
        """This project's top-k KL, by its hidden states."""
        return lambda h: linear_topk_kl(
            h, self.weight_VD, self.ids_TK, self.logp_TK, self.mask_T, self.tail_logp_T, impl=impl
        ).total  # fmt: skip

    def dense(self, divergence: str, impl: str = "auto") -> Callable[[Tensor], Tensor]:
        """This project's dense divergence."""
        return lambda h: linear_kl(h, self.weight_VD, self.teacher_TD, self.teacher_weight_VD, self.mask_T, divergence, impl=impl).total

    def ce(self, impl: str = "auto") -> Callable[[Tensor], Tensor]:
        """This project's cross-entropy."""
        return lambda h: linear_cross_entropy(h, self.weight_VD, self.targets_T, self.mask_T, impl).total

    def products(self, count: int) -> Candidate:
        """The floor: the matrix products that no form can do without (logits, hidden gradient; a live teacher's logits are one more)."""
        grad_TV = torch.empty(len(self.hidden_TD), len(self.weight_VD), device=self.hidden_TD.device, dtype=self.hidden_TD.dtype)

        def run() -> None:
            for _ in range(count - 1):
                torch.mm(self.hidden_TD, self.weight_VD.T, out=grad_TV)
            torch.mm(grad_TV, self.weight_VD)

        return run


def sparse_table(h: Heads) -> dict[str, Candidate]:
    """Top-k KL."""

    def naive(x: Tensor) -> Tensor:
        logq_TV = linear(x, h.weight_VD).float().log_softmax(1)
        rest_T = logq_TV.scatter(1, h.ids_TK, -torch.inf).logsumexp(1)
        kept_T = (h.logp_TK.exp() * (h.logp_TK - logq_TV.gather(1, h.ids_TK))).sum(1)
        return (kept_T + h.tail_logp_T.exp() * (h.tail_logp_T - rest_T)).sum()

    return {
        "two torch.mm": h.products(2),
        "speechkd": lambda: gradient(h.sparse(), h.hidden_TD),
        "torch": lambda: gradient(naive, h.hidden_TD),
    }


def dense_table(h: Heads) -> dict[str, Candidate]:
    """Forward KL and JSD with a live teacher."""

    def naive(x: Tensor) -> Tensor:
        logq_TV = linear(x, h.weight_VD).float().log_softmax(1)
        with torch.no_grad():
            logp_TV = linear(h.teacher_TD, h.teacher_weight_VD).float().log_softmax(1)
        return torch.nn.functional.kl_div(logq_TV, logp_TV, reduction="sum", log_target=True)

    def liger(beta: float) -> Candidate:
        def run() -> object:
            from liger_kernel.transformers import LigerFusedLinearJSD

            loss = LigerFusedLinearJSD(jsd_beta=beta)
            return gradient(lambda x: loss(x, h.weight_VD, h.teacher_TD, h.teacher_weight_VD), h.hidden_TD)

        return run

    return {
        "three torch.mm": h.products(3),
        "speechkd forward_kl": lambda: gradient(h.dense("forward_kl"), h.hidden_TD),
        "torch forward_kl": lambda: gradient(naive, h.hidden_TD),
        "liger forward_kl": liger(0.0),
        "speechkd jsd": lambda: gradient(h.dense("jsd"), h.hidden_TD),
        "liger jsd": liger(0.5),
    }


def ce_table(h: Heads) -> dict[str, Candidate]:
    """Cross-entropy."""

    def liger() -> object:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return gradient(lambda x: LigerFusedLinearCrossEntropyLoss(reduction="sum")(h.weight_VD, x, h.targets_T), h.hidden_TD)

    def torch_fused() -> object:
        fused = torch.nn.functional.linear_cross_entropy
        return gradient(lambda x: fused(x, h.weight_VD, h.targets_T, reduction="sum"), h.hidden_TD)

    return {
        "two torch.mm": h.products(2),
        "speechkd": lambda: gradient(h.ce(), h.hidden_TD),
        "torch": lambda: gradient(
            lambda x: cross_entropy(linear(x, h.weight_VD).float(), h.targets_T, reduction="sum"), h.hidden_TD
        ),
        "torch linear_cross_entropy": torch_fused,
        "liger": liger,
    }  # fmt: skip


class Projector:
    """A stacking projector with LayerNorm over a frozen encoder's states: forward, and the gradients of its weights."""

    def __init__(self, s: Sizes, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        g = torch.Generator(device).manual_seed(2)
        S = s.stack * s.encoder_width

        def made(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=g, device=device) * scale).to(dtype)

        self.stack = s.stack
        self.frames_BFC = made(s.batch, s.frames, s.encoder_width)
        self.weights = [
            made(s.hidden, S, scale=S**-0.5), made(s.hidden), made(s.width, s.hidden, scale=s.hidden**-0.5), made(s.width),
            1.0 + 0.1 * made(S), 0.1 * made(S),
        ]  # fmt: skip
        lengths_B = torch.randint(s.frames // 30, s.frames + 1, (s.batch,), generator=g, device=device)
        self.ragged_R = valid_rows(lengths_B, s.stack, s.frames)
        self.grad_BQD = made(s.batch, -(-s.frames // s.stack), s.width)

    def run(self, op: Callable[..., Tensor]) -> list[Tensor]:
        """Output and the weights' gradients."""
        leaves = [weight.detach().requires_grad_() for weight in self.weights]
        out_BQD = op(self.frames_BFC, self.stack, *leaves, 1e-5)
        return [out_BQD.detach(), *torch.autograd.grad(out_BQD, leaves, self.grad_BQD)]

    def ours(self, rows_R: Tensor | None = None, impl: str = "auto") -> list[Tensor]:
        """The same by this project's op."""
        return self.run(lambda *given: stack_norm_mlp(*given, rows_R=rows_R, impl=impl))


def plain(frames_BFC: Tensor, stack: int, *weights: Any) -> Tensor:
    """The reference: torch's modules in a row."""
    return plain_stack_norm_mlp(frames_BFC, stack, Mlp(*weights[:4], Norm(*weights[4:]), None, False), None)


def projector_table(p: Projector) -> dict[str, Candidate]:
    """The whole window, and utterances of mixed length."""
    compiled = torch.compile(plain)
    return {
        "torch": lambda: p.run(plain),
        "torch.compile": lambda: p.run(compiled),
        "speechkd": lambda: p.ours(),
        "speechkd, mixed lengths": lambda: p.ours(p.ragged_R),
    }
