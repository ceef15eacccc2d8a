"""What each loss is given of a micro-batch: masks and counts from the batch alone, then rows of what the models showed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from speechkd.core.types import Batch, LossOut
from speechkd.kernels.chunks import rows_per_chunk
from speechkd.kernels.logits import head_logits
from speechkd.losses import LOSSES, ClipLoss, HeadLoss, LayerLoss, Loss, LossConfig, Supervision
from speechkd.losses.base import ClipFacts, Clips, Layers, given, positions_of, teacher_of
from speechkd.losses.positions import predicted_tokens, predicting_positions
from speechkd.models.language_model import LanguageModel
from speechkd.teachers.live import ModelOutputs

_STORED = {f.name for f in dataclass_fields(Supervision)}
Weights = Mapping[int, Tensor]
"""Head weights, whole, by id of their language model"""


def rows_mask(batch: Batch, config: LossConfig, allowed_S: Tensor) -> Tensor:
    """Boolean; the rows of a loss on positions that count: of its roles, at its place."""
    if positions_of(config) == "audio":
        return allowed_S[batch.stream_A]
    mask_T = batch.mask_T & allowed_S[batch.stream_T]
    return mask_T & batch.first_T if positions_of(config) == "prompt_end" else mask_T


def clip_facts(batch: Batch, config: LossConfig, allowed_S: Tensor) -> ClipFacts:
    """What is known of the clips; those that count are of the loss's roles and have audio, and what `keeps` of the loss asks."""
    part = LOSSES.get(config.kind)
    assert isinstance(part, ClipLoss)
    clips = batch.clips
    facts = ClipFacts(
        keep_C=clips.mask_CQ.any(1) & allowed_S[clips.stream_C],
        mask_CQ=clips.mask_CQ,
        language_C=clips.language_C,
        words_mask_CN=clips.words_mask_CN,
    )
    return replace(facts, keep_C=facts.keep_C & part.keeps(facts, config))


def count(batch: Batch, config: LossConfig, allowed_S: Tensor) -> Tensor:
    """How many rows or clips of a batch a loss counts, from the batch alone."""
    if isinstance(LOSSES.get(config.kind), ClipLoss):
        return clip_facts(batch, config, allowed_S).keep_C.sum(dtype=torch.float64)
    return rows_mask(batch, config, allowed_S).sum(dtype=torch.float64)


@dataclass(slots=True, kw_only=True)
class LossInputs:
    """One micro-batch: the batch, what the student showed, what each live teacher showed."""

    batch: Batch
    student: ModelOutputs
    teachers: Mapping[str, ModelOutputs]
    shared: Mapping[str, Tensor | None]
    """by live teacher: the ids that its vocabulary shares with the student's; None where they are one vocabulary"""
    words_CND: Tensor | None
    """embeddings of the transcripts, where a loss needs them"""
    stored_layers: Sequence[int] = ()
    """layers whose states the batch carries, in their order"""

    def models(self) -> list[LanguageModel]:
        """The language models whose heads losses may need, each once, teachers' first."""
        found = {id(seen.llm): seen.llm for seen in [*self.teachers.values(), self.student]}
        return list(found.values())

    def run(
        self, config: LossConfig, allowed_S: Tensor, weights: Weights, pairs: Sequence[tuple[int, int]], part: nn.Module | None
    ) -> LossOut:
        """The loss of `config`, inside the heads."""
        loss: Loss = LOSSES.get(config.kind)
        teacher = self.teachers.get(teacher_of(config))
        if isinstance(loss, ClipLoss):
            facts = replace(clip_facts(self.batch, config, allowed_S), words_CND=self.words_CND)
            return loss.loss(self._clips(self.student), self._taught_clips(teacher, config), facts, config)
        mask_T = rows_mask(self.batch, config, allowed_S)
        rows, at = len(mask_T), "audio" if positions_of(config) == "audio" else "response"
        if isinstance(loss, LayerLoss):
            ours, numbers = self._layers(self.student, [i for i, _ in pairs], config, at, rows, weights), [g for _, g in pairs]
            theirs = self._stored(numbers) if teacher is None else self._layers(teacher, numbers, config, at, rows, weights)
            return loss.loss(ours, theirs, mask_T, self.shared.get(teacher_of(config)), config, part)
        assert isinstance(loss, HeadLoss)
        if getattr(config, "impl", "") == "reference":  # autograd will want the weights in backward, when under ZeRO-3 they are gone
            weights = {name: weight.detach().clone() for name, weight in weights.items()}
        supervision = self._supervision(config, teacher, at, mask_T, weights)
        llm = self.student.llm
        return loss.loss(self.student.final(at, rows), weights[id(llm)], supervision, config, llm.softcap)

    def _supervision(self, config: LossConfig, teacher: ModelOutputs | None, at: str, mask_T: Tensor, weights: Weights) -> Supervision:
        batch, fields = self.batch, dict[str, Any]()
        if at == "response":
            fields["targets_T"] = predicted_tokens(batch.ids_BS, predicting_positions(batch.response_T))
        if teacher is None:
            fields |= {name: tensor for name, tensor in batch.signals.items() if name in _STORED and at == "response"}
            return Supervision(mask_T=mask_T, **fields)
        fields["teacher_TE"] = teacher.final(at, len(mask_T))
        fields["teacher_weight_UE"] = weights[id(teacher.llm)]
        fields["teacher_softcap"] = teacher.llm.softcap
        fields["shared_W"] = self.shared[teacher_of(config)]
        if negative := getattr(config, "negative", ""):
            fields["negative_TE"] = self.teachers[negative].final(at, len(mask_T))
        if "topk" in LOSSES.get(config.kind).NEED.signals:
            fields |= _topk(fields["teacher_TE"], fields["teacher_weight_UE"], teacher.llm.softcap, fields["shared_W"], config)
        return Supervision(mask_T=mask_T, **fields)

    def _owner(self, at: str) -> Tensor:
        """The example of each response row, the clip of each audio row."""
        batch = self.batch
        if at == "audio":
            return batch.audio_from_A // batch.clips.mask_CQ.shape[1]
        return batch.response_T // batch.ids_BS.shape[1]

    def _layers(self, seen: ModelOutputs, numbers: Sequence[int], config: LossConfig, at: str, rows: int, weights: Weights) -> Layers:
        states = [seen.layer(number, at, rows) for number in numbers]
        lens: Sequence[Tensor] = ()
        if config.lens:  # type: ignore[attr-defined]  # every LayerConfig has it
            normed = seen.llm.final_norm(torch.stack(states))  # one call, however many layers
            last = seen.llm.layers  # whose state is after the final norm already
            lens = [state if number == last else normed[i] for i, (number, state) in enumerate(zip(numbers, states, strict=True))]
        return Layers(states=states, lens=lens, weight_VD=weights[id(seen.llm)], softcap=seen.llm.softcap, owner_T=self._owner(at))

    def _stored(self, numbers: Sequence[int]) -> Layers:
        """Layers of a column's teacher at the response."""
        hidden_TLE = given(self.batch.signals.get("hidden_TLE"), "layer_wise", "hidden")
        states = [hidden_TLE[:, self.stored_layers.index(number)] for number in numbers]
        return Layers(states=states, owner_T=self._owner("response"))

    @staticmethod
    def _clips(seen: ModelOutputs) -> Clips:
        assert seen.audio_CQE is not None
        return Clips(projected_CQD=seen.audio_CQE, attention_CQ=seen.attention_CQ, gate_CK=seen.gate_CK)

    def _taught_clips(self, teacher: ModelOutputs | None, config: LossConfig) -> Clips | None:
        if teacher is None:
            return None
        clips = self._clips(teacher)
        stored = getattr(config, "attention", False) == "stored"
        return replace(clips, attention_CQ=self.batch.signals.get("attention_CQ")) if stored else clips


@torch.no_grad()
def _topk(hidden_TE: Tensor, weight_UE: Tensor, softcap: float | None, shared_W: Tensor | None, config: Any) -> dict[str, Tensor]:
    """What a column would have stored of these rows: K likeliest ids, their log-probs and the tail's, at the loss's temperature.

    Ids that the student does not share are part of the tail. Chunk by chunk, so that [T, U] logits never exist.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows_CE in hidden_TE.split(rows_per_chunk(weight_UE.shape[0], hidden_TE.device)):
        logp_CU = torch.log_softmax(head_logits(rows_CE, weight_UE, softcap) / config.temperature, dim=1)
        kept_CW = logp_CU if shared_W is None else logp_CU[:, : len(shared_W)].masked_fill(~shared_W, -torch.inf)
        top = kept_CW.topk(min(config.live_k, kept_CW.shape[1]), dim=1)
        # where fewer than K ids are shared, the last slots name ids that are not: empty, and their mass stays in the tail
        rest_CK = logp_CU.gather(1, top.indices).masked_fill(top.values.isfinite(), -torch.inf)
        parts.append((top.indices, top.values, logp_CU.scatter(1, top.indices, rest_CK).logsumexp(1)))
    ids_TK, logp_TK, tail_T = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return {"ids_TK": ids_TK, "logp_TK": logp_TK, "tail_logp_T": tail_T}
