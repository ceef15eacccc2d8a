"""The embedded corpus: blocks are reproducible, metadata is exact, splits are apart."""

from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from speechkd.core.config import build, read_yaml
from speechkd.core.errors import InputError
from speechkd.data.audio.raw import RawClip
from speechkd.data.sources.base import Item
from speechkd.data.sources.espeak import EspeakConfig, EspeakSource

CARD = Path(__file__).parents[2] / "shards/cards/minibabel.yaml"


def _source(**changes: Any) -> EspeakSource:
    return EspeakSource(build(EspeakConfig, {**read_yaml(CARD)["source"], **changes}, "card"), CARD.parent)


def _digest(items: list[Item]) -> str:
    clips = list(_source().read(items))
    assert all(isinstance(clip, RawClip) for clip in clips)
    return hashlib.sha256(b"".join(clip.samples_TC.tobytes() for clip in clips)).hexdigest()


def _fresh(items: list[Item], times: int = 1) -> str:
    """In a fresh process, as the shard stage reads a block."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return [pool.apply(_digest, (items,)) for _ in range(times)][-1]


def test_a_block_is_the_same_in_every_fresh_process() -> None:
    items = _source().items()
    assert _fresh(items[300:320]) == _fresh(items[300:320]) != _fresh(items[301:321])


def test_a_second_read_in_one_process_is_refused() -> None:
    with pytest.raises(RuntimeError, match="fresh process"):
        _fresh(_source().items()[:2], times=2)


def test_splits_are_apart() -> None:
    """No transcript of a test split is ever trained on, no unseen voice ever heard, pre-training of the encoder included."""
    source = _source()
    texts: dict[str, set[tuple[object, object]]] = {}
    voices: dict[str, set[object]] = {}
    for item in [*source.items(), *source.reserved_items()]:
        texts.setdefault(item.split, set()).add((item.metadata["language"], item.metadata["transcript"]))
        voices.setdefault(item.split, set()).add(item.metadata["speaker"])
    tested = texts["test_known"] | texts["test_unseen"]
    assert not tested & (texts["train"] | texts["pretrain"])
    assert not voices["test_unseen"] & (voices["train"] | voices["pretrain"])
    assert voices["test_known"] <= voices["train"] and len(voices["train"] | voices["test_unseen"]) >= 40
    assert len({language for language, _ in texts["train"]}) >= 6


def test_overlapping_rates_are_refused() -> None:
    with pytest.raises(InputError, match="overlap"):
        _source(rates={"a": {"low": 100, "high": 150}, "b": {"low": 150, "high": 200}})
