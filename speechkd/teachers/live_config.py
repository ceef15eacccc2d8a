"""Blocks of live teachers in a recipe, and what each kind can show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from speechkd.core.config import Config
from speechkd.core.errors import unknown_name
from speechkd.losses import LossConfig
from speechkd.losses.base import LIVE_ONLY
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
HEARS = READS | {"projected", "audio"}
SHOWS: Mapping[str, frozenset[str]] = {"self": READS, "text_llm": READS, "snapshot": HEARS, "speech": HEARS | {"attention"}}
"""By kind: the signals that a pass of it gives. Those that give `audio` hear the clip; the others read a text in its place."""


def check_live(name: str, config: LossConfig, live: Mapping[str, LiveConfig]) -> None:
    """Raises ValueError (one line) where the live teachers that a loss names are missing, or cannot show what it reads."""
    for key, teacher in config.live_teachers().items():
        if teacher not in live:
            raise ValueError(unknown_name("live teacher", teacher, live, f"losses.{name}.{key}"))
    needs = config.needs()
    if needs.stored & LIVE_ONLY:
        raise ValueError(f"loss `{name}` needs a live teacher: set `losses.{name}.teacher` (`live` has: {', '.join(live) or 'none'})")
    if config.positions() == "audio" and needs.stored:
        what = "the response's tokens" if "response" in needs.stored else "signals stored with the example"
        raise ValueError(f"loss `{name}` cannot be at audio positions: {what} stand at response positions (losses.{name}.at)")
    for teacher in config.live_teachers().values():
        if missing := needs.live - SHOWS[live[teacher].kind]:
            raise ValueError(_not_shown(name, config, missing, f"live teacher `{teacher}` ({live[teacher].kind})"))
    if config.teacher_name:
        config.check_teachers(name, {teacher: _kind_and_model(block) for teacher, block in live.items()})


def _not_shown(name: str, config: LossConfig, missing: frozenset[str], teacher: str) -> str:
    """One line: what the teacher cannot show, and what can be done."""
    signal = "audio" if missing & {"audio", "projected"} else min(missing)
    able = ", ".join(kind for kind, shown in SHOWS.items() if signal in shown) or "none"
    if signal == "audio":
        return f"loss `{name}` looks at audio, which {teacher} does not hear; kinds that do: {able}"
    return f"loss `{name}` needs `{signal}`, which {teacher} cannot show; {config.WITHOUT.get(signal) or f'kinds that can: {able}'}"


def column_of(config: LiveConfig) -> str:
    """The column whose answers a live teacher reads; empty if it reads none."""
    return config.reads.column if isinstance(config, (SelfConfig, TextLlmConfig)) else ""


def _kind_and_model(config: LiveConfig) -> str:
    return config.kind if isinstance(config, (SelfConfig, SnapshotConfig)) else f"{config.kind} {config.model}"
