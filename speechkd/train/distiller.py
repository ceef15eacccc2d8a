"""The one module that DeepSpeed wraps: student, live teachers and losses. Its forward gives each loss, never logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from speechkd.core.types import Batch, LossOut
from speechkd.losses import LOSSES, LayerLoss, LossConfig
from speechkd.losses.base import LayerConfig, teacher_of
from speechkd.losses.positions import predicting_positions
from speechkd.models.language_model import LanguageModel
from speechkd.models.student import Student
from speechkd.teachers.live import LiveTeacher, ModelOutputs, TextTeacher
from speechkd.train.evidence import LossInputs, Weights, count


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStates:
    """What a column holds of a teacher's hidden states: which of its `depth` layers (as transformers counts them), and their width."""

    layers: Sequence[int]
    depth: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What is learned from what: the recipe's losses, the streams that they choose from, and the live teachers that they name."""

    losses: Mapping[str, LossConfig]
    streams: Sequence[str]
    """names in `mix`, by number"""
    teachers: Mapping[str, LiveTeacher] = field(default_factory=dict)
    shared: Mapping[str, Tensor | None] = field(default_factory=dict)
    """by live teacher: boolean over ids, which its vocabulary shares with the student's; None: all"""
    stored: StoredStates | None = None
    """of the columns, where a loss on layers has no live teacher"""


class Distiller(nn.Module):
    """Student + live teachers + the recipe's losses.

    The sequence of module calls is a function of the recipe, never of the batch: every live teacher looks at every micro-batch (a dummy row
    where it reads none of it), and every loss runs on all rows under a mask. Heads are reached through their own modules, so that ZeRO-3
    has their weights whole exactly there; frozen-head losses compute hidden gradients in forward.
    """

    def __init__(self, student: Student, method: Method) -> None:
        super().__init__()
        self.student, self.losses, self.streams = student, dict(method.losses), list(method.streams)
        self.teachers = nn.ModuleDict(dict(method.teachers))
        self._shared = {name: method.shared.get(name) for name in method.teachers}
        self._stored = method.stored
        self.pairs: dict[str, list[tuple[int, int]]] = {}
        self.parts = nn.ModuleDict()
        kinds = {name: LOSSES.get(config.kind) for name, config in self.losses.items()}
        for name, config in self.losses.items():
            self.register_buffer(f"_allowed_{name}", torch.tensor([not config.streams or s in config.streams for s in self.streams]), False)
            loss = kinds[name]
            if isinstance(loss, LayerLoss):
                assert isinstance(config, LayerConfig)
                depth, width = self._layers(teacher_of(config))
                self.pairs[name] = config.pairs(student.llm.layers, depth)
                part = loss.part(config, len(self.pairs[name]), student.llm.width, width) if loss.part else None
                if part is not None:
                    self.parts[name] = part
        for name, shared_W in self._shared.items():
            if shared_W is not None:
                self.register_buffer(f"_shared_{name}", shared_W, False)
        layered = [teacher_of(config) for name, config in self.losses.items() if isinstance(kinds[name], LayerLoss)]
        attended = [teacher_of(config) for config in self.losses.values() if getattr(config, "attention", False) is True]
        self._every_layer, self._attention = set(layered), set(attended)
        self._words = any("words" in kind.NEED.student for kind in kinds.values())

    def _layers(self, teacher: str) -> tuple[int, int]:
        """Depth and width of a live teacher's language model, or (no name) of the one whose states are stored."""
        if not teacher:
            assert self._stored is not None, "a loss on layers has a live teacher or stored states"
            return self._stored.depth, self._stored.width
        own: LanguageModel | None = getattr(self.teachers[teacher], "own")
        llm = self.student.llm if own is None else own
        return llm.layers, llm.width

    def forward(self, batch: Batch, probe: bool = False) -> dict[str, LossOut] | Tensor:
        """{loss name: LossOut}; with `probe`, logits [T, V] of the batch instead (a few positions, for comparing exports)."""
        if probe:
            return self.student.llm.logits(self.student(batch, predicting_positions(batch.response_T)))
        encoded = self.student.encoder(batch.features_BMT, batch.clips.frames_C)
        seen = {
            name: cast(LiveTeacher, teacher).look(self.student, batch, encoded, name in self._every_layer, name in self._attention)
            for name, teacher in self.teachers.items()
        }
        evidence = LossInputs(
            batch=batch,
            student=self._look(batch, encoded),
            teachers=seen,
            shared={name: getattr(self, f"_shared_{name}", None) for name in self._shared},
            words_CND=self.student.llm.embed(batch.clips.words_CN) if self._words else None,
            stored_layers=self._stored.layers if self._stored is not None else (),
        )
        out: dict[str, LossOut] = {}
        self._inside_heads(evidence, evidence.models(), {}, out)
        return out

    def _look(self, batch: Batch, encoded: tuple[Tensor, ...]) -> ModelOutputs:
        heard = self.student.hear(encoded, batch)
        states = self.student.states(batch, heard.audio_CQD, bool(self._every_layer))
        return ModelOutputs(
            llm=self.student.llm,
            states=tuple(s.flatten(0, 1) for s in states),
            predict_T=predicting_positions(batch.response_T),
            to_T=None,
            audio_A=batch.audio_to_A,
            audio_CQE=heard.audio_CQD,
            gate_CK=heard.gate_CK,
        )

    def _inside_heads(self, evidence: LossInputs, models: list[LanguageModel], weights: Weights, out: dict[str, LossOut]) -> None:
        """All losses into `out`, with every model's head whole: one model's head inside the other's.

        Nothing goes in or out as the head's own argument or result: its backward would gather a weight that no loss wants any more.
        """
        if models:
            llm, *others = models

            def inside(_: Tensor, weight_VD: Tensor) -> None:
                self._inside_heads(evidence, others, {**weights, id(llm): weight_VD}, out)

            llm.head(evidence.batch.mask_T, inside)
            return
        for name, config in self.losses.items():
            part = self.parts[name] if name in self.parts else None
            out[name] = evidence.run(config, getattr(self, f"_allowed_{name}"), weights, self.pairs.get(name, []), part)

    def counts(self, batch: Batch) -> Tensor:
        """Rows or clips that count, per loss, from the batch alone: [losses], float64."""
        return torch.stack([count(batch, config, getattr(self, f"_allowed_{name}")) for name, config in self.losses.items()])

    def weights(self) -> dict[str, float]:
        """The recipe's weight of each loss."""
        return {name: config.weight for name, config in self.losses.items()}

    def views(self) -> list[str]:
        """Names of the live teachers that read a view of their own."""
        return [name for name, teacher in self.teachers.items() if isinstance(teacher, TextTeacher)]
