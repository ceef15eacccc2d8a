"""Is the served student the exported one? The same questions go to both; where answers differ, to the export with known faults too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speechkd.data.audio.clips import RATE
from speechkd.models.exported import DistilledStudent
from speechkd.serving.alterations import alterations
from speechkd.serving.client import Said

QUESTIONS = ("What do you hear?", "Who is speaking, and in which language?")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
"""Largest difference of a log-prob that is rounding: engines sum in other orders"""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a server's answers are from a student's."""

    other_texts: int
    of: int
    logprob: float | None
    """largest difference over the tokens of answers with the same text; None: the server gives no log-probs, or no text is the same"""

    def within(self, tolerance: float) -> bool:
        """All texts are the same, and log-probs differ by rounding alone."""
        return self.other_texts == 0 and (self.logprob is None or self.logprob <= tolerance)

    def __lt__(self, other: Distance) -> bool:
        """Fewer other texts first, then smaller differences."""
        return (self.other_texts, self.logprob or 0.0) < (other.other_texts, other.logprob or 0.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `speechkd verify` found."""

    same: bool
    as_exported: Distance
    cause: str | None
    """the known fault that explains the server's answers; None where they are the same, or nothing known explains them"""
    as_cause: Distance | None
    tried: Mapping[str, Distance]


def probe_clips(seed: int = 0) -> list[np.ndarray]:
    """Four clips of 1 to 2.5 s, 16 kHz mono: gliding harmonics with noise, in bursts as syllables are. No speech, but no two alike."""
    clips = []
    for number, seconds in enumerate((1.0, 1.5, 2.0, 2.5)):
        rng = np.random.default_rng((seed, number))
        time_T = np.arange(int(seconds * RATE)) / RATE
        pitch_T = 110 * (1 + number / 3) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * time_T))
        phase_T = 2 * np.pi * np.cumsum(pitch_T) / RATE
        voice_T = sum(np.sin(k * phase_T) / k for k in range(1, 12))
        bursts_T = np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * time_T), 0, 1)
        clips.append((0.15 * voice_T * bursts_T + 0.01 * rng.standard_normal(time_T.size)).astype(np.float32))
    return clips


def judge(student: DistilledStudent, asked: Sequence[tuple[np.ndarray, str]], said: Sequence[Said], max_tokens: int, dtype: str) -> Verdict:
    """Compare a server's answers with the export's, then with the export under each known fault until one explains them.

    asked: clips (16 kHz mono) and questions. said: the server's answer to each.
    """
    tolerance = TOLERANCE[dtype]
    exported = _distance(student, asked, said, max_tokens)
    if exported.within(tolerance):
        return Verdict(True, exported, None, None, {})
    tried: dict[str, Distance] = {}
    for name, alteration in alterations(student).items():
        with alteration(student):
            tried[name] = _distance(student, asked, said, max_tokens)
        if tried[name].within(tolerance):
            return Verdict(False, exported, name, tried[name], tried)
    return Verdict(False, exported, None, None, tried)


def _distance(student: DistilledStudent, asked: Sequence[tuple[np.ndarray, str]], said: Sequence[Said], max_tokens: int) -> Distance:
    answers = [student.answers([clip], [question], [max_tokens], logprobs=1)[0] for clip, question in asked]
    others, largest = 0, None
    for mine, theirs in zip(answers, said, strict=True):
        if mine.text != theirs.text.strip():
            others += 1
        elif theirs.logprobs_N is not None and mine.logprobs_N is not None:
            count = len(mine.tokens)  # the end-of-turn token, which some servers list, is not compared
            pairs = zip(mine.logprobs_N.tolist(), theirs.logprobs_N[:count], strict=False)
            apart = max((abs(a - b) for a, b in pairs), default=0.0) if len(theirs.logprobs_N) >= count else math.inf
            largest = apart if largest is None else max(largest, apart)
    return Distance(others, len(asked), largest)
