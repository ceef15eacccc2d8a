"""The audio that every loader reads: speech-like 16 kHz clips as WAV files, and lengths as corpora have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import yaml

RATE = 16_000


def clip(seconds: float, seed: int) -> np.ndarray:
    """A voiced, modulated sound with noise, int16 [T]; its FLAC has about 60 % of its bytes, as speech has."""
    draw = np.random.default_rng(seed)
    time_T = np.arange(round(seconds * RATE)) / RATE
    pitch_T = 90 + 120 * draw.random() + 25 * np.sin(2 * np.pi * 1.5 * time_T)
    phase_T = 2 * np.pi * np.cumsum(pitch_T) / RATE
    voice_T = sum(np.sin(k * phase_T) / k for k in range(1, 12)) * (0.5 + 0.5 * np.sin(2 * np.pi * 3.5 * time_T)) ** 2
    return np.rint((0.08 * voice_T + 0.004 * draw.standard_normal(len(time_T))) * 32767).clip(-32768, 32767).astype(np.int16)


def write_clips(folder: Path, count: int, seconds: float) -> list[Path]:
    """`count` WAV files of one length, and a card of them for speechkd."""
    (folder / "wav").mkdir(parents=True)
    paths = [folder / "wav" / f"{i:06d}.wav" for i in range(count)]
    some = [clip(seconds, seed) for seed in range(32)]
    for i, path in enumerate(paths):
        soundfile.write(path, np.roll(some[i % 32], 37 * i), RATE, subtype="PCM_16")
    rows = [{"id": path.stem, "part": "train", "audio": path.name, "transcript": "some words"} for path in paths]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = {
        "name": "bench",
        "version": "v1",
        "licence": "CC0-1.0",
        "source": {"kind": "jsonl", "file": "rows.jsonl", "root": "wav", "key_field": "id", "split_field": "part"},
        "shard_samples": -(-count // 8),
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return paths


def mixed_lengths(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(seconds [N], response tokens [N]): short commands, read sentences around 12 s, and talks of up to 30 s; answers short and long."""
    draw = np.random.default_rng(seed)
    kind_N = draw.random(count)
    sentences_N = np.where(kind_N < 0.8, draw.normal(12, 4, count), draw.uniform(0.5, 30, count))
    seconds_N = np.where(kind_N < 0.4, draw.gamma(2, 1.2, count) + 0.5, sentences_N).clip(0.3, 30)
    tokens_N = (seconds_N * draw.uniform(2, 5, count) + draw.exponential(15, count)).clip(2, 400)
    return np.round(seconds_N, 3), np.where(draw.random(count) < 0.3, draw.integers(2, 6, count), tokens_N).astype(np.int64)
