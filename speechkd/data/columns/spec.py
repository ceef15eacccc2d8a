"""Column specification: turns, provenance (teacher, prompt, tokenizer, signals) and the schema of the index."""

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
    """A teacher's answer to one question about one sample."""

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
"""(key, turn) -> signal name -> tensor as encoded by `columns.signals`."""


class ColumnSpec(Config):
    """How a column is made. Its digest is part of every receipt, so a changed spec means a different column."""

    name: str = Field(pattern=NAME_PATTERN, max_length=128)
    teacher: dict[str, Any]
    """backend, model, revision"""
    prompt: str = ""
    """the template's text"""
    tokenizer: str
    """sha256 of the tokenizer's vocabulary and rules"""
    vocab_size: int = Field(ge=1)
    """width of the teacher's output, which may be padded beyond the tokenizer's vocabulary; ids are 0 .. vocab_size - 1"""
    signals: SignalsConfig = SignalsConfig()
    """signals stored for every turn that is not an error, and their precision"""
    settings: dict[str, Any] = {}

    @property  # not cached: a changed copy of a model would carry the old one along
    def digest(self) -> str:
        """sha256 over the whole spec."""
        return digest(self.model_dump(mode="json"))

    def differs_from(self, wanted: ColumnSpec) -> list[str]:
        """Describe each setting that differs from the `wanted` spec; long values (template, tokenizer) by name only."""
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
        """The tokenizer, vocabulary and temperature that the stored log-probs of `signal` belong to."""
        temperature = getattr(getattr(self.signals, signal), "temperature", 1.0)
        return Origin(tokenizer=self.tokenizer, vocab_size=self.vocab_size, temperature=temperature)


_WORDS = {"prompt": "template", "teacher.fingerprint": "teacher.model"}


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
