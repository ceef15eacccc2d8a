"""Hostile published versions: a good one, spoilt and signed again by somebody who knows the format."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechkd.core.files import sha256_file, write_json
from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.data.storage.manifest import with_self_digest
from tests.data.corpus import write_echo
from tests.faults.hostile_clips import PICKLE, flac
from tests.faults.hostile_lists import CARDS


def use_shards(folder: Path) -> list[str]:
    """`check`, then read everything."""
    root = folder / "shards"
    shards = open_shards(root)
    problems = list(shards.verify())
    reader = Reader(shards, shards.column("echo")) if "echo" in shards.column_names() else Reader(shards)
    for row in range(len(shards)):
        reader.metadata(row)
        reader.audio(row)
    if reader.column:
        for row in range(len(reader.column)):
            reader.read(row)
    return problems


def resign(root: Path, change: Callable[[dict[str, Any]], None], files: bool = False) -> None:
    """Change a manifest and sign it again, as an attacker would; with the digests of the files as they are now."""
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["sha256"]
    if files:
        for name in manifest["files"]:
            manifest["files"][name] = {"sha256": sha256_file(root / name), "bytes": (root / name).stat().st_size}
    change(manifest)
    write_json(root / "manifest.json", with_self_digest(manifest))


INDEXES = ("index.parquet", "audio/000000.parquet")


def index(root: Path, column: str, value: Any) -> None:
    """Set a column of the indexes to one value; no column is bound to that."""
    for name in INDEXES:
        table = pq.read_table(root / name)
        at = table.column_names.index(column)
        new = pa.array([value] * len(table), table.schema.field(column).type)
        pq.write_table(table.set_column(at, column, new), root / name)
    spoilt(root)


def fewer_rows(root: Path) -> None:
    """A shard whose index has one row of the four that the manifest says."""
    for name in INDEXES:
        pq.write_table(pq.read_table(root / name).slice(0, 1), root / name)
    spoilt(root)


def spoilt(root: Path) -> None:
    """Make the manifest fit the files as they are now."""
    shutil.rmtree(root / "columns")
    resign(root, lambda manifest: None, files=True)


def parquet_bomb(root: Path) -> None:
    """A few kilobytes that say they are 30 million rows."""
    table = pq.read_table(root / "index.parquet").slice(0, 1)
    rows = pa.array(np.zeros(30_000_000, np.int64))
    columns = {name: rows.cast(table.schema.field(name).type) for name in ("audio_offset", "audio_bytes", "json_offset", "json_bytes")}
    for name in INDEXES:
        pq.write_table(pa.table(columns), root / name, compression="zstd")
    shutil.rmtree(root / "columns")
    resign(root, lambda manifest: manifest["totals"].update(samples=30_000_000), files=True)


def text_bomb(root: Path, rows: int, size: int) -> None:
    """Indexes in which one text of `size` bytes, stored once, is the metadata of every row."""
    whole = pq.read_table(root / "audio/000000.parquet")
    one = {name: whole.slice(0, 1)[name].to_pylist() * rows for name in whole.column_names if not name.startswith("meta.")}
    fields = [field for field in whole.schema if field.name in one]
    columns = [pa.array(one[field.name], field.type) for field in fields]
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * size]))
    columns[[field.name for field in fields].index("metadata")] = text
    columns[[field.name for field in fields].index("key")] = text
    for name in INDEXES:
        table = pa.table(columns, [field.name for field in fields])
        pq.write_table(table, root / name, compression="zstd", dictionary_pagesize_limit=1 << 30)
    shutil.rmtree(root / "columns")

    def truncate(manifest: dict[str, Any]) -> None:
        manifest["totals"]["samples"] = manifest["shards"][0]["samples"] = rows
        del manifest["shards"][1:]

    resign(root, truncate, files=True)


def replace_member(parquet: Path, tar: Path, prefix: str, data: bytes) -> None:
    """Let the first row's member be `data`, appended to the tar, with a digest that fits."""
    table, raw = pq.read_table(parquet), tar.read_bytes()
    tar.write_bytes(raw + data)
    for name, value in ((f"{prefix}offset", len(raw)), (f"{prefix}bytes", len(data)), (f"{prefix}sha256", hashlib.sha256(data).digest())):
        new = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, new)
    pq.write_table(table, parquet)


def long_flac(root: Path) -> None:
    """A member of an hour, said to be as short as the one it replaces."""
    replace_member(root / "audio/000000.parquet", root / "audio/000000.tar", "audio_", flac(3600 * 16_000))
    spoilt(root)


def put_pickle(root: Path) -> None:
    for name in (*INDEXES, "card.yaml", "quarantine.jsonl"):
        (root / name).write_bytes(PICKLE)
    spoilt(root)


def signals_pickle(root: Path) -> None:
    """A column whose response is a pickle."""
    column = root / "columns/echo"
    replace_member(column / "000000.parquet", column / "000000.tar", "", PICKLE)
    resign(column, lambda manifest: None, files=True)


def deep_json(path: Path) -> None:
    path.write_text('{"a":' * 100_000)


SHARDS: dict[str, Callable[[Path], Any]] = {
    "files outside": lambda root: resign(root, lambda m: m["files"].update({"../../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}})),
    "an absolute file": lambda root: resign(root, lambda m: m["files"].update({"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}})),
    "a version outside": lambda root: resign(root, lambda m: m["files"]["index.parquet"].update({"in": "../.."})),
    "a digest that is a path": lambda root: resign(root, lambda m: m["files"]["index.parquet"].update({"sha256": "../" * 20})),
    "files that are a list": lambda root: resign(root, lambda m: m.update(files=["x"])),
    "a pickle as manifest": lambda root: (root / "manifest.json").write_bytes(PICKLE),
    "a deep manifest": lambda root: deep_json(root / "manifest.json"),
    "an endless manifest": lambda root: ((root / "manifest.json").unlink(), (root / "manifest.json").symlink_to("/dev/zero")),
    "pickles as files": put_pickle,
    "a pickle as response": signals_pickle,
    "a YAML object as card": lambda root: (
        (root / "card.yaml").write_text(CARDS["python object"]),
        resign(root, lambda m: None, files=True),
        open_shards(root).card,
    ),
    "offsets beyond the file": lambda root: index(root, "audio_offset", 2**62),
    "negative offsets": lambda root: index(root, "json_offset", -512),
    "a negative size": lambda root: index(root, "audio_bytes", -1),
    "fewer rows than said": fewer_rows,
    "empty cells": lambda root: index(root, "audio_offset", None),
    "a clip longer than said": long_flac,
    "a parquet bomb": parquet_bomb,
    "a text of 16 MB in 2,000 rows": lambda root: text_bomb(root, 2000, 16 << 20),
    "a text of 200 MB in 4 rows": lambda root: text_bomb(root, 4, 200 << 20),
    "a tar that is a link": lambda root: ((root / "audio/000000.tar").unlink(), (root / "audio/000000.tar").symlink_to("/etc/passwd")),
    "a tar that is a fifo": lambda root: ((root / "audio/000000.tar").unlink(), os.mkfifo(root / "audio/000000.tar")),
    "a version that grows outside": lambda root: (resign(root, lambda m: m.update(grows="../../x")), write_echo(open_shards(root))),
}
"""Published versions"""

LATE = {"a YAML object as card", "a version that grows outside"}
"""Whose spoiling itself uses what was spoiled"""
