"""The one module that DeepSpeed wraps: student, live teachers and losses. Its forward gives each loss, never logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from speechkd.core.types import Batch, LossOut
from speechkd.losses import LossConfig
from speechkd.losses.positions import predicting_positions
from speechkd.models.language_model import LanguageModel
from speechkd.models.student import Student
from speechkd.teachers.live import LiveTeacher, ModelOutputs, TextTeacher
from speechkd.train.loss_inputs import HeadWeights, LossInputs
from speechkd.train.loss_terms import LlmShape, build_term


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStates:
    """What a column holds of a teacher's hidden states: which of its `depth` layers (as transformers counts them), and their width."""

    layers: Sequence[int]
    depth: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A recipe's losses, the streams that they choose from, and the live teachers that they name."""

    losses: Mapping[str, LossConfig]
    streams: Sequence[str]
    """names by number"""
    teachers: Mapping[str, LiveTeacher] = field(default_factory=dict)
    shared: Mapping[str, Tensor | None] = field(default_factory=dict)
    """by live teacher: boolean over ids, which its vocabulary shares with the student's; None: all"""
    stored: StoredStates | None = None
    """of the columns, where a loss on layers has no live teacher"""


class Distiller(nn.Module):
    """Student + live teachers + the recipe's losses.

    The sequence of module calls is a function of the recipe, never of the batch: every live teacher runs on every micro-batch (on a dummy
    row where it reads none of it), and every loss runs on all rows under a mask. Heads are reached through their own modules, so that
    ZeRO-3 has their weights whole exactly there; frozen-head losses compute hidden gradients in forward.
    """

    def __init__(self, student: Student, method: Method) -> None:
        super().__init__()
        self.student, self.losses = student, dict(method.losses)
        self.teachers = nn.ModuleDict(dict(method.teachers))
        self._shared = {name: method.shared.get(name) for name in method.teachers}
        self._stored_layers = method.stored.layers if method.stored is not None else ()
        shapes = {name: _shape(teacher.llm(student)) for name, teacher in method.teachers.items()}
        if method.stored is not None:
            shapes[""] = LlmShape(depth=method.stored.depth, width=method.stored.width)
        self.terms = [build_term(name, config, method.streams, _shape(student.llm), shapes) for name, config in self.losses.items()]
        self.parts = nn.ModuleDict({term.name: term.part for term in self.terms if term.part is not None})
        for name, shared_W in self._shared.items():
            if shared_W is not None:
                self.register_buffer(f"_shared_{name}", shared_W, False)
        needs = {name: config.needs() for name, config in self.losses.items()}
        self._every_layer, self._attention = (self._teachers_that_show(signal) for signal in ("hidden", "attention"))
        self._student_layers = any("hidden" in need.student for need in needs.values())
        self._words = any("words" in need.student for need in needs.values())

    def _teachers_that_show(self, signal: str) -> set[str]:
        """Live teachers from which some loss needs a signal."""
        asking = (config for config in self.losses.values() if signal in config.needs().live)
        return {teacher for config in asking for teacher in config.live_teachers().values()}

    def forward(self, batch: Batch, probe: bool = False) -> dict[str, LossOut] | Tensor:
        """{loss name: LossOut}; with `probe`, logits [T, V] of the batch instead (a few positions, for comparing exports)."""
        if probe:
            return self.student.llm.logits(self.student(batch, predicting_positions(batch.response_T)))
        encoded_LCFD = self.student.encoder(batch.features_BMT, batch.clips.frames_C)
        teachers = {
            name: cast(LiveTeacher, teacher).outputs(
                self.student, batch, encoded_LCFD, every_layer=name in self._every_layer, attention=name in self._attention
            )
            for name, teacher in self.teachers.items()
        }
        inputs = LossInputs(
            batch=batch,
            student=self._student_outputs(batch, encoded_LCFD),
            teachers=teachers,
            shared={name: getattr(self, f"_shared_{name}", None) for name in self._shared},
            words_CND=self.student.llm.embed(batch.clips.words_CN) if self._words else None,
            stored_layers=self._stored_layers,
        )
        out: dict[str, LossOut] = {}
        self._inside_heads(inputs, inputs.models(), {}, out)
        return out

    def _student_outputs(self, batch: Batch, encoded_LCFD: tuple[Tensor, ...]) -> ModelOutputs:
        heard = self.student.hear(encoded_LCFD, batch)
        states = self.student.states(batch, heard.audio_CQD, self._student_layers)
        return ModelOutputs(
            llm=self.student.llm,
            states=tuple(s.flatten(0, 1) for s in states),
            predict_T=predicting_positions(batch.response_T),
            to_T=None,
            audio_A=batch.audio_to_A,
            audio_CQE=heard.audio_CQD,
            gate_CK=heard.gate_CK,
        )

    def _inside_heads(self, inputs: LossInputs, models: list[LanguageModel], weights: HeadWeights, out: dict[str, LossOut]) -> None:
        """All losses into `out`, with every model's head whole: one model's head inside the other's.

        Nothing goes in or out as the head's own argument or result: its backward would gather a weight that no loss needs any more.
        """
        if models:
            llm, *others = models

            def inside(_: Tensor, weight_VD: Tensor) -> None:
                self._inside_heads(inputs, others, {**weights, id(llm): weight_VD}, out)

            llm.head(inputs.batch.mask_T, inside)
            return
        for term in self.terms:
            out[term.name] = term(inputs, weights)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of all models: what ZeRO-3 gathers as units."""
        others = [teacher.other_llm for teacher in self.teachers.values() if isinstance(teacher.other_llm, LanguageModel)]
        llms = [block for llm in (self.student.llm, *others) for block in llm.blocks()]
        return [*self.student.encoder.blocks(), *llms]

    def counts(self, batch: Batch) -> Tensor:
        """Rows or clips that count, per loss, from the batch alone: [losses], float64."""
        return torch.stack([term.count(batch) for term in self.terms])

    def loss_weights(self) -> dict[str, float]:
        """The recipe's weight of each loss."""
        return {name: config.weight for name, config in self.losses.items()}

    def views(self) -> list[str]:
        """Names of the live teachers that read a view of their own."""
        return [name for name, teacher in self.teachers.items() if isinstance(teacher, TextTeacher)]


def _shape(llm: LanguageModel) -> LlmShape:
    return LlmShape(depth=llm.layers, width=llm.width)
