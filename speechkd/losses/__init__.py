"""Losses: one file per method, with paper, equation, shapes and a pure function. `LOSSES` names those that a recipe can use."""

from speechkd.core.table import Table
from speechkd.losses.base import ClipLoss, HeadLoss, LayerLoss, Loss, LossConfig, Supervision

LOSSES: Table[Loss] = Table(
    "loss",
    {
        "acoustic_snapshot": "speechkd.losses.acoustic_snapshot:LOSS",
        "attn_cka": "speechkd.losses.attn_cka:LOSS",
        "audio_kl": "speechkd.losses.audio_kl:LOSS",
        "contrastive": "speechkd.losses.contrastive:LOSS",
        "cross_modal": "speechkd.losses.cross_modal:LOSS",
        "divergence": "speechkd.losses.divergences:LOSS",
        "input_alignment": "speechkd.losses.input_alignment:LOSS",
        "language_id": "speechkd.losses.language_id:LOSS",
        "layer_wise": "speechkd.losses.layer_wise:LOSS",
        "output_alignment": "speechkd.losses.output_alignment:LOSS",
        "response_ce": "speechkd.losses.response_ce:LOSS",
        "sampled_kd": "speechkd.losses.sampled_kd:LOSS",
        "topk_kl": "speechkd.losses.topk_kd:LOSS",
    },
    group="speechkd.losses",
)

__all__ = ["LOSSES", "ClipLoss", "HeadLoss", "LayerLoss", "Loss", "LossConfig", "Supervision"]
