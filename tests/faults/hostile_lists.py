"""Hostile lists and cards, and what shards a corpus with one bad row."""

from __future__ import annotations

import json
from pathlib import Path

from speechkd.data.shards.index import open_shards
from speechkd.stages.shard import shard
from tests.data.corpus import write_card
from tests.faults.hostile_clips import PICKLE

LINES = {
    "pickle": "b'" + PICKLE.hex() + "'",
    "deep": "[" * 100_000,
    "nan": '{"id": "a", "x": NaN}',
    "huge number": '{"id": "a", "x": 1' + "0" * 5000 + "}",
    "dotted key": '{"id": "a.b"}',
    "slashed key": '{"id": "../../a"}',
    "empty key": '{"id": ""}',
    "long key": '{"id": "' + "k" * 1000 + '"}',
    "same key twice": '{"id": "a"}\n{"id": "a"}',
    "no object": "[1, 2]",
    "no UTF-8": "\udcff\udcfe",
    "key of another kind": '{"id": {"a": 1}}',
    "a split that is a path": '{"id": "a", "part": "../../x"}',
}
"""Whole lists"""

CARDS = {
    "python object": "!!python/object/apply:os.system ['touch executed']",
    "python module": "name: !!python/module:os\n",
    "unknown tag": "name: !evil x\n",
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join('*' + chr(97 + n) for _ in range(9))}]\n" for n in range(9)),
    "deep": "[" * 5000,
    "key twice": "name: a\nname: b\n",
    "binary": "name: !!binary aGVsbG8=\n",
    "path as name": "name: ../../x\nversion: v1\nlicence: x\nsource: {kind: jsonl}\n",
    "path as earlier version": "name: x\nversion: v1\ngrows: ../y\nlicence: x\nsource: {kind: jsonl}\n",
    "source outside": "name: x\nversion: v1\nlicence: x\nsource: {kind: jsonl, file: ../../../etc/passwd, root: .}\n",
}
"""Whole cards"""


def use_clip(folder: Path, name: str) -> list[str]:
    return use_rows(folder, json.dumps({"id": "a", "audio": name}) + "\n")


def use_rows(folder: Path, text: str) -> list[str]:
    """Shard a corpus with a good and a hostile row; the quarantine's reasons."""
    card = write_card(folder, [{"part": ""}] if '"part"' in text else [], quarantine_rate=1.0, fields={})
    (folder / "rows.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    root = Path(str(shard(card, folder / "out", workers=1, quiet=True)))
    reasons = [json.loads(line)["reason"] for line in (root / "quarantine.jsonl").read_text().splitlines()]
    assert reasons or len(open_shards(root)), "neither stored nor rejected"
    return reasons or [f"stored {len(open_shards(root))} samples: {open_shards(root).samples()[0].seconds} s"]


def use_card(folder: Path, text: str) -> list[str]:
    (folder / "card.yaml").write_text(text, encoding="utf-8")
    shard(folder / "card.yaml", folder / "out", workers=1, quiet=True)
    return []


def use_kaldi(folder: Path, line: str) -> list[str]:
    (folder / "wav.scp").write_text(line)
    card = write_card(folder, [], quarantine_rate=1.0, fields={}, source={"kind": "kaldi", "dir": "."})
    root = shard(card, folder / "out", workers=1, quiet=True)
    return [json.loads(line)["reason"] for line in (root / "quarantine.jsonl").read_text().splitlines()]


KALDI = ["utt touch executed |", "utt | touch executed", "utt -", "utt ../../../etc/passwd", "utt ark:/etc/passwd:10"]
