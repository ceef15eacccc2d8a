"""Leaves out, before any weights load, the examples that a model or the plan has no room for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from speechkd.core.errors import InputError
from speechkd.data.plan.plan import PlanConfig, PlanSource
from speechkd.models.architectures import meta_encoder
from speechkd.models.collate import Row
from speechkd.models.encoder_families import SAMPLE_RATE, hearing
from speechkd.models.model_folder import config_home
from speechkd.models.projectors import PROJECTORS
from speechkd.models.student_config import StudentConfig

SLACK = 16
"""Tokens by which a student's prompt may be longer than the teacher's, which has text in place of the clip"""


def audio_positions(student: StudentConfig) -> Callable[[float], int]:
    """A function from the seconds of a clip to its positions in the student, from configuration files alone."""
    heard = hearing(meta_encoder(config_home(student.encoder, student.config_root)))
    with torch.device("meta"):
        projector: Any = PROJECTORS.get(student.projector.kind)(student.projector, 8, 8)
    return lambda seconds: int(projector.positions(heard.frames(round(seconds * SAMPLE_RATE)))) if seconds > 0 else 0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Examples of one stream that do not fit, with the longest of them as an example."""

    count: int = 0
    of: int = 0
    reason: str = ""

    def line(self) -> str:
        """One line for the user."""
        return f"{self.count:,} of {self.of:,} examples are left out as too long: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the models of a stream and its plan have room for. `None`: no limit."""

    plan: PlanConfig
    student: int | None
    """positions of the student's language model"""
    llm: str
    readers: dict[str, int | None]
    """by live teacher that reads, positions of its model"""
    positions: Callable[[float], int]
    """seconds of a clip -> its positions in the student"""

    def fitting(
        self, source: PlanSource, prompt_N: np.ndarray, reads_N: np.ndarray, row_of: Callable[[int], Row], key_of: Callable[[int], str]
    ) -> tuple[PlanSource, LeftOut]:
        """The examples of `source` that fit, and what is left out. Raises InputError if none fits.

        `prompt_N`: tokens of the teacher's prompt; `reads_N`: most tokens that the clip's own text can add to a prompt. Only examples that
        could be too long by these are read (`row_of`, whose clip is not needed) and counted exactly.
        """
        tokens_N = np.asarray(source.tokens_N, dtype=np.int64)
        fits_N, worst = tokens_N <= self.plan.max_tokens, (0, "")
        if not fits_N.all():
            longest = int(tokens_N.argmax())
            why = f"the answer to `{key_of(source.row(longest))}` has {tokens_N[longest]:,} tokens, a micro-batch {self.plan.max_tokens:,}"
            worst = (int(tokens_N[longest]), f"{why} (plan.max_tokens)")
        limits = [limit for limit in (self.student, *self.readers.values()) if limit is not None]
        if limits:
            hundredths_N = np.ceil(np.asarray(source.seconds_N, dtype=np.float64) * 100)
            distinct, inverse_N = np.unique(hundredths_N, return_inverse=True)
            audio_N = np.array([self.positions(float(value) / 100) for value in distinct], dtype=np.int64)[inverse_N]
            most_N = prompt_N + reads_N + SLACK + audio_N + tokens_N
            for number in np.flatnonzero(fits_N & (most_N > min(limits))).tolist():
                needs = self._too_long(row_of(source.row(number)), float(source.seconds_N[number]))
                if needs is not None:
                    fits_N[number] = False
                    worst = max(worst, (needs[0], f"`{key_of(source.row(number))}` needs {needs[1]}"))
        if fits_N.all():
            return source, LeftOut()
        left = LeftOut(int((~fits_N).sum()), len(fits_N), worst[1])
        if not fits_N.any():
            raise InputError(
                f"stream `{source.stream}`: {left.line()}; shorten answers or clips, raise plan.max_tokens, or take another model"
            )
        row_N = np.arange(len(source)) if source.row_N is None else np.asarray(source.row_N)
        keep_X = np.zeros(int(row_N.max()) + 1, dtype=bool)
        keep_X[row_N[fits_N]] = True
        return source.keep(keep_X), left

    def _too_long(self, row: Row, seconds: float) -> tuple[int, str] | None:
        """(positions, in words) where an example is longer than a model; None if it fits."""
        audio = self.positions(seconds)
        needs = len(row.before) + audio + len(row.after) + len(row.response)
        if self.student is not None and needs > self.student:
            return (
                needs,
                f"{needs:,} positions ({len(row.response):,} of its answer, {audio:,} of its clip), `{self.llm}` has {self.student:,}",
            )
        for name, ids in row.reads.items():
            limit, needs = self.readers.get(name), len(ids) + len(row.response)
            if limit is not None and needs > limit:
                return needs, f"{needs:,} positions of live teacher `{name}`, which has {limit:,}"
        return None
