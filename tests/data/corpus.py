"""Small real corpora: WAV and FLAC files with a JSON-lines list, and a column to stand beside their shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml

from speechkd.data.column_writer import ColumnWriter
from speechkd.data.columns.column import Column
from speechkd.data.columns.signals import HiddenStore, SignalsConfig
from speechkd.data.columns.spec import ColumnSpec, Turn
from speechkd.data.shards.index import ShardSet

Rows = list[dict[str, Any]]


def tone(seconds: float, rate: int, hertz: float, channels: int = 1) -> np.ndarray:
    """float32 [T, C]."""
    wave_T = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave_T[:, None], channels, axis=1).astype(np.float32)


def write_card(folder: Path, rows: Rows, **changes: Any) -> Path:
    """A card whose rows are listed in rows.jsonl; audio lies in `clips`."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stated = {"split_field": "part"} if any("part" in row for row in rows) else {}
    card: dict[str, Any] = {
        "name": "tones",
        "version": "v1",
        "licence": "CC0-1.0",
        "source": {"kind": "jsonl", "file": "rows.jsonl", "root": "clips", "key_field": "id", **stated},
        "fields": {"instrument": "speaker"},
        "shard_samples": 4,
        "text_only": True,
        **changes,
    }
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def write_tones(folder: Path, count: int = 10) -> Rows:
    """`count` rows, WAV and FLAC, two rates, one and two channels; the last is text only."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows: Rows = []
    for i in range(count - 1):
        rate, suffix = (16_000, "flac") if i % 2 else (22_050, "wav")
        name = f"{i}.{suffix}"
        soundfile.write(folder / "clips" / name, tone(0.1 + 0.05 * i, rate, 200 + 40 * i, 1 + i % 2), rate, subtype="PCM_16")
        part = "test" if i % 5 == 0 else "train"
        rows.append({"id": f"c{i:02d}", "part": part, "audio": name, "instrument": f"organ{i % 3}", "hertz": 200 + 40 * i})
    rows.append({"id": "text", "part": "train", "instrument": "none", "hertz": 0.5, "mute": True, "tags": ["not", "scalar"]})
    return rows


STATES = SignalsConfig(hidden=HiddenStore(layers=[1], dtype="float32"))
ECHO = ColumnSpec(name="echo", teacher={"backend": "test"}, prompt="{{ q }}", tokenizer="0" * 64, vocab_size=500, signals=STATES)


def echo_turns(key: str, number: int) -> list[Turn]:
    """One or two turns, by number."""
    turns = [Turn("open-0", "What is it?", f"it is {key}", [7, number, 2], 20 + number, "eos")]
    if number % 2:
        turns.append(Turn("task-rate", "How fast?", "fast", [9] * (1 + number), 30, "length"))
    return turns


def write_echo(shards: ShardSet, order: Callable[[list[int]], list[int]] = list) -> Column:
    """The column `echo`; one sample (number 3) has no turns; every turn has states that say its sample's row."""
    writer = ColumnWriter(shards, ECHO)
    for number in order(writer.missing()):
        samples = [sample for sample in shards.samples(shard=number) if sample.row != 3]
        turns = {sample.key: echo_turns(sample.key, sample.row) for sample in samples}
        signals = {
            (sample.key, turn.turn): {"hidden": torch.full((len(turn.tokens), 1, 2), float(sample.row))}
            for sample in samples
            for turn in turns[sample.key]
        }
        writer.write_shard(number, turns, signals)
    return writer.publish()
