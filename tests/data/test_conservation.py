"""Nothing is lost and nothing is mixed up: what any list names is stored, quarantined or counted, and every clip has its own text."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from speechkd.data.audio.clips import normalise
from speechkd.data.audio.limits import AudioLimits
from speechkd.data.audio.raw import Rejected
from speechkd.data.cards import Card, list_corpus, open_source
from speechkd.data.sources.guarded import read_guarded
from tests.data.hostile_corpora import LAYOUTS, make
from tests.data.hostile_plan import FRAMES, Corpus
from tests.data.raw import samples, shards_of

EVERYDAY, TORTURE = 3, 2000


def number_in(text: str) -> int:
    """The number that a text carries at both ends, as it was written: `<3 ... 3>`."""
    first, last = text.strip().lstrip("<").split()[0], text.strip().rstrip(">").split()[-1]
    assert first == last or "/a/<" in text, text
    return int(text.rpartition("<")[2].removesuffix(">.wav")) if "/a/<" in text else int(first)


def account(corpus: Corpus, folder: Path) -> tuple[int, int, int]:
    """(stored, quarantined, counted) of a corpus; fails where a thing is in none of them, or a clip has another's text."""
    silent = True if corpus.textless else None
    card = Card(name="raw", version="v1", licence="x", source=corpus.source, joins=corpus.joins, unmatched_rate=1.0, text_only=silent)
    source = open_source(card, folder)
    found = list_corpus(card, source, folder)
    stored: Counter[int] = Counter()
    unread: Counter[int] = Counter()
    texts: dict[int, str] = {}
    gone = 0
    for item, raw in zip(found.items, read_guarded(source, found.items), strict=True):
        heard = raw if raw is None or isinstance(raw, Rejected) else normalise(raw, AudioLimits())
        text = next((str(item.metadata[name]) for name in ("text", "answer") if name in item.metadata), None)
        speaker = item.metadata.get("speaker")
        if isinstance(heard, Rejected):
            gone += 1
            assert heard.reason and not heard.reason.startswith("cannot be read: "), heard
        elif heard is None:
            unread[number_in(text) if text else int(str(speaker)[1:])] += 1
        else:
            number = len(heard) - FRAMES
            stored[number] += 1
            assert text is None or text == corpus.texts.get(number), f"clip {number} has the text {text!r}"
            assert speaker in (None, f"s{number}"), f"clip {number} is said to be of {speaker}"
            assert (speaker is not None) == (number in corpus.speakers)
        if text is not None:
            texts[number_in(text)] = text
    assert stored == Counter(corpus.items - corpus.lost - corpus.textless) and unread == Counter(corpus.textless)
    assert gone == len(corpus.lost) and len(found.items) == len(corpus.items)
    assert texts == corpus.texts, "no text is lost, altered or added"
    assert sum(entry.count for entry in found.unmatched if entry.without_audio) == len(corpus.textless)
    wanted = {**corpus.strays, **corpus.lacking}
    others = (entry for entry in found.unmatched if not entry.without_audio or any(words in entry.what for words in wanted))
    said = [(entry.what, entry.count) for entry in others]
    for words, numbers in wanted.items():
        assert [count for what, count in said if words in what] == [len(numbers)] * bool(numbers), (words, numbers, said)
    assert len(said) == sum(map(bool, wanted.values())), said
    return stored.total() + unread.total(), gone, sum(map(len, corpus.strays.values()))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_any_list_names_is_stored_quarantined_or_counted(kind: str) -> None:
    for seed in range(1 if kind == "spoken" else EVERYDAY):
        with tempfile.TemporaryDirectory() as folder:
            account_of(kind, seed, Path(folder))


@pytest.mark.torture
@pytest.mark.parametrize("kind", LAYOUTS)
def test_it_is_in_many_corpora(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    total = np.zeros(3, int)
    corpora = -(-TORTURE // len(LAYOUTS))
    for seed in range(corpora):
        with tempfile.TemporaryDirectory() as folder:
            total += account_of(kind, seed, Path(folder))
    with capsys.disabled():
        print(f"\n{kind}: {corpora} corpora, {total[0]} stored, {total[1]} quarantined, {total[2]} counted")


@pytest.mark.torture
@pytest.mark.parametrize("kind", [kind for kind in LAYOUTS if kind != "spoken"])
def test_published_shards_hold_what_was_counted(kind: str, tmp_path: Path) -> None:
    """The same through the files: what the tars hold and quarantine.jsonl names, read back by the reader."""
    for seed in range(5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        corpus = make(kind, seed, folder)
        shards = shards_of(folder, corpus.source, joins=corpus.joins, unmatched_rate=1.0, quarantine_rate=1.0, text_only=True)
        heard = {key: pcm for key, pcm in samples(shards).items() if pcm is not None}
        assert Counter(len(pcm) - FRAMES for pcm in heard.values()) == Counter(corpus.items - corpus.lost - corpus.textless)
        for sample in shards.samples():
            text = next((str(sample.metadata[name]) for name in ("text", "answer") if name in sample.metadata), None)
            if sample.key in heard and text is not None:
                assert corpus.texts[len(heard[sample.key]) - FRAMES] == text
        lines = (shards.root / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(corpus.lost)


def account_of(kind: str, seed: int, folder: Path) -> tuple[int, int, int]:
    try:
        return account(make(kind, seed, folder), folder)
    except Exception as error:
        raise AssertionError(f"{kind}, seed {seed}: {error}") from error
