"""Raw corpora of known samples, and the shards that a source block makes of them, written in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from speechkd.data.cards import list_items, load_card, open_source
from speechkd.data.reader import Reader
from speechkd.data.shards.assignment import assign_shards
from speechkd.data.shards.index import ShardSet, open_shards
from speechkd.data.shards.writer import base_receipts, publish, write_shard


def noise(seed: int, seconds: float, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """int16 [T, C]: samples that no two clips share."""
    return np.random.default_rng(seed).integers(-9000, 9000, (round(seconds * rate), channels)).astype(np.int16)


def write(path: Path, pcm_TC: np.ndarray, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, pcm_TC, rate, subtype="PCM_16")
    return path


def card_file(folder: Path, source: dict[str, Any], **changes: Any) -> Path:
    path = folder / "card.yaml"
    card = {"name": "raw", "version": "v1", "licence": "CC0-1.0", "source": source, "shard_samples": 3, "quarantine_rate": 0.9, **changes}
    path.write_text(yaml.safe_dump(card, allow_unicode=True))
    return path


def shards_of(folder: Path, source: dict[str, Any], **changes: Any) -> ShardSet:
    """What `speechkd shard` publishes, without its worker processes (tests/data/test_shard.py has those)."""
    path = card_file(folder, source, **changes)
    card = load_card(path)
    root = folder / "out" / card.version
    planned = assign_shards(card, list_items(card, open_source(card, path.parent), path.parent), root.parent)
    for number, shard_items in enumerate(planned):
        write_shard(root, card, path.parent, number, shard_items.items)
    publish(root, card, base_receipts(root, card, {number: shard_items.digest for number, shard_items in enumerate(planned)}), planned)
    shards = open_shards(root)
    assert not list(shards.verify())
    return shards


def samples(shards: ShardSet) -> dict[str, np.ndarray | None]:
    """Key -> int16 [T] as decoded from the shards."""
    reader, out = Reader(shards), {}
    for sample in shards.samples():
        audio_T = reader.audio(sample.row)
        out[sample.key] = None if audio_T is None else np.rint(audio_T * 32768).astype(np.int16)
    return out


def fields(shards: ShardSet) -> dict[str, dict[str, Any]]:
    return {sample.key: dict(sample.metadata) for sample in shards.samples()}


def same(got: dict[str, np.ndarray | None], expected: dict[str, np.ndarray]) -> None:
    """Every sample of every clip is equal, and no clip is missing or added."""
    assert sorted(got) == sorted(expected)
    for key, pcm_T in expected.items():
        found = got[key]
        assert found is not None and np.array_equal(found, pcm_T.reshape(-1)), key
