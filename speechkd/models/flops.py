"""Floating-point operations that a model needs for a micro-batch, from parameter counts and lengths; the peak of known GPUs.

Counted are the matrix products that the method needs, once: 2 operations per weight and position forward, as many again for the gradient
with respect to the input where something trained lies before, and as many again for the gradient of a trained weight (Kaplan et al.,
arXiv 2001.08361; PaLM's model FLOPs utilisation, arXiv 2204.02311). Recomputed activations and padding of the language model do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from speechkd.core.types import Batch
from speechkd.models.encoder_families import MEL_SAMPLES
from speechkd.models.language_model import LanguageModel
from speechkd.models.student import Student

PEAK_TFLOPS: Mapping[str, float] = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A40": 149.7,
    "A10": 125.0,
    "MI300X": 1307.0,
    "MI250X": 191.5,
    "V100": 125.0,
}
"""Dense half-precision TFLOP/s of one device, without sparsity, by a part of the name that the driver gives; the first that matches"""


def peak_flops(device_name: str) -> float | None:
    """Dense half-precision FLOP/s of a GPU by its name; None where it is not known."""
    words = device_name.replace("-", " ").split()
    for name, tflops in PEAK_TFLOPS.items():
        if all(word in words for word in name.split()):
            return tflops * 1e12
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmFlops:
    """What one language model costs in a step."""

    position: float
    """per real position: prompt, audio and response"""
    square: float
    """per squared length of a sequence: causal attention scores, and what they weigh"""
    token: float
    """per supervised token: the head"""

    def of(self, positions: Any, squares: Any, tokens: Any) -> Any:
        """Operations for these counts, which may be numbers or device scalars."""
        return self.position * positions + self.square * squares + self.token * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlops:
    """What a student and its live teachers cost in a step, forward and backward."""

    student: LlmFlops
    """with the live teachers that read the student's own sequences"""
    views: Mapping[str, LlmFlops]
    """by name, the live teachers that read a view of their own"""
    frame: float
    """per frame that the encoder computes: clips are padded, to its window or to the longest clip of the batch"""
    frame_square: float
    """per squared number of these frames of a clip"""
    projected: float
    """per audio position of the projector that a sequence reads: others are not computed"""
    hop: int
    """samples from one frame to the next"""

    def encoder(self, clips: int, frames: int) -> float:
        """Encoder operations for clips that are padded to `frames` each."""
        return clips * (self.frame * frames + self.frame_square * frames**2)

    def of_batch(self, batch: Batch) -> Tensor:
        """Operations of one micro-batch, as a float64 scalar on the batch's device: nothing waits for it."""
        total = self.student.of(*_counts(batch.mask_BS, batch.mask_T.sum()))
        for name, view in batch.views.items():
            if name in self.views:
                total = total + self.views[name].of(*_counts(view.mask_BS, view.to_T.numel()))
        samples = batch.features_BMT.shape[-1] * (MEL_SAMPLES if batch.features_BMT.dim() == 3 else 1)
        clips = batch.features_BMT.shape[0]
        heard: Tensor = total + self.encoder(clips, samples // self.hop) + self.projected * batch.read_R.numel()
        return heard


def _counts(mask_BS: Tensor, tokens: Any) -> tuple[Tensor, Tensor, Any]:
    lengths_B = mask_BS.sum(1).double()
    return lengths_B.sum(), lengths_B.square().sum(), tokens


def llm_flops(llm: LanguageModel, backward: bool) -> LlmFlops:
    """Costs of a frozen language model, with LoRA where it has it. `backward`: gradients pass through it to what trains before it.

    Every weight is taken to be used at every position: too much for a mixture of experts.
    """
    tables = {id(llm.lm.get_input_embeddings().weight), id(llm.head.weight)}
    weights = [p for p in llm.lm.parameters() if id(p) not in tables]
    position = sum(p.numel() * (2 + 2 * backward + 2 * (backward and p.requires_grad)) for p in weights)
    # Scores and weighted values are 2 x 2 x width operations a pair of positions, and half of the pairs are masked.
    square = 2 * llm.width * llm.layers * (3 if backward else 1)
    return LlmFlops(position=position, square=square, token=llm.width * llm.vocab_size * (4 if backward else 2))


def student_flops(student: Student, heard_by: Sequence[LanguageModel] = (), views: Mapping[str, LanguageModel] | None = None) -> ModelFlops:
    """Costs of a student, which may be on the meta device.

    `heard_by`: models of the live teachers that read the student's own sequences; `views`: of those that read others, by name.
    """
    ours, hearing = llm_flops(student.llm, backward=True), student.encoder.hearing
    looked_up = [table.weight for table in student.encoder.modules() if isinstance(table, nn.Embedding)]
    for teacher in (llm_flops(llm, backward=False) for llm in heard_by):
        ours = LlmFlops(position=ours.position + teacher.position, square=ours.square + teacher.square, token=ours.token + teacher.token)
    return ModelFlops(
        student=ours,
        views={name: llm_flops(llm, backward=False) for name, llm in (views or {}).items()},
        frame=2.0 * (sum(p.numel() for p in student.encoder.parameters()) - sum(p.numel() for p in looked_up)),
        frame_square=4.0 * hearing.width * (hearing.layers - 1),
        projected=sum(p.numel() * (6 if p.requires_grad else 4) for p in student.projector.parameters()),
        hop=hearing.hop,
    )
