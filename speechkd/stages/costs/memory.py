"""Bytes that one rank needs: weights, optimizer state, and what a micro-batch leaves for the backward pass.

weights      frozen parameters in the recipe's dtype; trained ones in it, and in the optimizer (16 bytes each: float32 copy, two
             moments, gradient). ZeRO-3 divides all by the number of ranks, ZeRO-2 the optimizer's share only
activations  bytes that autograd keeps, counted on the meta device by running the language model and the projector at the shapes of
             the largest micro-batch: rows x positions x (what each block saves). Scores of [positions, positions] count only where
             attention is eager: fused kernels do not keep them. With `student.recompute` what blocks keep, and one block's whole
encoder      no gradient, so only the states: layers x clips x frames x width, and one block's inner product
head         hidden states and their gradient, rows of supervised tokens, and one chunk of logits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from speechkd.kernels.chunks import CHUNK_ELEMENTS
from speechkd.models.projectors import Hint
from speechkd.models.recompute import PRODUCTS, Recompute
from speechkd.models.student import Student
from speechkd.stages.costs.shapes import Shapes

OPTIMISER_BYTES = 4 + 4 + 4 + 4
"""Per trained parameter: float32 master weight, two Adam moments, float32 gradient"""
FRAMEWORK_BYTES = 2 * 2**30
"""CUDA context, NCCL buffers and fragmentation on a GPU; nothing on a CPU"""
GATHERED = 2e9
"""Bytes of gathered parameters that ZeRO-3 keeps at most: `stage3_max_live_parameters` is 1e9"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one rank."""

    frozen: float
    trained: float
    optimiser: float
    gathered: float
    activations: float
    encoder: float
    head: float
    framework: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))


def rank_memory(
    student: Student, live: int, parts: int, dtype: torch.dtype, shapes: Shapes, activations: float, ranks: int, zero: int, gpu: bool
) -> Memory:
    """`live`: parameters of live teachers' own models; `parts`: what losses train; `zero`: the ZeRO stage."""
    size = dtype.itemsize
    frozen = (sum(p.numel() for p in student.parameters() if not p.requires_grad) + live) * size
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad) + parts
    split = ranks if zero == 3 else 1
    return Memory(
        frozen=frozen / split,
        trained=trained * size / split,
        optimiser=trained * OPTIMISER_BYTES / ranks,
        gathered=min(GATHERED, frozen) if zero == 3 and ranks > 1 else 0.0,
        activations=activations,
        encoder=_encoder_bytes(student, shapes, size),
        head=shapes.tokens * student.llm.width * size * 2 + 2 * size * CHUNK_ELEMENTS["cuda" if gpu else "cpu"],  # both models' logits
        framework=FRAMEWORK_BYTES if gpu else 0.0,
    )


def _encoder_bytes(student: Student, shapes: Shapes, size: int) -> float:
    hearing = student.encoder.hearing
    states = shapes.clips * shapes.frames * hearing.width * size
    return float(states * hearing.layers + 8 * states)


def activation_bytes(student: Student, shapes: Shapes, recompute: Recompute = "off", fused: bool | None = None) -> float:
    """Bytes that autograd keeps of the language model and the projector for a micro-batch of these shapes. Allocates nothing.

    `student` is on the meta device and does not recompute. `fused`: attention keeps no scores; None: as the model says.
    """
    rows, length = shapes.rows, shapes.length
    lm, width, dtype = student.llm.lm, student.llm.width, next(student.llm.lm.parameters()).dtype
    inputs_BSD = torch.empty(rows, length, width, dtype=dtype, device="meta", requires_grad=True)
    mask = torch.empty(rows, 1, length, length, dtype=dtype, device="meta")  # prepared: a 2-D one is looked into, which meta cannot do
    positions = torch.zeros(rows, length, dtype=torch.long, device="meta")
    hf_config = lm.config.get_text_config()
    eager = hf_config._attn_implementation == "eager" if fused is None else not fused
    heads = hf_config.num_attention_heads
    attended = rows * length * heads * getattr(hf_config, "head_dim", width // heads) * dtype.itemsize * student.llm.layers
    kept = 0 if eager else mask.nbytes + attended

    def language_model() -> Any:
        return lm.base_model(inputs_embeds=inputs_BSD, attention_mask=mask, position_ids=positions, use_cache=False)

    states_CFD = torch.empty(shapes.clips, shapes.frames, student.encoder.width, dtype=dtype, device="meta", requires_grad=True)

    def projector() -> Any:
        if student.projector.Config.GATED:
            return student.projector(states_CFD, Hint(language_B=None, progress=1.0))
        return student.projector(states_CFD)

    scores = None if eager else (rows, length)
    with _Products() as products:
        whole = _saved(student, language_model, scores) + kept
    if recompute != "off":
        inputs, one_block = float(inputs_BSD.nbytes * student.llm.layers + mask.nbytes), whole / student.llm.layers
        whole = inputs + one_block + (products.nbytes + (0 if eager else attended) if recompute == "selective" else 0)
    return whole + _saved(student, projector, None)


class _Products(TorchDispatchMode):
    """Sums the bytes of what matrix products return: `selective` keeps them."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in PRODUCTS and isinstance(out, Tensor):
            self.nbytes += out.nbytes
        return out


def _saved(module: nn.Module, run: Callable[[], Any], without_scores: tuple[int, int] | None) -> float:
    """Bytes of the storages that `run` saves for backward, parameters apart; perhaps without the scores of (rows, positions)."""
    own = {p.untyped_storage()._cdata for p in [*module.parameters(), *module.buffers()]}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and not _scores(tensor, without_scores):
            kept[storage._cdata] = storage  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run()
    total = float(sum(storage.nbytes() for storage in kept.values()))
    del out
    return total


def _scores(tensor: Tensor, of: tuple[int, int] | None) -> bool:
    """Whether a tensor is [rows x heads, positions, positions], and not [rows, positions, width] of the same numbers."""
    return of is not None and tensor.dim() > 2 and tensor.shape[-2:] == (of[1], of[1]) and (tensor.dim() > 3 or tensor.shape[0] != of[0])
