"""Columns beside shards: what is written comes back, is bound to its base, and continues after a kill."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from speechkd.core.errors import DataError, InputError
from speechkd.core.types import TeacherSignals
from speechkd.data.column_writer import ColumnWriter
from speechkd.data.columns.signals import SignalsConfig, TopKStore
from speechkd.data.columns.spec import Turn
from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.stages.shard import shard
from tests.data.corpus import ECHO, echo_turns, write_card, write_echo, write_tones


def test_turns_and_tensors_come_back(tones_root: Path) -> None:
    shards = open_shards(tones_root)
    column = shards.column("echo")
    reader = Reader(shards, column)
    expected = [(s.key, turn, s.row) for s in shards.samples() if s.row != 3 for turn in echo_turns(s.key, s.row)]
    table = column.table
    assert len(column) == len(table) == len(expected) and column.spec == ECHO
    assert table["key"].to_pylist() == [key for key, _, _ in expected]
    assert table["tokens"].to_pylist() == [len(turn.tokens) for _, turn, _ in expected]
    for row, (key, turn, sample) in enumerate(expected):
        assert column.read(row) == turn
        example = reader.read(row)
        assert (example.key, example.turn, example.question) == (key, turn.turn, turn.question)
        assert (example.tokens, example.stop) == (turn.tokens, turn.stop)
        assert (example.samples_T is None) == (key == "text")
        assert dict(example.signals.items()).keys() == {"hidden_TLE"}
        assert Reader(shards, column, frozenset()).read(row).signals == TeacherSignals()
        assert torch.equal(example.signals.hidden_TLE, torch.full((len(turn.tokens), 1, 2), float(sample)))
    with tarfile.open(column.root / "000000.tar") as tar:
        assert tar.getnames() == [f"c0{i}.{suffix}" for i in range(3) for suffix in ("response.json", "signals.safetensors")]


def test_a_column_is_continued_in_any_order_with_the_same_bytes(copied: Path) -> None:
    shards = open_shards(copied)
    folder = copied / "columns/echo"
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert ColumnWriter(shards, ECHO).missing() == []
    for name in ("manifest.json", "index.parquet", "000001.tar", "receipts/000002.json"):
        (folder / name).unlink()
    (folder / ".000001.tar.x.tmp").touch()
    assert shards.column_names() == []
    assert ColumnWriter(shards, ECHO).missing() == [1, 2]
    with pytest.raises(ValueError, match="2 of 3 shards are missing"):
        ColumnWriter(shards, ECHO).publish()
    write_echo(shards, lambda missing: missing[::-1])
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_another_spec_or_base_is_refused(copied: Path, tmp_path: Path) -> None:
    shards = open_shards(copied)
    with pytest.raises(InputError, match="made with another `template`; `vocab_size` 500, the recipe has 9: choose another name"):
        ColumnWriter(shards, ECHO.model_copy(update={"prompt": "other", "vocab_size": 9}))
    other = open_shards(shard(write_card(tmp_path, write_tones(tmp_path), version="v2"), tmp_path / "out", quiet=True))
    shutil.copytree(copied / "columns", other.root / "columns")
    with pytest.raises(InputError, match="belongs to base"):
        other.column("echo")
    with pytest.raises(InputError, match="belongs to base"):
        ColumnWriter(other, ECHO)
    with pytest.raises(InputError, match="belongs to other shards"):
        Reader(other, shards.column("echo"))


def test_what_cannot_be_stored_is_refused(copied: Path) -> None:
    writer = ColumnWriter(open_shards(copied), ECHO.model_copy(update={"name": "fresh"}))
    turn = Turn("a", "q", "t", [1], 3, "eos")
    with pytest.raises(ValueError, match="`c05` is not a key of this shard"):
        writer.write_shard(0, {"c05": [turn]})
    with pytest.raises(ValueError, match="must be distinct"):
        writer.write_shard(0, {"c00": [turn, turn]})
    with pytest.raises(ValueError, match="must be distinct"):
        writer.write_shard(0, {"c00": [Turn("a.b", "q", "t", [1], 3, "eos")]})
    with pytest.raises(ValueError, match="outside 0 .. 499"):
        writer.write_shard(0, {"c00": [Turn("a", "q", "t", [500], 3, "eos")]})
    states = {"hidden": torch.zeros(1, 1, 2)}
    for wrong in ({}, {("c00", "a"): {**states, "topk": torch.zeros(1, 1)}}, {("c00", "a"): states, ("c00", "b"): states}):
        with pytest.raises(ValueError, match="not the declared ones, or no such turn"):
            writer.write_shard(0, {"c00": [turn]}, wrong)
    assert writer.missing() == [0, 1, 2]


def test_a_bad_member_is_named(copied: Path) -> None:
    column = open_shards(copied).column("echo")
    row = column.table.slice(4, 1).to_pylist()[0]
    path = copied / "columns/echo/000001.tar"
    data = bytearray(path.read_bytes())
    data[row["signals_offset"]] ^= 1
    path.write_bytes(data)
    column = open_shards(copied).column("echo")
    assert column.read(4).turn == "open-0"
    with pytest.raises(DataError, match="000001.tar: member `c04.signals.safetensors` bytes differ"):
        column.signals(4)
    assert list(open_shards(copied).verify())[1:] == [
        "columns/echo/000001.tar: member `c04.signals.safetensors` bytes differ from their sha256"
    ]


def test_a_plan_source_holds_what_was_asked_for(tones_root: Path) -> None:
    shards = open_shards(tones_root)
    reader = Reader(shards, shards.column("echo"))
    source = reader.source("kd", split="train", passes=2.0, turns="task-")
    read = [reader.read(row) for row in map(source.row, range(len(source)))]
    assert [example.key for example in read] == ["c01", "c07", "text"] and {example.turn for example in read} == {"task-rate"}
    assert source.tokens_N.tolist() == [len(example.tokens) for example in read]
    assert source.seconds_N.tolist() == [0 if e.samples_T is None else e.samples_T.size / 16_000 for e in read]
    assert len(reader.source("kd", stops=("eos",))) == 9
    assert len(reader.source("kd", ["test", "train"])) == len(reader.source("kd")) > len(reader.source("kd", ["train"]))
    with pytest.raises(InputError, match="no examples for stream `ift`"):
        reader.source("ift", stops=("error",))
    with pytest.raises(InputError, match="unknown split `dev`"):
        reader.source("ift", split="dev")


def test_a_signal_that_one_of_two_columns_has_is_named() -> None:
    plain = ECHO.model_copy(update={"signals": SignalsConfig()})
    topk = ECHO.model_copy(update={"signals": SignalsConfig(topk=TopKStore(k=8))})
    assert plain.differs_from(topk) == ["no `signals.topk`"]
    assert topk.differs_from(plain) == ["`signals.topk`, which the recipe does not have"]
