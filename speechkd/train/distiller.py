"""The one module that DeepSpeed wraps: student and losses. Its forward gives each loss, never logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from speechkd.core.types import Batch, LossOut
from speechkd.losses import LOSSES, HeadLoss, LossConfig, Supervision
from speechkd.losses.positions import predicted_tokens, predicting_positions
from speechkd.models.student import Student


class Distiller(nn.Module):
    """Student + the recipe's losses.

    The sequence of module calls is a function of the recipe, never of the batch. The LM head is reached through its own
    module, so that ZeRO-3 has its weight whole exactly there; frozen-head losses compute hidden gradients in forward.
    """

    def __init__(self, student: Student, losses: Mapping[str, LossConfig]) -> None:
        super().__init__()
        self.student = student
        self.losses = dict(losses)

    def forward(self, batch: Batch, probe: bool = False) -> dict[str, LossOut] | Tensor:
        """{loss name: LossOut}; with `probe`, logits [T, V] of the batch instead (a few positions, for comparing exports)."""
        predict_T = predicting_positions(batch.response_T)
        hidden_TD = self.student(batch, predict_T)
        if probe:
            return self.student.llm.logits(hidden_TD)
        signals: dict[str, Any] = dict(batch.signals)
        supervision = Supervision(mask_T=batch.mask_T, targets_T=predicted_tokens(batch.ids_BS, predict_T), **signals)
        softcap = self.student.llm.softcap

        def compute(hidden: Tensor, weight_VD: Tensor) -> dict[str, LossOut]:
            out: dict[str, LossOut] = {}
            for name, config in self.losses.items():
                part = LOSSES.get(name)
                assert isinstance(part, HeadLoss)
                out[name] = part.loss(hidden, weight_VD, supervision, config, softcap)
            return out

        out: dict[str, LossOut] = self.student.llm.head(hidden_TD, compute)
        return out

    def counts(self, batch: Batch) -> Tensor:
        """Supervised positions per loss, from the batch alone: [losses], float64."""
        return batch.mask_T.sum(dtype=torch.float64).expand(len(self.losses))

    def weights(self) -> dict[str, float]:
        """The recipe's weight of each loss."""
        return {name: config.weight for name, config in self.losses.items()}
