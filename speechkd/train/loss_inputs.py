"""The inputs of all losses for one micro-batch: the batch, the student's outputs, each live teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from speechkd.core.types import Batch
from speechkd.kernels.logits import Head
from speechkd.losses.base import Positions
from speechkd.losses.positions import predicted_tokens, predicting_positions
from speechkd.models.language_model import LanguageModel
from speechkd.teachers.live import ModelOutputs

HeadWeights = Mapping[int, Tensor]
"""`id()` of a language model -> its head's whole weight"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What every loss of a micro-batch reads."""

    batch: Batch
    student: ModelOutputs
    teachers: Mapping[str, ModelOutputs]
    """by name of the live teacher"""
    shared: Mapping[str, Tensor | None]
    """by live teacher: bool over ids, True where it and the student mean the same token; None where they do for all ids"""
    words_CND: Tensor | None
    """embeddings of the transcripts, where a loss needs them"""
    stored_layers: Sequence[int] = ()
    """layers whose states `batch.signals.hidden_TLE` holds, in its order"""

    def models(self) -> list[LanguageModel]:
        """The language models whose heads losses may need, each once; the teachers' come first."""
        found = {id(outputs.llm): outputs.llm for outputs in [*self.teachers.values(), self.student]}
        return list(found.values())

    def targets(self) -> Tensor:
        """The response token that each of the T rows predicts."""
        return predicted_tokens(self.batch.ids_BS, predicting_positions(self.batch.response_T))

    def owner(self, positions: Positions) -> Tensor:
        """The example of each response row, or the clip of each audio row."""
        batch = self.batch
        if positions == "audio":
            return batch.audio_from_A // batch.clips.mask_CQ.shape[1]
        return batch.response_T // batch.ids_BS.shape[1]

    @staticmethod
    def head(outputs: ModelOutputs, positions: Positions, rows: int, weights: HeadWeights) -> Head:
        """Final states of a model at the rows of a loss, with its head."""
        return Head(outputs.final(positions, rows), weights[id(outputs.llm)], outputs.llm.softcap)
