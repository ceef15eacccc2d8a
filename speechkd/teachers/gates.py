"""Quality gates: measures of each teacher answer, and thresholds that decide which answers are trained on.

Measures are computed once per column and stored beside it. Thresholds belong to the recipe and are applied when the training plan is made,
so a new threshold needs no new answers. Motivation: wong26a weighed hallucination against coverage by hand to choose its prompt, and its KD
student learned to claim "there is no audio"; refusals among the teacher's answers teach exactly that.

Coverage, contradiction and refusal are string tests: they point to answers worth reading, and they fail on unusual spellings.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pydantic import Field

from speechkd.core.config import Config
from speechkd.core.types import Metadata, Scalar
from speechkd.teachers.reasoning import STAGES, TraceError, answer_of, parse_trace

MEASURES_VERSION = 2
LANGUAGE_LETTERS = 24
"""Answers with fewer letters get no language: a single word may belong to many languages"""
COMMON_VALUES = 64
"""A field with more distinct values than this is not a class, and other values of it in an answer do not contradict it"""
NGRAM = 4

REFUSALS = (
    r"\bi(?:'m| am) (?:sorry|unable|not able)\b",
    r"\bi (?:can(?:no|')t|do(?:n't| not)|could(?:n't| not)|am not able to) (?:actually )?(?:hear|listen|access|play|process|perceive)\b",
    r"\b(?:there is|there's|i see|i have) (?:no|not any) (?:\w+ )?(?:audio|recording|sound file|clip)\b",
    r"\byou (?:have|did)(?: not|n't) \w+ (?:an?|any|the) (?:\w+ )?(?:audio|recording|clip|file)\b",
    r"\bno (?:audio|recording|sound)(?: (?:clip|file))? (?:was|is|has been|provided|attached|given|found|available)\b",
    r"\bas an? (?:ai|artificial intelligence|language model|large language model|text[- ]based)\b",
    r"\b(?:text[- ]based|language) (?:ai|model|assistant)\b",
    r"\bplease (?:provide|upload|share|attach)\b[^.]{0,30}\b(?:audio|recording|clip|file)\b",
    r"\bbased on (?:the )?(?:provided |given )?(?:json|metadata|meta-?data|text)\b",
)
_REFUSAL = re.compile("|".join(REFUSALS))


def refuses(answer: str) -> bool:
    """Whether an answer claims that there is nothing to hear, or speaks of what kind of system it is."""
    return bool(_REFUSAL.search(answer.lower().replace("’", "'")))


class AsrGate(Config):
    """Drops clips whose ASR hypothesis differs from the transcript (arXiv 2603.07025: above 10 % word error rate)."""

    hypothesis: str
    """metadata field with the ASR hypothesis"""
    reference: str = "transcript"
    max_wer: float = Field(0.1, ge=0)


class GateConfig(Config):
    """Thresholds of a recipe; unset ones drop nothing."""

    drop_refusals: bool = False
    """"I cannot hear audio", "as a language model", "based on the metadata" """
    max_contradictions: int | None = Field(None, ge=0)
    """how many wrong values of the clip's fields (e.g. another language) an answer may name; 0 drops every contradictory answer"""
    min_coverage: float | None = Field(None, ge=0, le=1)
    """share of the teacher's metadata that an open answer must name"""
    max_repetition: float | None = Field(None, ge=0, le=1)
    """share of 4-word sequences that occurred earlier in the answer"""
    min_words: int | None = Field(None, ge=0)
    max_words: int | None = Field(None, ge=1)
    languages: list[str] = []
    """allowed languages of an answer (ISO 639-1); answers too short to tell pass"""
    whole_traces: bool = False
    """drop answers that are not a complete four-stage reasoning trace"""
    asr: AsrGate | None = None

    @property
    def active(self) -> bool:
        """Whether any gate is set."""
        return self != GateConfig()


class Measures(NamedTuple):
    """Measures of one answer. NaN: nothing to measure."""

    coverage: float
    contradictions: int
    refusal: bool
    repetition: float
    words: int
    language: str
    """ISO 639-1; "" if too short to tell or not wanted"""
    trace: bool
    wer: float


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """The facts that answers are compared with."""

    fields: Sequence[str]
    """metadata fields that the teacher read"""
    classes: Mapping[str, frozenset[str]]
    """class field -> all its values, as normalised text"""
    asr: tuple[str, str] | None = None
    """names of the hypothesis and reference fields"""
    languages: bool = False
    """whether to identify the language of answers (loads a model of 5 MB)"""


def measure(facts: ReferenceFacts, text: str, metadata: Metadata, asked: str | None) -> Measures:
    """Measure one answer. `asked`: the field that the question asks for; None for an open question."""
    answer = answer_of(text)
    words = normalised(answer)
    fields = [asked] if asked is not None else [name for name in facts.fields if name in metadata]
    quoted = set() if asked is not None else _free_words(facts, metadata)  # an answer about one field quotes no free text
    shares = [share for name in fields if name in metadata and not math.isnan(share := _covered(metadata[name], words))]
    return Measures(
        coverage=sum(shares) / len(shares) if shares else math.nan,
        contradictions=sum(_contradicts(facts.classes.get(name), metadata[name], words, quoted) for name in fields if name in metadata),
        refusal=refuses(answer),
        repetition=repetition(words),
        words=len(words),
        language=language_of(answer) if facts.languages else "",
        trace=_is_trace(text),
        wer=_wer(facts.asr, metadata),
    )


def normalised(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char if char.isalnum() else " " for char in text).split()


def _covered(value: Scalar, words: Sequence[str]) -> float:
    """Share of a value's words that are among `words`; NaN for a value without words."""
    value_words = normalised(str(value))
    present = set(words)
    return sum(word in present for word in value_words) / len(value_words) if value_words else math.nan


def _free_words(facts: ReferenceFacts, metadata: Metadata) -> set[str]:
    """Words of free-text fields that the teacher read, such as a transcript. An answer that quotes them makes no claim about the clip."""
    texts = [metadata[name] for name in facts.fields if name not in facts.classes and isinstance(metadata.get(name), str)]
    return {word for text in texts for word in normalised(str(text))}


def _contradicts(values: frozenset[str] | None, true_value: Scalar, words: Sequence[str], quoted: Collection[str]) -> int:
    """Number of wrong values of a field in an answer that does not name the true one; `quoted` words do not count."""
    if not values:
        return 0
    true_text = " ".join(normalised(str(true_value)))
    if f" {true_text} " in f" {' '.join(words)} ":
        return 0
    line = f" {' '.join('' if word in quoted else word for word in words)} "
    return sum(f" {value} " in line for value in values if value != true_text)


def repetition(words: Sequence[str]) -> float:
    """Share of the 4-word sequences that occurred before; 0 for fewer than five words."""
    runs = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    return 1.0 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0


def language_of(text: str) -> str:
    """ISO 639-1 code, or "" for a text that is too short to tell."""
    if sum(char.isalpha() for char in text) < LANGUAGE_LETTERS:
        return ""
    from py3langid import classify  # loads its model on the first call

    return str(classify(text)[0])


@lru_cache(maxsize=1)
def known_languages() -> frozenset[str]:
    """The codes that `language_of` can give."""
    from py3langid import rank

    return frozenset(str(code) for code, _ in rank("a"))


def _is_trace(text: str) -> bool:
    if f"<{STAGES[0]}>" not in text.upper():
        return False
    try:
        parse_trace(text)
    except TraceError:
        return False
    return True


def _wer(fields: tuple[str, str] | None, metadata: Metadata) -> float:
    """Word error rate of the ASR hypothesis; NaN if hypothesis or transcript is missing."""
    if fields is None or not all(name in metadata for name in fields):
        return math.nan
    import jiwer

    hypothesis, reference = (normalised(str(metadata[name])) for name in fields)
    if not reference:
        return 0.0 if not hypothesis else 1.0
    return float(jiwer.wer(" ".join(reference), " ".join(hypothesis)))


def dropped(config: GateConfig, table: Mapping[str, np.ndarray], open_N: np.ndarray) -> dict[str, np.ndarray]:
    """For each gate that is set: reason -> boolean [N], True for answers to drop.

    `table`: arrays [N], named as in Measures; `open_N`: True for open questions. NaN (nothing to measure) passes every gate except `asr`,
    which drops clips without a hypothesis.
    """
    out: dict[str, np.ndarray] = {}
    if config.drop_refusals:
        out["refusal"] = table["refusal"].astype(bool)
    if config.max_contradictions is not None:
        out["contradiction"] = table["contradictions"] > config.max_contradictions
    if config.min_coverage is not None:
        out["coverage"] = open_N & (table["coverage"] < config.min_coverage)
    if config.max_repetition is not None:
        out["repetition"] = table["repetition"] > config.max_repetition
    if config.min_words is not None:
        out["too short"] = table["words"] < config.min_words
    if config.max_words is not None:
        out["too long"] = table["words"] > config.max_words
    if config.languages:
        out["language"] = ~np.isin(table["language"].astype(str), ["", *config.languages])
    if config.whole_traces:
        out["no whole trace"] = ~table["trace"].astype(bool)
    if config.asr is not None:
        out["asr"] = ~(table["wer"] <= config.asr.max_wer)
    return out
