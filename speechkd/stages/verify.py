"""`speechkd verify URL --export DIR`: whether a server answers as an export does, and if not, which known fault explains it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from speechkd.core.errors import InputError
from speechkd.data.audio.clips import decode_bytes, encode_wav, normalise
from speechkd.data.audio.limits import AudioLimits
from speechkd.data.audio.raw import Rejected
from speechkd.models.exported import load_student, read_manifest
from speechkd.serving.client import ChatServer
from speechkd.serving.verify import QUESTIONS, Verdict, judge, probe_clips
from speechkd.stages.ask import listen

MAX_TOKENS = 24


def verify(url: str, export: Path, files: Sequence[Path], model: str | None, key_env: str | None, as_json: bool) -> int:
    """Ask the server and the export the same; print what was found. Exit code 0: the same student, 1: another.

    `files`: sound files to ask about instead of the built-in ones. Raises InputError where server, export or files cannot be used.
    """
    if key_env is not None and not os.environ.get(key_env):
        raise InputError(f"--key-env {key_env}: the environment has no such variable, or it is empty")
    dtype = read_manifest(export).student.dtype
    clips = [listen(path) for path in files] if files else probe_clips()
    wavs = [encode_wav(clip) for clip in clips]
    server = ChatServer(url, os.environ.get(key_env) if key_env else None, model)
    asked = [(wav, question) for wav in wavs for question in QUESTIONS]
    said = [server.ask(wav, question, MAX_TOKENS) for wav, question in asked]
    verdict = judge(load_student(export), [(_heard(wav), question) for wav, question in asked], said, MAX_TOKENS, dtype)
    print(json.dumps(asdict(verdict)) if as_json else _words(verdict, url, export))
    return 0 if verdict.same else 1


def _heard(wav: bytes) -> np.ndarray:
    """The clip as the server gets it: 16 bits."""
    clip = decode_bytes(wav)
    heard = clip if isinstance(clip, Rejected) else normalise(clip, AudioLimits())
    assert not isinstance(heard, Rejected), heard
    return heard


def _words(verdict: Verdict, url: str, export: Path) -> str:
    found = verdict.as_exported
    apart = "the server gives no log-probs" if found.logprob is None else f"log-probs differ by at most {found.logprob:.2g}"
    if verdict.same:
        return f"same: {url} answers as `{export}` does ({found.of} answers; {apart})"
    lines = [f"different: {found.other_texts} of {found.of} answers are others ({apart})"]
    if verdict.cause is not None:
        lines.append(f"cause: {verdict.cause}; with that, the export answers as the server does")
    else:
        nearest = min(verdict.tried, key=verdict.tried.__getitem__)
        lines.append(f"no known fault explains it; nearest: {nearest} ({verdict.tried[nearest].other_texts} answers are others)")
    return "\n".join(lines)
