"""A recipe's losses at work: each term knows its streams, counts its rows from the batch, and runs on the outputs of all models.

    HeadTerm    rows of positions through the LM head
    LayerTerm   pairs of hidden layers; owns the pairs, and what the loss itself learns
    ClipTerm    whole clips
Counts come from the batch alone, so that they are known before any model runs and never depend on one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn

from speechkd.core.types import Batch, LossOut
from speechkd.kernels.logits import Head
from speechkd.losses import LOSSES, ClipLoss, HeadLoss, LayerLoss, LossConfig, Supervision
from speechkd.losses.base import ClipFacts, Clips, LayerConfig, Layers, given
from speechkd.teachers.live import ModelOutputs
from speechkd.train.loss_inputs import HeadWeights, LossInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmShape:
    """Number of layers of a language model, and their width."""

    depth: int
    width: int


class LossTerm(ABC):
    """One loss of a recipe: `name` and `config` are the recipe's, `streams` the run's list of streams."""

    part: nn.Module | None = None
    """what the loss itself learns; the distiller registers it"""

    def __init__(self, name: str, config: LossConfig, streams: Sequence[str]) -> None:
        self.name, self.config = name, config
        self._streams = None if not config.streams else [number for number, stream in enumerate(streams) if config.counts(stream)]

    def count(self, batch: Batch) -> Tensor:
        """How many rows (of a `ClipTerm`: clips) of a batch count, float64, from the batch alone."""
        return self._rows(batch).sum(dtype=torch.float64)

    @abstractmethod
    def __call__(self, inputs: LossInputs, weights: HeadWeights) -> LossOut:
        """The loss, inside the heads whose `weights` are whole."""

    def in_streams(self, stream_X: Tensor) -> Tensor:
        """Bool [X]: the entries of the loss's streams. Compared one by one, so that no table has to live on the device."""
        if self._streams is None:
            return torch.ones_like(stream_X, dtype=torch.bool)
        return reduce(torch.logical_or, [stream_X == number for number in self._streams], torch.zeros_like(stream_X, dtype=torch.bool))

    def _rows(self, batch: Batch) -> Tensor:
        """Bool; the rows of a loss on positions that count."""
        positions = self.config.positions()
        if positions == "audio":
            return self.in_streams(batch.stream_A)
        mask_T = batch.mask_T & self.in_streams(batch.stream_T)
        return mask_T & batch.first_T if positions == "prompt_end" else mask_T

    def _head_weights(self, weights: HeadWeights) -> HeadWeights:
        """Copies where backward will read the weights again: under ZeRO-3 the originals are partitioned by then."""
        return {key: weight.detach().clone() for key, weight in weights.items()} if self.config.autograd_through_head else weights


class HeadTerm(LossTerm):
    """A `HeadLoss`: rows of positions through the LM head."""

    def __init__(self, name: str, config: LossConfig, streams: Sequence[str], loss: HeadLoss) -> None:
        super().__init__(name, config, streams)
        self._loss = loss.loss

    def __call__(self, inputs: LossInputs, weights: HeadWeights) -> LossOut:
        """The loss at its rows."""
        weights, positions, mask_T = self._head_weights(weights), self.config.positions(), self._rows(inputs.batch)

        def head(outputs: ModelOutputs) -> Head:
            return inputs.head(outputs, positions, len(mask_T), weights)

        supervision = Supervision(mask_T=mask_T)
        if positions != "audio":
            supervision = replace(supervision, targets_T=inputs.targets(), signals=inputs.batch.signals)
        teachers = {key: head(inputs.teachers[name]).frozen() for key, name in self.config.live_teachers().items()}
        if teachers:
            shared_W = inputs.shared[self.config.teacher_name]
            supervision = replace(supervision, teacher=teachers["teacher"], negative=teachers.get("negative"), shared_W=shared_W)
        return self._loss(head(inputs.student), supervision, self.config)


class LayerTerm(LossTerm):
    """A `LayerLoss`: pairs of hidden layers. `student` and `teacher` are the shapes of both models."""

    config: LayerConfig

    def __init__(
        self, name: str, config: LayerConfig, streams: Sequence[str], loss: LayerLoss, student: LlmShape, teacher: LlmShape
    ) -> None:
        super().__init__(name, config, streams)
        self._loss = loss.loss
        self.pairs = config.pairs(student.depth, teacher.depth)
        self.part = None if loss.part is None else loss.part(config, len(self.pairs), student.width, teacher.width)

    def __call__(self, inputs: LossInputs, weights: HeadWeights) -> LossOut:
        """The loss at its rows, all pairs of layers."""
        weights, mask_T = self._head_weights(weights), self._rows(inputs.batch)
        student = self._layers(inputs, inputs.student, [i for i, _ in self.pairs], len(mask_T), weights)
        numbers, name = [g for _, g in self.pairs], self.config.teacher_name
        teacher = self._layers(inputs, inputs.teachers[name], numbers, len(mask_T), weights) if name else self._stored(inputs, numbers)
        return self._loss(student, teacher, mask_T, inputs.shared.get(name), self.config, self.part)

    def _layers(self, inputs: LossInputs, outputs: ModelOutputs, numbers: Sequence[int], rows: int, weights: HeadWeights) -> Layers:
        positions, llm = self.config.positions(), outputs.llm
        states = [outputs.layer(number, positions, rows) for number in numbers]
        lens: list[Head] = []
        if self.config.lens:
            normed = llm.final_norm(torch.stack(states))  # one call, however many layers
            # the last layer's state is after the final norm already
            final = [state if number == llm.layers else normed[i] for i, (number, state) in enumerate(zip(numbers, states, strict=True))]
            lens = [Head(state, weights[id(llm)], llm.softcap) for state in final]
        return Layers(states=states, lens=lens, owner_T=inputs.owner(positions))

    def _stored(self, inputs: LossInputs, numbers: Sequence[int]) -> Layers:
        """Layers of a column's teacher at the response."""
        hidden_TLE = given(inputs.batch.signals.hidden_TLE, self.name, "hidden")
        states = [hidden_TLE[:, inputs.stored_layers.index(number)] for number in numbers]
        return Layers(states=states, owner_T=inputs.owner("response"))


class ClipTerm(LossTerm):
    """A `ClipLoss`: whole clips."""

    def __init__(self, name: str, config: LossConfig, streams: Sequence[str], loss: ClipLoss) -> None:
        super().__init__(name, config, streams)
        self._loss, self._keeps = loss.loss, loss.keeps

    def count(self, batch: Batch) -> Tensor:
        """Clips that count."""
        return self._facts(batch).keep_C.sum(dtype=torch.float64)

    def __call__(self, inputs: LossInputs, weights: HeadWeights) -> LossOut:
        """The loss over its clips."""
        facts = replace(self._facts(inputs.batch), words_CND=inputs.words_CND, attention_CQ=inputs.batch.signals.attention_CQ)
        name = self.config.teacher_name
        teacher = _clips(inputs.teachers[name]) if name else None
        return self._loss(_clips(inputs.student), teacher, facts, self.config)

    def _facts(self, batch: Batch) -> ClipFacts:
        clips = batch.clips
        facts = ClipFacts(
            keep_C=clips.mask_CQ.any(1) & self.in_streams(clips.stream_C),
            mask_CQ=clips.mask_CQ,
            language_C=clips.language_C,
            words_mask_CN=clips.words_mask_CN,
        )
        return replace(facts, keep_C=facts.keep_C & self._keeps(facts, self.config))


def _clips(outputs: ModelOutputs) -> Clips:
    assert outputs.audio_CQE is not None, "only a model that hears has clips"
    return Clips(projected_CQD=outputs.audio_CQE, attention_CQ=outputs.attention_CQ, gate_CK=outputs.gate_CK)


def build_term(name: str, config: LossConfig, streams: Sequence[str], student: LlmShape, teachers: Mapping[str, LlmShape]) -> LossTerm:
    """The term of a recipe's loss. `teachers`: shape of each live teacher, and, by the empty name, of the one whose states are stored."""
    loss = LOSSES.get(config.kind)
    if isinstance(loss, HeadLoss):
        return HeadTerm(name, config, streams, loss)
    if isinstance(loss, ClipLoss):
        return ClipTerm(name, config, streams, loss)
    assert isinstance(config, LayerConfig)
    return LayerTerm(name, config, streams, loss, student, teachers[config.teacher_name])
