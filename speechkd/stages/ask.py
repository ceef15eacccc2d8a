"""`speechkd ask EXPORT AUDIO QUESTION`: prints one answer of a distilled student."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speechkd.core.errors import InputError
from speechkd.core.log import say
from speechkd.data.audio.clips import RATE, decode_file, normalise
from speechkd.data.audio.limits import AudioLimits
from speechkd.data.audio.raw import Rejected
from speechkd.data.training_range import read_range, unlike
from speechkd.models.exported import load_student


def ask(export: Path, audio: Path, question: str) -> str:
    """The student's greedy answer. One line on standard error says in which ways the clip is unlike those of the training, if it is.

    Raises InputError for a file that is missing or no sound, or longer than the encoder's window, and for no question.
    """
    if not question.strip():
        raise InputError("the question is empty: speechkd ask EXPORT AUDIO QUESTION")
    samples_T = listen(audio)
    student = load_student(export)
    if samples_T.size / RATE > student.features.window_seconds:
        heard = student.features.window_seconds
        raise InputError(
            f"`{audio}` lasts {samples_T.size / RATE:.1f} s; this student's encoder hears at most {heard:g} s: cut the "
            "file into shorter ones"
        )
    if (warning := unlike(read_range(export), samples_T)) is not None:
        say(f"ask: {warning}")
    return student.answer([samples_T], [question])[0]


def listen(path: Path) -> np.ndarray:
    """A sound file as the student hears it, 16 kHz mono [T]. Raises InputError where it cannot be heard."""
    if not path.is_file():
        raise InputError(f"no such audio file `{path}` (looked in {Path.cwd()})")
    clip = decode_file(path)
    heard = clip if isinstance(clip, Rejected) else normalise(clip, AudioLimits())
    if isinstance(heard, Rejected):
        raise InputError(f"cannot hear `{path}`: {heard.reason}")
    return heard
