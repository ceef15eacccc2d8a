"""What a column is: its turns, what it was made from and with, and the rows of its index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import pyarrow as pa
from pydantic import Field

from speechkd.core.config import NAME_PATTERN, Config, differences
from speechkd.core.files import digest
from speechkd.core.types import Origin
from speechkd.data.columns.signals import SignalsConfig

if TYPE_CHECKING:
    from torch import Tensor

Stop = Literal["eos", "length", "error"]
STOPS: tuple[str, ...] = get_args(Stop)
SPEC = "spec.json"

COLUMN_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("turn", pa.string()),
        ("row", pa.int64()),
        ("position", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("tokens", pa.int32()),
        ("stop", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.binary(32)),
        ("signals_offset", pa.int64()),
        ("signals_bytes", pa.int64()),
        ("signals_sha256", pa.binary(32)),
    ]
)
"""One row per example. `row`: sample within the base shard; `position`: index in the member's list of turns."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one sample as a teacher answered it."""

    turn: str
    question: str
    text: str
    tokens: list[int]
    """response ids; the last is the end-of-turn token where `stop` is "eos" """
    prompt_tokens: int
    """length of the teacher's prompt"""
    stop: Stop
    reason: str = ""
    """why, where `stop` is "error" """


TurnSignals: TypeAlias = Mapping[tuple[str, str], Mapping[str, "Tensor"]]
"""By (key, turn) and signal: tensors as `columns.signals` encodes them."""


class ColumnSpec(Config):
    """What a column is made with. Its digest is part of every receipt: another spec is another column."""

    name: str = Field(pattern=NAME_PATTERN, max_length=128)
    teacher: dict[str, Any]
    """backend, model, revision"""
    prompt: str = ""
    """the template's text"""
    tokenizer: str
    """sha256 of the tokenizer's vocabulary and rules"""
    vocab_size: int = Field(ge=1)
    """ids are 0 .. vocab_size - 1: the width of the teacher's output, which may be padded beyond the tokenizer's"""
    signals: SignalsConfig = SignalsConfig()
    """what every finished or cut turn has beside its response, and in which precision"""
    settings: dict[str, Any] = {}

    @property  # not cached: a changed copy of a model would carry the old one along
    def digest(self) -> str:
        """sha256 over the whole spec."""
        return digest(self.model_dump(mode="json"))

    def differs_from(self, wanted: ColumnSpec) -> list[str]:
        """Each setting in which this column is not the `wanted` one, in words; long ones (template, tokenizer) by name only."""
        mine, other = (spec.model_dump(mode="json", exclude={"name"}) for spec in (self, wanted))
        out = []
        for key, have, want in sorted(differences(mine, other), key=lambda difference: difference[0]):
            if isinstance(have, Mapping) or isinstance(want, Mapping):
                out.append(f"no `{key}`" if have is None else f"`{key}`, which the recipe does not have")
            elif isinstance(have, str) or isinstance(want, str) or isinstance(have, list):
                out.append(f"another `{_WORDS.get(key, key)}`")
            else:
                out.append(f"`{key}` {_shown(have)}, the recipe has {_shown(want)}")
        return out

    def origin(self, signal: str) -> Origin:
        """What the stored log-probs of `signal` are bound to."""
        temperature = getattr(getattr(self.signals, signal), "temperature", 1.0)
        return Origin(tokenizer=self.tokenizer, vocab_size=self.vocab_size, temperature=temperature)


_WORDS = {"prompt": "template", "teacher.fingerprint": "teacher.model"}


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
