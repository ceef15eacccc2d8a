"""Projectors map encoder states [B, F, D] to language-model embeddings [B, Q, E]. One file each, one line each in `PROJECTORS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from speechkd.core.config import Config
from speechkd.core.table import Table


class ProjectorConfig(Config):
    """Base of every projector's configuration block."""

    GATED: ClassVar[bool] = False
    """whether the projector has a language gate, for losses that train one"""
    SUMS_LAYERS: ClassVar[bool] = False
    """whether its forward takes `LayerStates` too: it sums an encoder's layers itself, over the frames that it reads"""
    kind: str

    def starts_from(self) -> str | None:
        """Folder or hub id of the model whose weights the projector starts from; None: random weights."""
        return None

    def gate_languages(self) -> list[str]:
        """Languages that the projector's gate chooses between, in the order of its logits; empty without a gate."""
        return []


class Projector(Protocol):
    """A module that maps encoder states to embeddings. `positions` is its length contract: Q is known before the forward runs."""

    def positions(self, frames: int) -> int:
        """Q positions for F valid encoder frames."""

    def __call__(self, states_BFD: Tensor, read_A: Tensor | None = None) -> Tensor:
        """[B, F, D] -> [B, Q, E] with Q = positions(F).

        `read_A`: int64, flat positions in [B, Q] that anyone reads, whole clips in order; a projector may leave the others zero, and need
        not compute them. None: all are read. It may be empty: every module runs all the same, and every weight's gradient is zero.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """Input of a projector with a language gate, beside the encoder's states."""

    language_B: Tensor | None
    """int64; index of the true language, -1 where unknown; None outside training"""
    progress: float
    """share of the training steps done, for schedules"""


class Gated(NamedTuple):
    """Output of a projector with a language gate: embeddings, and the gate's logits over K languages."""

    states_BQE: Tensor
    gate_BK: Tensor


class GatedProjector(Protocol):
    """A projector that chooses by language: its Config has `GATED = True`, its forward takes a Hint and returns Gated."""

    def positions(self, frames: int) -> int:
        """Q positions for F valid encoder frames."""

    def __call__(self, states_BFD: Tensor, hint: Hint, read_A: Tensor | None = None) -> Gated:
        """[B, F, D] -> [B, Q, E] with Q = positions(F), and the gate's logits [B, K]; `read_A` as for any projector."""


class ProjectorType(Protocol):
    """A projector class: `Config` and a constructor."""

    Config: type[ProjectorConfig]

    def __call__(self, config: Any, width_in: int, width_out: int) -> Projector | GatedProjector: ...


PROJECTORS: Table[ProjectorType] = Table(
    "projector",
    {
        "gated_mlp": "speechkd.models.projectors.gated_mlp:GatedMlp",
        "linear": "speechkd.models.projectors.linear:LinearProjector",
        "mlp_stack": "speechkd.models.projectors.mlp_stack:MlpStack",
        "qformer": "speechkd.models.projectors.qformer:QFormer",
        "query_bank": "speechkd.models.projectors.query_bank:QueryBank",
        "ultravox": "speechkd.models.projectors.ultravox:UltravoxProjector",
        "windowed_qformer": "speechkd.models.projectors.windowed_qformer:WindowedQFormer",
    },
    group="speechkd.projectors",
)
