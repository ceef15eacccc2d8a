"""Base shards: one block of items becomes a tar, its parquet index and a receipt; all receipts together become a published version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import speechkd
from speechkd.core.errors import InputError
from speechkd.core.files import sha256_bytes, write_json, write_text
from speechkd.core.types import Metadata
from speechkd.data.audio import RATE, encode_flac, normalise
from speechkd.data.cards import Card, open_source
from speechkd.data.manifest import (
    FORMAT_BASE,
    INDEX,
    MANIFEST,
    Receipts,
    file_entry,
    json_bytes,
    loose_digest,
    shard_name,
    signed,
    sweep,
    write_parquet,
)
from speechkd.data.sources.base import Item, RawClip, Rejected
from speechkd.data.tar import ABSENT, Member, TarWriter, publishing_tar

MAX_METADATA = 1 << 20
"""Bytes of one sample's metadata; more goes to quarantine"""

BASE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("seconds", pa.float64()),
        ("audio_offset", pa.int64()),
        ("audio_bytes", pa.int64()),
        ("audio_sha256", pa.binary(32)),
        ("json_offset", pa.int64()),
        ("json_bytes", pa.int64()),
        ("json_sha256", pa.binary(32)),
        ("metadata", pa.string()),
    ]
)
"""Every shard's index; typed `meta.<name>` columns follow it. The published index has `shard` and no typed columns."""


def items_digest(items: Sequence[Item]) -> str:
    """sha256 of what a shard is made from."""
    return loose_digest([asdict(item) for item in items])


def base_receipts(root: Path, card: Card, digests: Mapping[int, str]) -> Receipts:
    """The receipts of a version in the making; `digests`: items_digest of every shard."""
    card_digest = card.digest
    return Receipts(root, root / "receipts", lambda shard: {"card": card_digest, "items": digests[shard], "shard": shard})


def write_shard(root: Path, card: Card, card_dir: Path, shard: int, items: Sequence[Item]) -> None:
    """Read, encode and publish one block; its receipt comes last. Runs in a fresh process: sources may keep state."""
    receipts = base_receipts(root, card, {shard: items_digest(items)})
    receipts.do(shard, lambda: _write_shard(root, card, card_dir, shard, items, receipts))


def _write_shard(root: Path, card: Card, card_dir: Path, shard: int, items: Sequence[Item], receipts: Receipts) -> None:
    source = open_source(card, card_dir)
    rows: list[dict[str, Any]] = []
    metadata: list[Metadata] = []
    quarantined: list[dict[str, Any]] = []
    tar_name, parquet_name = (f"audio/{shard_name(shard)}.{suffix}" for suffix in ("tar", "parquet"))
    with publishing_tar(root / tar_name) as tar:
        for item, clip in zip(items, source.read(items), strict=True):
            row = _add(tar, card, item, clip)
            if isinstance(row, Rejected):
                quarantined.append({"key": item.key, "source": _readable(card.source["kind"], item.payload), "reason": row.reason})
            else:
                rows.append(row)
                metadata.append(item.metadata)
        tar_entry = {"sha256": tar.close(), "bytes": tar.bytes}
    table = pa.Table.from_pylist(rows, schema=BASE_SCHEMA)
    for name, values in _typed_columns(metadata):
        table = table.append_column(f"meta.{name}", values)
    files = {tar_name: tar_entry, parquet_name: write_parquet(root / parquet_name, table)}
    facts = {"samples": len(rows), "seconds": _total(rows), "quarantined": quarantined}
    receipts.write(shard, files, facts)


def _add(tar: TarWriter, card: Card, item: Item, clip: RawClip | Rejected | None) -> dict[str, Any] | Rejected:
    """Append one sample and return its index row, or say why it is refused; a refused sample leaves no byte."""
    if isinstance(clip, Rejected):
        return clip
    try:
        text = json_bytes(item.metadata)
    except ValueError as error:
        return Rejected(f"metadata is not JSON: {error}")
    if len(text) > MAX_METADATA:
        return Rejected(f"metadata has {len(text)} bytes, allowed {MAX_METADATA}")
    audio: Member = ABSENT
    seconds = 0.0
    if clip is not None:
        samples_T = normalise(clip, card.audio)
        if isinstance(samples_T, Rejected):
            return samples_T
        audio = tar.add(item.key, "flac", encode_flac(samples_T))
        seconds = samples_T.size / RATE
    member = tar.add(item.key, "json", text)
    return {
        "key": item.key,
        "split": item.split,
        "seconds": seconds,
        "audio_offset": audio.offset,
        "audio_bytes": audio.size,
        "audio_sha256": audio.sha256,
        "json_offset": member.offset,
        "json_bytes": member.size,
        "json_sha256": member.sha256,
        "metadata": text.decode(),
    }


def _readable(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Where a rejected item came from; escaped where it is not Unicode."""
    source = {"kind": kind, **payload}
    try:
        json_bytes(source)
    except ValueError:
        source = {"kind": kind, "escaped": json.dumps(payload)}
    return source


def _typed_columns(metadata: Sequence[Metadata]) -> list[tuple[str, pa.Array]]:
    """One column per metadata name: booleans, int64, float64 where all values are such, otherwise text."""
    out = []
    for name in sorted({name for row in metadata for name in row}):
        values = [row.get(name) for row in metadata]
        kinds = {type(value) for value in values if value is not None}
        small = all(-(2**63) <= value < 2**63 for value in values if isinstance(value, int))
        if kinds == {bool}:
            array = pa.array(values, pa.bool_())
        elif kinds == {int} and small:
            array = pa.array(values, pa.int64())
        elif kinds in ({float}, {int, float}) and small:
            array = pa.array([None if value is None else float(value) for value in values], pa.float64())
        else:
            array = pa.array([None if value is None else str(value) for value in values], pa.string())
        out.append((name, array))
    return out


def _total(rows: Sequence[dict[str, Any]]) -> float:
    return sum(round(row["seconds"] * RATE) for row in rows) / RATE


def publish(root: Path, card: Card, receipts: Receipts, count: int) -> None:
    """Write index, card, quarantine and, last, the manifest from all `count` receipts; equal bytes whoever does it.

    Raises InputError, after writing the quarantine list, if more items were rejected than the card allows.
    """
    found = [receipts.read(shard) for shard in range(count)]
    done = [receipt for receipt in found if receipt is not None]
    assert len(done) == count, "publish needs every receipt"
    rejected = [entry for receipt in done for entry in receipt["quarantined"]]
    write_text(root / "quarantine.jsonl", "".join(json_bytes(entry).decode() + "\n" for entry in rejected))
    stored = sum(receipt["samples"] for receipt in done)
    if len(rejected) > card.quarantine_rate * (stored + len(rejected)):
        raise InputError(
            f"{len(rejected)} of {stored + len(rejected)} items were rejected, the card allows {card.quarantine_rate:.1%}; "
            f"first: `{rejected[0]['key']}` {rejected[0]['reason']} (all in {root / 'quarantine.jsonl'})"
        )
    write_text(root / "card.yaml", yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120))
    files = {name: entry for receipt in done for name, entry in receipt["files"].items()}
    files[INDEX] = write_parquet(root / INDEX, _index(root, count))
    files |= {name: file_entry(root / name) for name in ("card.yaml", "quarantine.jsonl")}
    shards = [
        {
            "shard": shard,
            "samples": receipt["samples"],
            "seconds": receipt["seconds"],
            "bytes": receipt["files"][f"audio/{shard_name(shard)}.tar"]["bytes"],
        }
        for shard, receipt in enumerate(done)
    ]
    manifest = {
        "format": FORMAT_BASE,
        "dataset": card.name,
        "version": card.version,
        "card": card.digest,
        "code": speechkd.__version__,
        "files": files,
        "shards": shards,
        "totals": {name: sum(entry[name] for entry in shards) for name in ("samples", "seconds", "bytes")},
        "input": stored + len(rejected),
        "quarantined": len(rejected),
    }
    write_json(root / MANIFEST, signed(manifest))
    sweep([root, root / "audio", root / "receipts"], count)


def _index(root: Path, count: int) -> pa.Table:
    tables = []
    for shard in range(count):
        table = pq.read_table(root / f"audio/{shard_name(shard)}.parquet", columns=BASE_SCHEMA.names)
        digests = [
            bytes.fromhex(sha256_bytes(audio + text))
            for audio, text in zip(table["audio_sha256"].to_pylist(), table["json_sha256"].to_pylist(), strict=True)
        ]
        table = table.add_column(1, "shard", pa.array([shard] * len(table), pa.int32()))
        tables.append(table.append_column("sha256", pa.array(digests, pa.binary(32))))
    return pa.concat_tables(tables).combine_chunks()
