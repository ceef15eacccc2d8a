"""Writes a column: one tar per base shard, then a manifest. Finished shards are not written again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

import speechkd
from speechkd.core.config import build
from speechkd.core.errors import InputError
from speechkd.core.files import digest
from speechkd.core.log import say
from speechkd.data.cards import is_name
from speechkd.data.columns.column import Column, open_column
from speechkd.data.columns.spec import COLUMN_SCHEMA, SPEC, STOPS, ColumnSpec, Turn, TurnSignals
from speechkd.data.shards.assignment import referenced
from speechkd.data.shards.index import ShardSet, open_shards, tar_path
from speechkd.data.storage.cache import working_folder
from speechkd.data.storage.files import Files
from speechkd.data.storage.index_rows import read_columns
from speechkd.data.storage.manifest import (
    FORMAT_COLUMN,
    INDEX,
    MANIFEST,
    Receipts,
    create_manifest,
    json_bytes,
    shard_name,
    stored_names,
    sweep,
    write_parquet,
)
from speechkd.data.storage.store import Location, entry_of, remove, write_json
from speechkd.data.storage.tar import ABSENT, Member, publishing_tar


def shards_to_do(shards: ShardSet, spec: ColumnSpec) -> list[int]:
    """Shards that a column still lacks, without writing anything; shard 0 where it only has to be published, none where it is."""
    if spec.name in shards.column_names():
        return []
    receipts = _receipts(shards, spec)
    return [shard for shard in range(shards.shards) if receipts.read(shard) is None] or [0]


def finished_shards(shards: ShardSet, spec: ColumnSpec) -> dict[int, dict[str, Any]]:
    """Shard -> its counts (examples, stop_eos, stop_length, stop_error), for those that a column has, published or not. Writes nothing."""
    if spec.name in shards.column_names():
        return {entry["shard"]: entry for entry in shards.column(spec.name).manifest["shards"]}
    receipts = _receipts(shards, spec)
    return {shard: receipt for shard in range(shards.shards) if (receipt := receipts.read(shard)) is not None}


def _receipts(shards: ShardSet, spec: ColumnSpec) -> Receipts:
    spec_digest = spec.digest

    def binding(shard: int) -> dict[str, Any]:
        return {"spec": spec_digest, "shard": shard, "base": shards.manifest["files"][tar_path(shard)]["sha256"]}

    return Receipts(shards.root, f"columns/{spec.name}", binding)


class ColumnWriter:
    """Writes one column shard by shard. Writers may share the work, and a killed writer's work is resumed."""

    def __init__(self, shards: ShardSet, spec: ColumnSpec) -> None:
        """Raises InputError if a column of this name has another spec or belongs to other shards."""
        self.shards, self.spec, self._spec_digest = shards, spec, spec.digest
        self.root = shards.root / "columns" / spec.name
        self.local = working_folder(self.root)
        """a local folder for files that are appended to or locked: the column's own folder, unless that is behind a URL"""
        self._receipts = _receipts(shards, spec)
        if (self.root / SPEC).is_file():
            present = build(ColumnSpec, json.loads((self.root / SPEC).read_text(encoding="utf-8")), str(self.root / SPEC))
            if present.digest != spec.digest:
                raise InputError(_other_spec(present, spec, self.root))
        else:
            write_json(self.root / SPEC, spec.model_dump(mode="json"))
        self.published = (self.root / MANIFEST).is_file()
        if self.published:
            open_column(shards.root, shards.digest, spec.name)
        else:
            self._adopt()
            if (self.root / INDEX).is_file():  # it was published once: what lies there may have changed
                self.recheck()

    def _adopt(self) -> None:
        """Reuse the earlier version's column for every base shard that was reused, if the spec is the same."""
        version: str | None = self.shards.manifest.get("grows")
        if version is None:
            return
        earlier = open_shards(self.shards.root.parent / version)
        if self.spec.name not in earlier.column_names():
            return
        before = open_column(earlier.root, earlier.digest, self.spec.name)
        if before.spec.digest != self._spec_digest:
            return
        for shard, entry in enumerate(before.manifest["shards"]):
            if "in" in self.shards.manifest["files"][tar_path(shard)] and self._receipts.read(shard) is None:
                files = referenced(before.files, [f"{shard_name(shard)}.{suffix}" for suffix in ("tar", "parquet")], version)
                self._receipts.write(shard, files, {name: value for name, value in entry.items() if name != "shard"})

    def missing(self) -> list[int]:
        """Shards without a valid receipt; empty once the column is published."""
        return [] if self.published else [shard for shard in range(self.shards.shards) if self._receipts.read(shard) is None]

    def recheck(self) -> None:
        """Read every byte of the finished shards; those that differ from their receipts are missing from now on.

        Raises InputError where an earlier version holds the damaged file.
        """
        for shard, problem in self._receipts.recheck(range(self.shards.shards)):
            if "(in version" in problem:
                raise InputError(f"column {self.spec.name}: {problem}: repair the column of that version first (`speechkd teach --repair`)")
            say(f"column {self.spec.name}: shard {shard} is written again: {problem}")

    def done(self, shard: int) -> bool:
        """Whether the shard has a valid receipt."""
        return self.published or self._receipts.read(shard) is not None

    def withdraw(self, shards: Sequence[int]) -> None:
        """Unpublish a column so that `shards` can be written again. The result is a different column under the same name."""
        remove(self.root / MANIFEST)
        for shard in shards:
            self._receipts.withdraw(shard)
        self.published = False

    def write_shard(
        self,
        shard: int,
        turns: Mapping[str, Sequence[Turn]],
        signals: TurnSignals | None = None,
    ) -> None:
        """Publish one shard: `turns` by sample key, `signals` for every turn that is not an error. Samples without turns are absent.

        Raises ValueError for a key that is not in the base shard, a duplicate turn, ids outside the vocabulary, or signals other than the
        declared ones.
        """
        keys = self.shards.keys(shard)
        self._check(shard, keys, turns, signals or {})
        self._receipts.do(shard, lambda: self._write(shard, keys, turns, signals or {}))

    def _check(self, shard: int, keys: list[str], turns: Mapping[str, Sequence[Turn]], signals: TurnSignals) -> None:
        unknown = set(turns) - set(keys)
        if unknown:
            raise ValueError(f"column {self.spec.name}, shard {shard}: `{min(unknown)}` is not a key of this shard")
        examples: set[tuple[str, str]] = set()
        answered: set[tuple[str, str]] = set()
        for key, answers in turns.items():
            for turn in answers:
                where = f"column {self.spec.name}, `{key}`, turn `{turn.turn}`"
                if not is_name(turn.turn) or (key, turn.turn) in examples:
                    raise ValueError(f"{where}: turn names must be distinct and use A-Z a-z 0-9 _ - only")
                if turn.stop not in STOPS or turn.prompt_tokens < 0:
                    raise ValueError(
                        f"{where}: stop `{turn.stop}` must be one of {', '.join(STOPS)}, and prompt_tokens must not be negative"
                    )
                if turn.tokens and not (0 <= min(turn.tokens) and max(turn.tokens) < self.spec.vocab_size):
                    raise ValueError(f"{where}: a token id is outside 0 .. {self.spec.vocab_size - 1}")
                examples.add((key, turn.turn))
                if turn.stop != "error" and turn.tokens:
                    answered.add((key, turn.turn))
        for example in set(signals) | examples:
            tensors = signals.get(example, {})
            if example not in examples or set(tensors) != (self.spec.signals.names if example in answered else set()):
                raise ValueError(
                    f"column {self.spec.name}: {example} has signals {sorted(tensors)}: not the declared ones, or no such turn"
                )

    def _write(self, shard: int, keys: list[str], turns: Mapping[str, Sequence[Turn]], signals: TurnSignals) -> None:
        from safetensors.torch import save

        rows: list[dict[str, Any]] = []
        tar_name, parquet_name = (f"{shard_name(shard)}.{suffix}" for suffix in ("tar", "parquet"))
        with publishing_tar(self.root / tar_name) as tar:
            for row, key in enumerate(keys):
                answers = turns.get(key, ())
                if not answers:
                    continue
                response = tar.add(key, "response.json", json_bytes([asdict(turn) for turn in answers]))
                tensors = {
                    f"{turn.turn}.{name}": value.contiguous()
                    for turn in answers
                    for name, value in sorted(signals.get((key, turn.turn), {}).items())
                }
                extra = tar.add(key, "signals.safetensors", save(tensors)) if tensors else ABSENT
                rows += [_row(key, row, position, turn, response, extra) for position, turn in enumerate(answers)]
            tar_entry = {"sha256": tar.close(), "bytes": tar.bytes}
        parquet_entry = write_parquet(self.root / parquet_name, pa.Table.from_pylist(rows, schema=COLUMN_SCHEMA))
        facts = {"examples": len(rows), "tokens": sum(row["tokens"] for row in rows)}
        facts["signals_bytes"] = sum(size for _, size in {(row["signals_offset"], row["signals_bytes"]) for row in rows})
        facts |= {f"stop_{stop}": sum(row["stop"] == stop for row in rows) for stop in STOPS}
        self._receipts.write(shard, {tar_name: tar_entry, parquet_name: parquet_entry}, facts)

    def publish(self) -> Column:
        """Write the index and then the manifest; every writer produces the same bytes. Raises ValueError if shards are missing."""
        if not self.published:
            self._receipts.do(0, self._publish)
            self.published = True
        return open_column(self.shards.root, self.shards.digest, self.spec.name)

    def _publish(self) -> None:
        receipts = [self._receipts.read(shard) for shard in range(self.shards.shards)]
        done = [receipt for receipt in receipts if receipt is not None]
        if len(done) < len(receipts):
            raise ValueError(f"column {self.spec.name}: {len(receipts) - len(done)} of {len(receipts)} shards are missing")
        files = {name: entry for receipt in done for name, entry in receipt["files"].items()}
        files[INDEX] = write_parquet(self.root / INDEX, self._index(self._receipts.files(files)))
        files[SPEC] = entry_of(self.root / SPEC)
        facts = [name for name in done[0] if name not in ("binding", "files", "sha256")]
        manifest = {
            "format": FORMAT_COLUMN,
            "column": self.spec.name,
            "dataset": self.shards.dataset,
            "version": self.shards.version,
            "base": self.shards.digest,
            "spec": self.spec.model_dump(mode="json"),
            "spec_digest": self._spec_digest,
            "prompt_digest": digest(self.spec.prompt),
            "code": speechkd.__version__,
            "files": files,
            "shards": [{"shard": shard, **{name: receipt[name] for name in facts}} for shard, receipt in enumerate(done)],
            "totals": {name: sum(receipt[name] for receipt in done) for name in facts},
        }
        create_manifest(self.root / MANIFEST, manifest)
        sweep([self.root, self.root / "receipts"], stored_names(files, self.shards.shards))

    def _index(self, files: Files) -> pa.Table:
        tables = []
        for shard in range(self.shards.shards):
            table = read_columns(files, f"{shard_name(shard)}.parquet", None, [])
            samples = table["row"].to_numpy() + self.shards.starts[shard]
            table = table.add_column(2, "shard", pa.array([shard] * len(table), pa.int32()))
            tables.append(table.add_column(3, "sample", pa.array(samples, pa.int64())))
        return pa.concat_tables(tables).combine_chunks()


def _row(key: str, row: int, position: int, turn: Turn, response: Member, signals: Member) -> dict[str, Any]:
    return {
        "key": key,
        "turn": turn.turn,
        "row": row,
        "position": position,
        "prompt_tokens": turn.prompt_tokens,
        "tokens": len(turn.tokens),
        "stop": turn.stop,
        "offset": response.offset,
        "bytes": response.size,
        "sha256": response.sha256,
        "signals_offset": signals.offset,
        "signals_bytes": signals.size,
        "signals_sha256": signals.sha256,
    }


def _other_spec(present: ColumnSpec, given: ColumnSpec, root: Location) -> str:
    changes = "; ".join(present.differs_from(given))
    return f"column `{given.name}` was made with {changes}: choose another name, or remove `{root}`"
