"""Blocks of live teachers in a recipe, and what each kind can show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from speechkd.core.config import Config
from speechkd.core.errors import unknown_name
from speechkd.losses import LOSSES, ClipLoss, HeadLoss, LayerLoss, LossConfig
from speechkd.losses.base import LayerConfig, positions_of, teacher_of
from speechkd.models.prompt import Reading


class LiveReading(Config):
    """What a live teacher reads where the student hears: metadata `fields` as JSON or text, nothing, or another teacher's words (`column`).

    `column` names a published column of each corpus of the recipe, e.g. the student's own description of the clip before training
    (textualised audio, arXiv 2509.18579). Examples of clips that it has no whole answer for are left out.
    """

    fields: list[str] = ["transcript"]
    form: Literal["json", "text", "nothing", "column"] = "json"
    column: str = ""

    @model_validator(mode="after")
    def _named(self) -> LiveReading:
        if (self.form == "column") != bool(self.column):
            raise ValueError("`column` must be given with `form: column`, and only with it")
        return self

    @property
    def reading(self) -> Reading:
        """Of metadata; nothing for a column, whose text comes from elsewhere."""
        return Reading(fields=self.fields, form="nothing" if self.form == "column" else self.form)


class SelfConfig(Config):
    """The student's own LLM, LoRA off."""

    kind: Literal["self"] = "self"
    reads: LiveReading = LiveReading()


class SnapshotConfig(Config):
    """The student before training."""

    kind: Literal["snapshot"] = "snapshot"


class TextLlmConfig(Config):
    """`model`: a folder or hub id of a causal LM."""

    kind: Literal["text_llm"] = "text_llm"
    model: str
    reads: LiveReading = LiveReading()


class SpeechConfig(Config):
    """`model`: an export folder of a student with the same encoder, a merged one if it has LoRA; or the very speech LLM (a folder or hub
    id) that the student's encoder is of."""

    kind: Literal["speech"] = "speech"
    model: str


LiveConfig = Annotated[SelfConfig | SnapshotConfig | TextLlmConfig | SpeechConfig, Field(discriminator="kind")]

READS = frozenset({"response", "dense", "topk", "hidden"})
SHOWS: Mapping[str, frozenset[str]] = {
    "self": READS,
    "text_llm": READS,
    "snapshot": READS | {"projected"},
    "speech": READS | {"projected"},
}
"""By kind: the signals that a pass of it gives. Those that give `projected` hear the clip; the others read a text in its place."""


def check_live(name: str, config: LossConfig, live: Mapping[str, LiveConfig]) -> None:
    """Whether the live teachers that a loss names are there and can show what it looks at. Raises ValueError, one line."""
    part, teacher = LOSSES.get(config.kind), teacher_of(config)
    for key in ("teacher", "negative"):
        named = getattr(config, key, "")
        if named and named not in live:
            raise ValueError(unknown_name("live teacher", named, live, f"losses.{name}.{key}"))
    if hasattr(config, "negative") and not config.negative:
        raise ValueError(f"loss `{name}` needs a second pass: set `losses.{name}.negative` to a live teacher that reads nothing")
    lens = isinstance(config, LayerConfig) and config.lens  # stored states have neither the teacher's norm nor its head beside them
    if not teacher and ("dense" in part.NEED.signals or lens):
        raise ValueError(f"loss `{name}` needs a live teacher: set `losses.{name}.teacher` (`live` has: {', '.join(live) or 'none'})")
    if not teacher or "response" in part.NEED.signals:
        _response_rows(name, config)
    if not teacher:
        return
    kind = live[teacher].kind
    negative = getattr(config, "negative", "")
    if negative and _model(live[negative]) != _model(live[teacher]):
        raise ValueError(
            f"loss `{name}` compares two passes of one model: `losses.{name}.negative` (`{negative}`: {_said(live[negative])}) must be of "
            f"the same kind and model as `losses.{name}.teacher` (`{teacher}`: {_said(live[teacher])})"
        )
    missing = part.NEED.signals - SHOWS[kind]
    if missing:
        raise ValueError(f"loss `{name}` needs `{min(missing)}`, which live teacher `{teacher}` ({kind}) cannot show")
    if getattr(config, "attention", False) is True and kind != "speech":
        raise ValueError(
            f"loss `{name}` weighs by attention, which live teacher `{teacher}` ({kind}) cannot show: set `attention: false`, or "
            "`attention: stored` where a column has it"
        )
    if (positions_of(config) == "audio" or isinstance(part, ClipLoss)) and "projected" not in SHOWS[kind]:
        raise ValueError(
            f"loss `{name}` looks at audio, which live teacher `{teacher}` ({kind}) does not hear; kinds that do: snapshot, speech"
        )


def _response_rows(name: str, config: LossConfig) -> None:
    """Raises ValueError for a loss at audio rows whose tokens or stored signals stand at response rows."""
    if positions_of(config) == "audio" and isinstance(LOSSES.get(config.kind), (HeadLoss, LayerLoss)):
        what = "the response's tokens" if "response" in LOSSES.get(config.kind).NEED.signals else "signals stored with the example"
        raise ValueError(f"loss `{name}` cannot be at audio positions: {what} stand at response positions (losses.{name}.at)")


def column_of(config: LiveConfig) -> str:
    """The column whose answers a live teacher reads, or nothing."""
    return config.reads.column if isinstance(config, (SelfConfig, TextLlmConfig)) else ""


def _model(config: LiveConfig) -> tuple[str, str]:
    return config.kind, getattr(config, "model", "")


def _said(config: LiveConfig) -> str:
    return " ".join(part for part in _model(config) if part)
