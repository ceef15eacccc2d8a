"""Known ways in which an engine serves another student than the one that was exported, each done to a student here, and undone.

`speechkd verify` asks which of them explains a server's answers. Sources: LoRA left out or at another scale (unslothai/unsloth#7792),
embeddings scaled or placed otherwise (vllm-project/vllm#46250), another prompt around the question.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from speechkd.core.types import Batch
from speechkd.models.exported import DistilledStudent
from speechkd.models.lora import LoraLinear
from speechkd.models.prompt import Prompt, StudentPrompt

Alteration = Callable[[DistilledStudent], contextlib.AbstractContextManager[None]]


def alterations(student: DistilledStudent) -> dict[str, Alteration]:
    """What may have gone wrong -> how to do it to this student. A merged export has no LoRA to leave out."""
    found: dict[str, Alteration] = {}
    layers = [part for part in student.student.llm.modules() if isinstance(part, LoraLinear)]
    if layers:
        scale, rank = layers[0].scale, layers[0].lora_A.shape[0]
        found["the LoRA adapter of the language model is not applied"] = _lora_scale(0.0)
        others = {"alpha": scale * rank, "alpha / sqrt(r)": scale * math.sqrt(rank), "1": 1.0, "twice": 2 * scale, "half": scale / 2}
        for name, value in others.items():
            if value != scale:
                found[f"LoRA's scale is {value:g} ({name}), was trained with {scale:g} (alpha / r)"] = _lora_scale(value)
    templates = {"the clip, then the question": "{{ audio }}\n{{ question }}", "the question, then the clip": "{{ question }}\n{{ audio }}"}
    for name, template in templates.items():
        if template != student.prompt.text.strip():
            found[f"the prompt template is not the export's: {name}"] = _template(template)
    found["the chat template is left out"] = _bare
    found["the clip stands one position late"] = _shifted(1)
    found["the clip stands one position early"] = _shifted(-1)
    found["the clip's last position is missing"] = _shorter
    width = math.sqrt(student.student.llm.width)
    found[f"audio embeddings are multiplied by {width:.4g} (the root of the width)"] = _audio_scale(width)
    found["audio embeddings are zero: the clip is not heard"] = _audio_scale(0.0)
    return found


def _lora_scale(scale: float) -> Alteration:
    @contextlib.contextmanager
    def altered(student: DistilledStudent) -> Iterator[None]:
        layers = [part for part in student.student.llm.modules() if isinstance(part, LoraLinear)]
        before = [layer.scale for layer in layers]
        try:
            for layer in layers:
                layer.scale = scale
            yield
        finally:
            for layer, value in zip(layers, before, strict=True):
                layer.scale = value

    return altered


def _template(template: str) -> Alteration:
    @contextlib.contextmanager
    def altered(student: DistilledStudent) -> Iterator[None]:
        before = student.prompt
        try:
            student.prompt = Prompt(template, before.tokenizer)
            yield
        finally:
            student.prompt = before

    return altered


class _Bare(Prompt):
    """The user's message alone, without the model's chat template."""

    def student(self, question: str) -> StudentPrompt:
        before, after = self.around(question)
        return StudentPrompt(*(self.tokenizer.encode(text, add_special_tokens=False) for text in (before, after)))


@contextlib.contextmanager
def _bare(student: DistilledStudent) -> Iterator[None]:
    before = student.prompt
    try:
        student.prompt = _Bare(before.text, before.tokenizer)
        yield
    finally:
        student.prompt = before


@contextlib.contextmanager
def _batches(student: DistilledStudent, change: Callable[[Batch], Batch]) -> Iterator[None]:
    collator = student.collator
    try:
        student.collator = lambda rows: change(collator(rows))  # type: ignore[assignment]
        yield
    finally:
        student.collator = collator


def _shifted(by: int) -> Alteration:
    """Each audio position reads its neighbour's embedding; the one at the end is read twice."""

    def change(batch: Batch) -> Batch:
        from_A, row_A = batch.audio_from_A, batch.audio_to_A // batch.ids_BS.shape[1]
        moved_A, same_A = torch.roll(from_A, by), torch.roll(row_A, by) == row_A
        same_A[0 if by > 0 else -1] = False  # `roll` goes round
        return replace(batch, audio_from_A=torch.where(same_A, moved_A, from_A))

    return lambda student: _batches(student, change)


@contextlib.contextmanager
def _shorter(student: DistilledStudent) -> Iterator[None]:
    """Holds for batches of one clip, whose positions begin at 0."""
    collator = student.collator
    try:
        student.collator = replace(collator, positions=lambda frames: collator.positions(frames) - 1)
        yield
    finally:
        student.collator = collator


def _audio_scale(factor: float) -> Alteration:
    @contextlib.contextmanager
    def altered(student: DistilledStudent) -> Iterator[None]:
        def scale(module: object, inputs: object, out: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            if isinstance(out, Tensor):
                return out * factor
            return out._replace(states_BQE=out.states_BQE * factor)  # type: ignore[attr-defined]

        handle = student.student.projector.register_forward_hook(scale)
        try:
            yield
        finally:
            handle.remove()

    return altered
