"""Writes a dataset's base shards (clips and metadata): a tar, a Parquet index and a receipt each. Publishes a version from all receipts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import speechkd
from speechkd.core.config import dump_yaml
from speechkd.core.errors import InputError
from speechkd.core.types import Metadata
from speechkd.data.audio.clips import RATE, encode_flac, normalise, pieces
from speechkd.data.audio.raw import RawClip, Rejected
from speechkd.data.cards import PART, Card, open_source
from speechkd.data.shards.assignment import ITEMS, QUARANTINE, ShardItems, item_table, items_digest
from speechkd.data.sources.base import Item
from speechkd.data.sources.guarded import Watch, read_guarded
from speechkd.data.storage import arrays
from speechkd.data.storage.files import Files
from speechkd.data.storage.manifest import (
    FORMAT_BASE,
    INDEX,
    MANIFEST,
    Receipts,
    create_manifest,
    json_bytes,
    read_parquet,
    shard_name,
    stored_names,
    sweep,
    write_parquet,
)
from speechkd.data.storage.store import Location, entry_of, write_text
from speechkd.data.storage.tar import ABSENT, TarWriter, publishing_tar

CARD = "card.yaml"
Clip = RawClip | Rejected | None
MAX_METADATA = 1 << 20
"""Most bytes of a sample's metadata; samples with more go to quarantine"""

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
"""Columns of every index. A shard's own index adds typed `meta.<name>` columns; the published one adds `shard` and `sha256`."""


def base_receipts(root: Location, card: Card, digests: Mapping[int, str]) -> Receipts:
    """The receipts of a version that is being written; `digests`: items_digest of every shard."""
    card_digest = card.digest
    return Receipts(root, "", lambda shard: {"card": card_digest, "items": digests[shard], "shard": shard})


def write_shard(
    root: Location,
    card: Card,
    card_dir: Path,
    shard: int,
    items: Sequence[Item],
    watch: Watch | None = None,
    fatal: Mapping[int, str] | None = None,
) -> None:
    """Read, encode and write one shard; its receipt comes last. Must run in a fresh process, since sources may keep state.

    `watch` records which item is being read. `fatal`: index in `items` -> reason; these items ended an earlier process and are not read.
    """
    receipts = base_receipts(root, card, {shard: items_digest(card, items)})
    source = open_source(card, card_dir)
    receipts.do(shard, lambda: _write_shard(root, card, shard, items, read_guarded(source, items, watch, fatal), receipts))


def _write_shard(root: Location, card: Card, shard: int, items: Sequence[Item], clips: Iterable[Clip], receipts: Receipts) -> None:
    rows: list[dict[str, Any]] = []
    metadata: list[Metadata] = []
    quarantined: list[dict[str, Any]] = []
    inputs = 0
    tar_name, parquet_name = (f"audio/{shard_name(shard)}.{suffix}" for suffix in ("tar", "parquet"))
    with publishing_tar(root / tar_name) as tar:
        for item, clip in zip(items, clips, strict=True):
            samples = _samples(card, item, clip)
            if isinstance(samples, Rejected):
                source = _origin(card.source["kind"], item.payload)
                entry = {"key": item.key, "shard": shard, "source": source, "reason": samples.reason, "seconds": samples.seconds}
                entry |= {"limit": samples.limit} if samples.limit else {}
                quarantined.append(entry)
                continue
            inputs += 1
            for key, fields, text, samples_T in samples:
                rows.append(_add(tar, key, item.split, text, samples_T))
                metadata.append(fields)
        tar_entry = {"sha256": tar.close(), "bytes": tar.bytes}
    table = pa.Table.from_pylist(rows, schema=BASE_SCHEMA)
    for name, values in _typed_columns(metadata):
        table = table.append_column(f"meta.{name}", values)
    files = {tar_name: tar_entry, parquet_name: write_parquet(root / parquet_name, table)}
    facts = {"samples": len(rows), "seconds": _total_seconds(rows), "inputs": inputs, "quarantined": quarantined}
    receipts.write(shard, files, facts)


_NewSample = tuple[str, Metadata, bytes, np.ndarray | None]
"""key, metadata, the same as JSON bytes, waveform [T] (None: text-only)"""


def _samples(card: Card, item: Item, clip: RawClip | Rejected | None) -> list[_NewSample] | Rejected:
    """The samples made from an item (several if the card splits over-long clips), or why it is rejected."""
    if isinstance(clip, Rejected):
        return clip
    if clip is None and not card.keeps_texts:
        return Rejected("names no audio: `text_only: true` in the card stores such items as texts")
    if clip is None:
        return _with_json([(item.key, item.metadata, None)])
    samples_T = normalise(clip, card.audio)
    if isinstance(samples_T, Rejected):
        return samples_T
    cut = pieces(samples_T, card.audio) if card.audio.over_long == "split" else [samples_T]
    kept = {name: value for name, value in item.metadata.items() if len(cut) == 1 or name not in card.audio.whole_only}
    out: list[tuple[str, Metadata, np.ndarray | None]] = []
    for number, piece_T in enumerate(cut):
        fields = dict(kept)
        if card.audio.duration_field:
            fields[card.audio.duration_field] = round(piece_T.size / RATE, 3)
        if len(cut) > 1:
            fields |= {"part": number, "parts": len(cut)}
        out.append((item.key if len(cut) == 1 else f"{item.key}{PART}{number:03d}", fields, piece_T))
    return _with_json(out, samples_T.size / RATE)


def _with_json(parts: Sequence[tuple[str, Metadata, np.ndarray | None]], seconds: float = 0.0) -> list[_NewSample] | Rejected:
    """Samples with their metadata as JSON bytes, or why it cannot be stored."""
    out: list[_NewSample] = []
    for key, fields, samples_T in parts:
        try:
            text = json_bytes(fields)
        except ValueError as error:
            return Rejected(f"metadata is not JSON: {error}", seconds)
        if len(text) > MAX_METADATA:
            return Rejected(f"metadata has {len(text)} bytes, allowed {MAX_METADATA}", seconds)
        out.append((key, fields, text, samples_T))
    return out


def _add(tar: TarWriter, key: str, split: str, text: bytes, samples_T: np.ndarray | None) -> dict[str, Any]:
    """Append one sample and return its index row."""
    audio = ABSENT if samples_T is None else tar.add(key, "flac", encode_flac(samples_T))
    member = tar.add(key, "json", text)
    return {
        "key": key,
        "split": split,
        "seconds": 0.0 if samples_T is None else samples_T.size / RATE,
        "audio_offset": audio.offset,
        "audio_bytes": audio.size,
        "audio_sha256": audio.sha256,
        "json_offset": member.offset,
        "json_bytes": member.size,
        "json_sha256": member.sha256,
        "metadata": text.decode(),
    }


def _origin(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Where a rejected item came from, for the quarantine list; escaped if it is not valid Unicode."""
    source = {"kind": kind, **payload}
    try:
        json_bytes(source)
    except ValueError:
        source = {"kind": kind, "escaped": json.dumps(payload)}
    return source


def _typed_columns(metadata: Sequence[Metadata]) -> list[tuple[str, pa.Array]]:
    """One column per metadata name: bool, int64 or float64 if all values fit, otherwise text."""
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


def _total_seconds(rows: Sequence[dict[str, Any]]) -> float:
    return sum(round(row["seconds"] * RATE) for row in rows) / RATE


def publish(root: Location, card: Card, receipts: Receipts, planned: Sequence[ShardItems]) -> None:
    """Write index, card, quarantine and then the manifest from all receipts; every writer produces the same bytes.

    Raises InputError if more items were rejected than the card allows (after writing the quarantine list), or if another card was
    published there first.
    """
    read = [receipts.read(shard) for shard in range(len(planned))]
    done = [receipt for receipt in read if receipt is not None]
    assert len(done) == len(planned), "publish needs every receipt"
    rejected = [entry for receipt in done for entry in receipt["quarantined"]]
    write_text(root / QUARANTINE, quarantine_text(rejected))
    stored = sum(receipt["inputs"] for receipt in done)
    if len(rejected) > card.quarantine_rate * (stored + len(rejected)):
        raise InputError(
            f"{len(rejected)} of {stored + len(rejected)} items were rejected, the card allows {card.quarantine_rate:.1%}; "
            f"first: `{rejected[0]['key']}` {rejected[0]['reason']} (all in {root / QUARANTINE})"
        )
    write_text(root / CARD, card_text(card))
    files = {name: entry for receipt in done for name, entry in receipt["files"].items()}
    files[INDEX] = write_parquet(root / INDEX, index_table(receipts.files(files), len(planned)))
    files[ITEMS] = write_parquet(root / ITEMS, item_table(planned))
    files |= {name: entry_of(root / name) for name in (CARD, QUARANTINE)}
    shards = [
        {
            "shard": shard,
            "samples": receipt["samples"],
            "seconds": receipt["seconds"],
            "bytes": receipt["files"][f"audio/{shard_name(shard)}.tar"]["bytes"],
            "items": receipt["binding"]["items"],
        }
        for shard, receipt in enumerate(done)
    ]
    manifest = {
        "format": FORMAT_BASE,
        "dataset": card.name,
        "version": card.version,
        "grows": card.grows,
        "card": card.digest,
        "code": speechkd.__version__,
        "files": files,
        "shards": shards,
        "totals": {name: sum(entry[name] for entry in shards) for name in ("samples", "seconds", "bytes")},
        "input": stored + len(rejected),
        "quarantined": len(rejected),
        "dropped_seconds": round(sum(entry["seconds"] for entry in rejected), 3),
    }
    create_manifest(root / MANIFEST, manifest)
    sweep([root, root / "audio", root / "receipts"], stored_names(files, len(planned)))


def card_text(card: Card) -> str:
    """card.yaml of a version."""
    return dump_yaml(card.model_dump(mode="json"), width=120)


def quarantine_text(rejected: Iterable[Mapping[str, Any]]) -> str:
    """quarantine.jsonl of a version, from the entries of all receipts."""
    return "".join(json_bytes(entry).decode() + "\n" for entry in rejected)


def index_table(files: Files, count: int) -> pa.Table:
    """index.parquet of a version: the rows of its `count` shards."""
    tables = []
    for shard in range(count):
        table = read_parquet(files, f"audio/{shard_name(shard)}.parquet").select(BASE_SCHEMA.names)
        sample_digests = [
            hashlib.sha256(audio + text).digest()
            for audio, text in zip(table["audio_sha256"].to_pylist(), table["json_sha256"].to_pylist(), strict=True)
        ]
        table = table.add_column(1, "shard", arrays.numbers([shard] * len(table)))
        tables.append(table.append_column("sha256", arrays.digests(sample_digests)))
    return pa.concat_tables(tables).combine_chunks()
