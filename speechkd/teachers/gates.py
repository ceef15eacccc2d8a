"""Quality gates: what is measured of each answer, and which answers a recipe's thresholds keep.

Measures are facts of a column and its base and are stored once beside it; thresholds belong to the recipe and act when the plan is made, so
that another threshold asks no teacher again. wong26a chose its prompt by weighing hallucination against coverage by hand, and its KD
student learned to claim that "there is no audio": refusals in the teacher's answers are where that begins.

Coverage, contradiction and refusal are string tests, not understanding: they find what to look at, and err on strange spellings.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import Field

from speechkd.core.config import Config
from speechkd.core.types import Metadata, Scalar
from speechkd.teachers.reasoning import STAGES, TraceError, answer_of, parse_trace

MEASURES_VERSION = 2
LANGUAGE_LETTERS = 24
"""Letters below which the language of an answer is not judged: one word is a word of many languages"""
COMMON_VALUES = 64
"""A field with more different values than this is no class: another value in an answer is then no contradiction"""
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


class AsrGate(Config):
    """Drops clips that a recogniser reads differently than their transcript says (language-aware KD: above 10 % word errors)."""

    hypothesis: str
    """metadata field with the recogniser's text"""
    reference: str = "transcript"
    max_wer: float = Field(0.1, ge=0)


class GateConfig(Config):
    """Thresholds of a recipe; whatever is not set drops nothing."""

    drop_refusals: bool = False
    """"I cannot hear audio", "as a language model", "based on the metadata" """
    max_contradictions: int | None = Field(None, ge=0)
    """other values of a field than the clip's own, e.g. another language; 0 drops every contradictory answer"""
    min_coverage: float | None = Field(None, ge=0, le=1)
    """share of the metadata that the teacher read which an open answer must name"""
    max_repetition: float | None = Field(None, ge=0, le=1)
    """share of 4-word sequences that were there before"""
    min_words: int | None = Field(None, ge=0)
    max_words: int | None = Field(None, ge=1)
    languages: list[str] = []
    """ISO 639-1 codes in which an answer may be; too short ones pass"""
    whole_traces: bool = False
    """drop answers that are not a whole four-stage trace"""
    asr: AsrGate | None = None

    @property
    def active(self) -> bool:
        """Whether anything can be dropped."""
        return self != GateConfig()


class Measures(NamedTuple):
    """What is known of one answer. NaN: there was nothing to measure."""

    coverage: float
    contradictions: int
    refusal: bool
    repetition: float
    words: int
    language: str
    """ISO 639-1, "" where too short to tell, or not asked for"""
    trace: bool
    wer: float


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """What answers are measured against."""

    fields: Sequence[str]
    """metadata that the teacher read"""
    classes: Mapping[str, frozenset[str]]
    """field -> all its values, as normalised text, for fields that are classes"""
    asr: tuple[str, str] | None = None
    """hypothesis and reference field"""
    languages: bool = False
    """whether the language of answers is told, which takes a model of 5 MB"""


def measure(facts: ReferenceFacts, text: str, metadata: Metadata, asked: str | None) -> Measures:
    """Measure one answer. `asked`: the field that the question is about, None for an open one."""
    answer = answer_of(text)
    words = normalised(answer)
    fields = [asked] if asked is not None else [name for name in facts.fields if name in metadata]
    said = set() if asked is not None else _free_words(facts, metadata)  # an answer to one field's question quotes nothing
    shares = [share for name in fields if name in metadata and not math.isnan(share := _covered(metadata[name], words))]
    return Measures(
        coverage=sum(shares) / len(shares) if shares else math.nan,
        contradictions=sum(_contradicts(facts.classes.get(name), metadata[name], words, said) for name in fields if name in metadata),
        refusal=bool(_REFUSAL.search(answer.lower().replace("’", "'"))),
        repetition=repetition(words),
        words=len(words),
        language=language_of(answer) if facts.languages else "",
        trace=_is_trace(text),
        wer=_wer(facts.asr, metadata),
    )


def normalised(text: str) -> list[str]:
    """Words in lower case, without signs."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(sign if sign.isalnum() else " " for sign in text).split()


def _covered(value: Scalar, words: Sequence[str]) -> float:
    """Share of a value's words that are among `words`; NaN for a value without any."""
    wanted = normalised(str(value))
    present = set(words)
    return sum(word in present for word in wanted) / len(wanted) if wanted else math.nan


def _free_words(facts: ReferenceFacts, metadata: Metadata) -> set[str]:
    """Words of the texts that the teacher read, such as a transcript: an answer that quotes them claims nothing of the clip."""
    texts = [metadata[name] for name in facts.fields if name not in facts.classes and isinstance(metadata.get(name), str)]
    return {word for text in texts for word in normalised(str(text))}


def _contradicts(values: frozenset[str] | None, own: Scalar, words: Sequence[str], said: Collection[str]) -> int:
    """How many other values of the field stand in an answer that does not name the clip's own; words that are `said` do not count."""
    if not values:
        return 0
    mine = " ".join(normalised(str(own)))
    if f" {mine} " in f" {' '.join(words)} ":
        return 0
    line = f" {' '.join('' if word in said else word for word in words)} "
    return sum(f" {value} " in line for value in values if value != mine)


def repetition(words: Sequence[str]) -> float:
    """Share of the 4-word sequences that occurred before; 0 for fewer than five words."""
    runs = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    return 1.0 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0


def language_of(text: str) -> str:
    """ISO 639-1 code, or "" for a text that is too short to tell."""
    if sum(sign.isalpha() for sign in text) < LANGUAGE_LETTERS:
        return ""
    from py3langid import classify  # loads its model when first asked

    return str(classify(text)[0])


def _is_trace(text: str) -> bool:
    if f"<{STAGES[0]}>" not in text.upper():
        return False
    try:
        parse_trace(text)
    except TraceError:
        return False
    return True


def _wer(fields: tuple[str, str] | None, metadata: Metadata) -> float:
    """Word errors of the recogniser's text per word of the transcript; NaN where one of them is not there."""
    if fields is None or not all(name in metadata for name in fields):
        return math.nan
    import jiwer

    hypothesis, reference = (normalised(str(metadata[name])) for name in fields)
    if not reference:
        return 0.0 if not hypothesis else 1.0
    return float(jiwer.wer(" ".join(reference), " ".join(hypothesis)))


def dropped(config: GateConfig, table: Mapping[str, np.ndarray], open_N: np.ndarray) -> dict[str, np.ndarray]:
    """Reason -> boolean [N], for each gate that is set. `table`: arrays [N] by the names of Measures; `open_N`: open questions.

    A NaN (nothing to measure) passes every gate but `asr`, which drops a clip that has no recognised text.
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
