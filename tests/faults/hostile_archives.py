"""Hostile archives of others: webdataset tars and Parquet files."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechkd.data.shards.index import open_shards
from speechkd.stages.shard import shard
from tests.data.corpus import write_card
from tests.faults.hostile_clips import PICKLE, patched, wav


def tar_of(entries: list[tuple[tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for info, data in entries:
            info.size = len(data) or info.size
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, data


def sparse() -> bytes:
    """10 KB that a reader of GNU sparse files makes half a gigabyte of."""
    info = tarfile.TarInfo("a.wav")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.wav", "GNU.sparse.realsize": str(512 << 20)}
    return tar_of([(info, b"0\n".ljust(512, b"\0"))])


def huge_header() -> tuple[tarfile.TarInfo, bytes]:
    info, data = entry("a.wav", wav())
    info.pax_headers = {"comment": "x" * (64 << 20)}
    return info, data


TARS: dict[str, Callable[[], bytes]] = {
    "pickles": lambda: tar_of([entry("a.wav", wav()), entry("a.pyd", PICKLE), entry("a.pth", PICKLE), entry("a.pickle", PICKLE)]),
    "a path outside": lambda: tar_of([entry("../../outside.wav", wav())]),
    "an absolute path": lambda: tar_of([entry("/tmp/outside.wav", wav())]),
    "a symbolic link": lambda: tar_of([entry("a.wav", kind=tarfile.SYMTYPE, link="/etc/passwd")]),
    "a hard link": lambda: tar_of([entry("a.wav", kind=tarfile.LNKTYPE, link="/etc/passwd")]),
    "a device": lambda: tar_of([entry("a.wav", kind=tarfile.CHRTYPE)]),
    "a sparse bomb": sparse,
    "a huge header": lambda: tar_of([huge_header()]),
    "gzip": lambda: gzip.compress(tar_of([entry("a.wav", bytes(100 << 20))])),
    "a cut tar": lambda: tar_of([entry("a.wav", wav())])[:700],
    "a negative size": lambda: patched(tar_of([entry("a.wav", wav())], tarfile.USTAR_FORMAT), 124, b"\xff" * 12),
    "zeros": lambda: bytes(1 << 20),
    "the same key twice": lambda: tar_of([entry("a.wav", wav()), entry("b.wav", wav()), entry("a.wav", wav())]),
    "json that is deep": lambda: tar_of([entry("a.wav", wav()), entry("a.json", b'{"a":' * 100_000)]),
}
"""Others' webdataset tars"""


def use_tar(folder: Path) -> list[str]:
    card = write_card(folder, [], quarantine_rate=1.0, fields={}, source={"kind": "webdataset", "tars": "x.tar"})
    root = shard(card, folder / "out", workers=1, quiet=True)
    reasons = [json.loads(line)["reason"] for line in (root / "quarantine.jsonl").read_text().splitlines()]
    return reasons or [f"stored {len(open_shards(root))} samples"]


def repeated(rows: int, size: int) -> pa.Table:
    """A text of `size` bytes that every row has, stored once."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * size]))
    return pa.table({"id": [f"k{number}" for number in range(rows)], "text": text})


def write_parquet(path: Path, table: pa.Table) -> None:
    """However large a dictionary is, it stays one."""
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30)


def delta(path: Path) -> None:
    """Every value begins with all of the one before: 64 KB said 2,000 times in a few hundred bytes."""
    table = pa.table({"id": [f"k{number}" for number in range(2000)], "text": ["x" * (1 << 16)] * 2000})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY", "id": "PLAIN"})


PARQUETS: dict[str, Callable[[Path], Any]] = {
    "a text of 16 MB in 2,000 rows": lambda path: write_parquet(path, repeated(2000, 16 << 20)),
    "a text of 200 MB": lambda path: write_parquet(path, repeated(1, 200 << 20)),
    "a text of 64 KB in 100,000 rows": lambda path: write_parquet(path, repeated(100_000, 1 << 16)),
    "texts that share their beginning": delta,
    "zeros": lambda path: path.write_bytes(b"PAR1" + bytes(1000) + b"PAR1"),
}
"""Others' Parquet files"""


def use_parquet(folder: Path) -> list[str]:
    source = {"kind": "hf_disk", "path": "x.parquet", "audio_field": "", "key_field": "id"}
    root = shard(write_card(folder, [], quarantine_rate=1.0, fields={}, source=source), folder / "out", workers=1, quiet=True)
    reasons = [json.loads(line)["reason"] for line in (root / "quarantine.jsonl").read_text().splitlines()]
    return reasons or [f"stored {len(open_shards(root))} samples"]
