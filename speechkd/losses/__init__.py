"""One file per method: paper, equation, shapes, a pure function. `LOSSES` names those that a recipe can use."""

from speechkd.core.table import Table
from speechkd.losses.base import ClipLoss, HeadLoss, LayerLoss, Loss, LossConfig, Supervision

LOSSES: Table[Loss] = Table(
    "loss",
    {
        "response_ce": "speechkd.losses.response_ce:LOSS",
        "topk_kl": "speechkd.losses.topk_kd:LOSS",
    },
)

__all__ = ["LOSSES", "ClipLoss", "HeadLoss", "LayerLoss", "Loss", "LossConfig", "Supervision"]
