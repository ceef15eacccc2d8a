"""Columns: teacher signals or labels that stand beside base shards, with the same shard numbers and key order, and never rewrite them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
from pydantic import Field

import speechkd
from speechkd.core.config import NAME_PATTERN, Config, build
from speechkd.core.errors import DataError, InputError
from speechkd.core.files import digest
from speechkd.core.tensors import tensors_in
from speechkd.core.types import Origin
from speechkd.data.cache import working_folder
from speechkd.data.cards import is_name
from speechkd.data.files import Files
from speechkd.data.growth import referenced
from speechkd.data.index import ShardSet, open_shards, tar_path
from speechkd.data.manifest import (
    FORMAT_COLUMN,
    INDEX,
    MANIFEST,
    Receipts,
    create_manifest,
    json_bytes,
    own_names,
    read_manifest,
    shard_name,
    sweep,
    write_parquet,
)
from speechkd.data.mapped import MappedTars
from speechkd.data.rows import ShardRows, read_columns
from speechkd.data.signals import SignalsConfig, decode
from speechkd.data.store import Place, entry_of, remove, write_json
from speechkd.data.tar import ABSENT, Member, bad_members, publishing_tar

if TYPE_CHECKING:
    from torch import Tensor

Stop = Literal["eos", "length", "error"]
STOPS: tuple[str, ...] = get_args(Stop)
SPEC = "spec.json"

COLUMN_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("turn", pa.string()),
        ("row", pa.int64()),
        ("position", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("tokens", pa.int32()),
        ("stop", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.binary(32)),
        ("signals_offset", pa.int64()),
        ("signals_bytes", pa.int64()),
        ("signals_sha256", pa.binary(32)),
    ]
)
"""One row per example. `row`: sample within the base shard; `position`: place in the member's list of turns."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one sample as a teacher answered it."""

    turn: str
    question: str
    text: str
    tokens: list[int]
    """response ids; the last is the end-of-turn token where `stop` is "eos" """
    prompt_tokens: int
    """length of the teacher's prompt"""
    stop: Stop
    reason: str = ""
    """why, where `stop` is "error" """


TurnSignals = Mapping[tuple[str, str], Mapping[str, "Tensor"]]
"""By (key, turn) and signal: tensors as `data.signals` encodes them."""


class ColumnSpec(Config):
    """What a column is made with. Its digest is part of every receipt: another spec is another column."""

    name: str = Field(pattern=NAME_PATTERN, max_length=128)
    teacher: dict[str, Any]
    """backend, model, revision"""
    prompt: str = ""
    """the template's text"""
    tokenizer: str
    """sha256 of the tokenizer's vocabulary and rules"""
    vocab_size: int = Field(ge=1)
    """ids are 0 .. vocab_size - 1: the width of the teacher's output, which may be padded beyond the tokenizer's"""
    signals: SignalsConfig = SignalsConfig()
    """what every finished or cut turn has beside its response, and in which precision"""
    settings: dict[str, Any] = {}

    @property  # not cached: a changed copy of a model would carry the old one along
    def digest(self) -> str:
        """sha256 over the whole spec."""
        return digest(self.model_dump(mode="json"))

    def differs_from(self, wanted: ColumnSpec) -> list[str]:
        """Each setting in which this column is not the `wanted` one, in words; long ones (template, tokenizer) by name only."""
        one, two = (spec.model_dump(mode="json", exclude={"name"}) for spec in (self, wanted))
        mine, other = _flat(one, two), _flat(two, one)
        out = []
        for key in sorted(mine.keys() | other.keys()):
            have, want = mine.get(key), other.get(key)
            if have == want:
                continue
            if isinstance(have, Mapping) or isinstance(want, Mapping):
                out.append(f"no `{key}`" if have is None else f"`{key}`, which the recipe does not have")
            elif isinstance(have, str) or isinstance(want, str) or isinstance(have, list):
                out.append(f"another `{_WORDS.get(key, key)}`")
            else:
                out.append(f"`{key}` {_said(have)}, the recipe has {_said(want)}")
        return out

    def origin(self, signal: str) -> Origin:
        """What the stored log-probs of `signal` are bound to."""
        temperature = getattr(getattr(self.signals, signal), "temperature", 1.0)
        return Origin(tokenizer=self.tokenizer, vocab_size=self.vocab_size, temperature=temperature)


_WORDS = {"prompt": "template", "teacher.fingerprint": "teacher.model"}


def _flat(value: Mapping[str, Any], other: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, opened where both sides have the block; lists are values."""
    out: dict[str, Any] = {}
    for key, inner in value.items():
        same = other.get(key)
        if isinstance(inner, Mapping) and isinstance(same, Mapping):
            out |= _flat(inner, same, f"{before}{key}.")
        else:
            out[f"{before}{key}"] = inner
    return out


def _said(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


class ColumnWriter:
    """Writes one column shard by shard; any number of writers may share the work, and a killed one is continued."""

    def __init__(self, shards: ShardSet, spec: ColumnSpec) -> None:
        """Raises InputError if the name already stands for another spec or another base."""
        self.shards, self.spec, self._spec_digest = shards, spec, spec.digest
        self.root = shards.root / "columns" / spec.name
        self.local = working_folder(self.root)
        """a folder of this machine for what is appended to and locked: the column's own, unless that is behind a URL"""
        self._receipts = Receipts(shards.root, f"columns/{spec.name}", self._binding)
        if (self.root / SPEC).is_file():
            present = build(ColumnSpec, json.loads((self.root / SPEC).read_text(encoding="utf-8")), str(self.root / SPEC))
            if present.digest != spec.digest:
                raise InputError(_other_spec(present, spec, self.root))
        else:
            write_json(self.root / SPEC, spec.model_dump(mode="json"))
        self.published = (self.root / MANIFEST).is_file()
        if self.published:
            open_column(shards, spec.name)
        else:
            self._adopt()

    def _adopt(self) -> None:
        """Where the base references a shard of an earlier version, reference that version's column too, if it is of the same spec."""
        version: str | None = self.shards.manifest.get("grows")
        if version is None:
            return
        earlier = open_shards(self.shards.root.parent / version)
        if self.spec.name not in earlier.column_names():
            return
        before = open_column(earlier, self.spec.name)
        if before.spec.digest != self._spec_digest:
            return
        for shard, said in enumerate(before.manifest["shards"]):
            if "in" in self.shards.manifest["files"][tar_path(shard)] and self._receipts.read(shard) is None:
                files = referenced(before.files, [f"{shard_name(shard)}.{suffix}" for suffix in ("tar", "parquet")], version)
                self._receipts.write(shard, files, {name: value for name, value in said.items() if name != "shard"})

    def _binding(self, shard: int) -> dict[str, Any]:
        return {"spec": self._spec_digest, "shard": shard, "base": self.shards.manifest["files"][tar_path(shard)]["sha256"]}

    def missing(self) -> list[int]:
        """Shards that have no valid receipt yet; none once the column is published."""
        return [] if self.published else [shard for shard in range(self.shards.shards) if self._receipts.read(shard) is None]

    def done(self, shard: int) -> bool:
        """Whether the shard has a valid receipt."""
        return self.published or self._receipts.read(shard) is not None

    def withdraw(self, shards: Sequence[int]) -> None:
        """Take a published column back, so that `shards` can be written anew; what is written then is another column with the same name."""
        remove(self.root / MANIFEST)
        for shard in shards:
            remove(self.root / "receipts" / f"{shard_name(shard)}.json")
        self.published = False

    def write_shard(
        self,
        shard: int,
        turns: Mapping[str, Sequence[Turn]],
        signals: TurnSignals | None = None,
    ) -> None:
        """Publish one shard: `turns` by sample key, `signals` of every turn that is no error. Samples without turns are simply absent.

        Raises ValueError for a key that the base shard does not have, a turn given twice, ids outside the vocabulary, signals that are not
        the declared ones.
        """
        keys = self.shards.keys(shard)
        self._check(shard, keys, turns, signals or {})
        self._receipts.do(shard, lambda: self._write(shard, keys, turns, signals or {}))

    def _check(self, shard: int, keys: list[str], turns: Mapping[str, Sequence[Turn]], signals: TurnSignals) -> None:
        strange = set(turns) - set(keys)
        if strange:
            raise ValueError(f"column {self.spec.name}, shard {shard}: `{min(strange)}` is no key of this shard")
        examples: set[tuple[str, str]] = set()
        answered: set[tuple[str, str]] = set()
        for key, answers in turns.items():
            for turn in answers:
                where = f"column {self.spec.name}, `{key}`, turn `{turn.turn}`"
                if not is_name(turn.turn) or (key, turn.turn) in examples:
                    raise ValueError(f"{where}: turns must be distinct names of A-Z a-z 0-9 _ -")
                if turn.stop not in STOPS or turn.prompt_tokens < 0:
                    raise ValueError(f"{where}: stop `{turn.stop}` must be one of {', '.join(STOPS)}, prompt_tokens not negative")
                if turn.tokens and not (0 <= min(turn.tokens) and max(turn.tokens) < self.spec.vocab_size):
                    raise ValueError(f"{where}: a token id is outside 0 .. {self.spec.vocab_size - 1}")
                examples.add((key, turn.turn))
                if turn.stop != "error" and turn.tokens:
                    answered.add((key, turn.turn))
        for example in set(signals) | examples:
            tensors = signals.get(example, {})
            if example not in examples or set(tensors) != (self.spec.signals.names if example in answered else set()):
                raise ValueError(f"column {self.spec.name}: {sorted(tensors)} of {example} are not the declared ones, or of no turn")

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
        """Write index and, last, manifest, from all receipts; equal bytes whoever does it. Raises ValueError while shards are missing."""
        if not self.published:
            self._receipts.do(0, self._publish)
            self.published = True
        return open_column(self.shards, self.spec.name)

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
        sweep([self.root, self.root / "receipts"], own_names(files, self.shards.shards))

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


def _other_spec(present: ColumnSpec, given: ColumnSpec, root: Place) -> str:
    changes = "; ".join(present.differs_from(given))
    return f"column `{given.name}` was made with {changes}: give this one another name, or remove `{root}`"


def open_column(shards: ShardSet, name: str) -> Column:
    """Open a published column. Raises InputError for one of another base, DataError for a damaged manifest."""
    root = shards.root / "columns" / name
    manifest = read_manifest(root, FORMAT_COLUMN)
    if manifest["base"] != shards.digest:
        raise InputError(
            f"column `{name}` belongs to base {manifest['base'][:12]}, these shards are {shards.digest[:12]}: "
            f"give it another name, or remove `{root}`"
        )
    return Column(shards.root, manifest)


class Column:
    """A published column: examples as (key, turn), each with a response and perhaps tensors. Cheap to open and to pickle."""

    def __init__(self, version: Place, manifest: dict[str, Any]) -> None:
        """`version`: the folder of the base shards."""
        self.version, self.manifest = version, manifest
        self.name: str = manifest["column"]
        self.root = version / "columns" / self.name
        self.files = Files(version, f"columns/{self.name}", manifest["files"])
        self.digest: str = manifest["sha256"]
        self.spec = build(ColumnSpec, manifest["spec"], str(self.root / MANIFEST))
        self.tars = MappedTars(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {"version": self.version, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["version"], state["manifest"])  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self.manifest["totals"]["examples"])

    @cached_property
    def table(self) -> pa.Table:
        """index.parquet: COLUMN_SCHEMA with `shard` and `sample` (row of the base index)."""
        return self.columns(None)

    def columns(self, names: list[str] | None) -> pa.Table:
        """Some columns of index.parquet, the file checked; text that repeats as dictionaries."""
        return read_columns(self.files, INDEX, names, ["stop", "turn"])

    def examples(self) -> pa.Table:
        """One row per example, in order of shard, key, position: COLUMN_SCHEMA, `shard` and `sample` (row of the base index)."""
        return self.table

    @cached_property
    def rows(self) -> ShardRows:
        """Index rows of single shards."""
        return ShardRows([entry["examples"] for entry in self.manifest["shards"]], self._shard_rows)

    def _shard_rows(self, shard: int) -> pa.Table:
        name = f"{shard_name(shard)}.parquet"
        return read_columns(self.files, name, None, [])

    def _cell(self, row: int, name: str) -> Any:
        _, place, rows = self.rows.find(row)
        return rows[name][place]

    def sample_of(self, row: int) -> tuple[int, int]:
        """(base shard, sample within it) that example `row` belongs to."""
        shard, place, rows = self.rows.find(row)
        return shard, rows["row"][place]

    def key_of(self, row: int) -> str:
        """Key of the sample that example `row` belongs to."""
        key: str = self._cell(row, "key")
        return key

    def read(self, row: int) -> Turn:
        """The turn of example `row`. Raises DataError naming tar and member."""
        data = self._member(row, "", "response.json")
        try:
            return Turn(**json.loads(data)[self._cell(row, "position")])
        except (ValueError, TypeError, LookupError, RecursionError):
            raise DataError(f"{self.root}: member `{self.key_of(row)}.response.json` is no list of turns") from None

    def signals(self, row: int, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """What example `row` has beside its response, as losses are given it (`data.signals.decode`); only `names` where given.

        Empty for a turn that is an error or has no token. Raises DataError naming tar and member.
        """
        wanted = self.spec.signals.names if names is None else self.spec.signals.names.intersection(names)
        if not wanted or self._cell(row, "stop") == "error" or not self._cell(row, "tokens"):
            return {}
        label = f"{self.root}/{shard_name(self.sample_of(row)[0])}.tar: member `{self.key_of(row)}.signals.safetensors`"
        turn = self._cell(row, "turn")
        try:
            tensors = tensors_in(self._member(row, "signals_", "signals.safetensors"), f"{turn}.", label)
            return decode(self.spec.signals, wanted, tensors, self._cell(row, "tokens"), self.spec.vocab_size)
        except DataError as error:
            raise error if str(self.root) in str(error) else DataError(f"{label}: turn `{turn}` {error}") from None

    def _member(self, row: int, part: str, suffix: str) -> bytes:
        shard, place, rows = self.rows.find(row)
        member = Member(rows[f"{part}offset"][place], rows[f"{part}bytes"][place], rows[f"{part}sha256"][place])
        return self.tars.member(f"{shard_name(shard)}.tar", member, f"{rows['key'][place]}.{suffix}")

    def verify(self) -> Iterator[str]:
        """Read every byte; one line for each file and member that is not what the manifest says."""
        bad = dict(self.files.problems())
        for name, problem in bad.items():
            yield f"{name}: {problem}"
            if name.endswith(".tar") and name.replace(".tar", ".parquet") not in bad:
                yield from self._bad_members(name)

    def _bad_members(self, name: str) -> Iterator[str]:
        try:
            for label, problem in bad_members(self.files.where(name), self._listed(int(Path(name).stem))):
                yield f"{name}: member `{label}` {problem}"
        except FileNotFoundError:
            return  # said already

    def _listed(self, shard: int) -> Iterator[tuple[str, Member]]:
        """Every member of a shard's tar once: several rows are turns of one."""
        rows, seen = self.rows.of(shard), set()
        for part, suffix in (("", "response.json"), ("signals_", "signals.safetensors")):
            for key, *where in zip(rows["key"], *(rows[f"{part}{what}"] for what in ("offset", "bytes", "sha256")), strict=True):
                member = Member(*where)
                if member.size and (key, suffix) not in seen:
                    seen.add((key, suffix))
                    yield f"{key}.{suffix}", member
