"""Quality gates: measures the answers of a teacher column once, and drops those that a recipe does not want to train on.

The measures (`teachers.gates`) are stored beside the column in `columns/<name>/quality-<digest>.parquet`, one row per row of the column's
index, with its `key` and `turn`. The file is derived from column and shards alone and may be removed at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import digest
from speechkd.core.log import progress
from speechkd.core.types import Metadata
from speechkd.data.columns.column import Column
from speechkd.data.storage.manifest import write_parquet
from speechkd.evaluation.answers_page import Gate, WorstAnswer, write_answers_page
from speechkd.stages.inputs.corpora import Corpus
from speechkd.teachers.base import TeacherConfig
from speechkd.teachers.gates import COMMON_VALUES, MEASURES_VERSION, GateConfig, Measures, ReferenceFacts, dropped, measure, normalised

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("turn", pa.string()),
        ("coverage", pa.float64()),
        ("contradictions", pa.int32()),
        ("refusal", pa.bool_()),
        ("repetition", pa.float64()),
        ("words", pa.int32()),
        ("language", pa.string()),
        ("trace", pa.bool_()),
        ("wer", pa.float64()),
    ]
)
PAGE = "answers.html"
WORST = 12
"""Answers that the page shows for each gate"""


@dataclass(frozen=True, slots=True)
class GateResult:
    """Which rows of a column's index the gates keep, and how many they drop for which reason."""

    keep_N: np.ndarray
    """bool"""
    counts: dict[str, int]
    """reason -> dropped answers, each counted under its first reason; has `failed`, `cut` and every gate that is set"""

    @property
    def dropped(self) -> int:
        """Dropped answers in all."""
        return sum(self.counts.values())

    def line(self) -> str:
        """Summary, such as ``kept 90 of 100 answers; dropped: refusal 8, contradiction 2``."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.items())
        return f"kept {int(self.keep_N.sum()):,} of {len(self.keep_N):,} answers; dropped: {reasons}"


def apply_gates(gates: GateConfig, teacher: TeacherConfig, corpus: Corpus, column: Column) -> GateResult:
    """Which answers of `teacher`'s column the gates keep. Raises InputError where the column is not measured yet."""
    table = read_quality(quality_path(gates, teacher, column), column)
    if table is None:
        raise InputError(f"column `{column.name}` of `{corpus.card.name}` is not measured for `gates`: run `speechkd teach` on this recipe")
    return _gate_result(gates, column, table)


def measure_column(role: str, teacher: TeacherConfig, gates: GateConfig, corpus: Corpus, column: Column) -> GateResult:
    """Measure the published column of a teacher role, unless that is done, and write the page of its worst answers."""
    path = quality_path(gates, teacher, column)
    table = read_quality(path, column)
    if table is None:
        facts = _reference_facts(gates, teacher, corpus)
        rows = progress(_measured(corpus, column, facts), f"gates {role}", total=len(column))
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA).replace_schema_metadata({"column": column.digest})
        write_parquet(path, table)
    result = _gate_result(gates, column, table)
    write_answers_page(column.root / PAGE, column.name, result.line(), _page_gates(gates, corpus, column, table))
    return result


def quality_path(gates: GateConfig, teacher: TeacherConfig, column: Column) -> Path:
    """Where the measures of a column are stored. Thresholds do not change the file's name; settings that change what is measured do."""
    asr = None if gates.asr is None else [gates.asr.hypothesis, gates.asr.reference]
    measured = digest([MEASURES_VERSION, teacher.metadata_fields(), asr, bool(gates.languages)])[:8]
    return column.root / f"quality-{measured}.parquet"


def read_quality(path: Path, column: Column) -> pa.Table | None:
    """The measures of a column, or None where there are none or they were taken from older content. Raises DataError for a damaged file."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        return None
    except pa.ArrowException as error:
        raise DataError(f"{path}: {error}; remove it, and `speechkd teach` measures again") from None
    if (table.schema.metadata or {}).get(b"column") != column.digest.encode():
        return None
    index = column.read_index(["key", "turn"])
    same = table.schema.names == SCHEMA.names and all(table[name].to_pylist() == index[name].to_pylist() for name in ("key", "turn"))
    if not same:
        raise DataError(f"{path}: does not belong to its column; remove it, and `speechkd teach` measures again")
    return table


def _reference_facts(gates: GateConfig, teacher: TeacherConfig, corpus: Corpus) -> ReferenceFacts:
    fields = teacher.metadata_fields()
    asr = None if gates.asr is None else (gates.asr.hypothesis, gates.asr.reference)
    return ReferenceFacts(
        fields, _classes(corpus, [*fields, *(task.field for task in corpus.card.tasks.values())]), asr, bool(gates.languages)
    )


def _classes(corpus: Corpus, fields: list[str]) -> dict[str, frozenset[str]]:
    """field -> its possible values, for fields with 2 to COMMON_VALUES of them: choices of the card's tasks, and values that occur."""
    seen: dict[str, set[str]] = {name: set() for name in fields}
    for task in corpus.card.tasks.values():
        if task.kind == "choice":
            seen.setdefault(task.field, set()).update(task.choices)
    for text in corpus.shards.table["metadata"].to_pylist():
        metadata: Metadata = json.loads(text)
        for name, values in seen.items():
            if len(values) <= COMMON_VALUES and isinstance(metadata.get(name), str):
                values.add(str(metadata[name]))
    words = {name: frozenset(" ".join(normalised(value)) for value in values) - {""} for name, values in seen.items()}
    return {name: values for name, values in words.items() if 2 <= len(values) <= COMMON_VALUES}


def _measured(corpus: Corpus, column: Column, facts: ReferenceFacts) -> Iterator[dict[str, object]]:
    """Rows of `SCHEMA`, in the order of the column's index."""
    texts = corpus.shards.table["metadata"]
    fields = {f"task-{name}": task.field for name, task in corpus.card.tasks.items()}
    index = column.read_index(["key", "turn", "sample"])
    rows = zip(index["key"].to_pylist(), index["turn"].to_pylist(), index["sample"].to_pylist(), strict=True)
    for row, (key, turn, sample) in enumerate(rows):
        metadata: Metadata = json.loads(texts[sample].as_py())
        found = measure(facts, column.read(row).text, metadata, fields.get(turn))
        yield {"key": key, "turn": turn, **found._asdict()}


def _measure_arrays(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy(zero_copy_only=False) for name in Measures._fields}


def _is_open(table: pa.Table) -> np.ndarray:
    """bool [N]: whether a row answers an open instruction, not a task."""
    return np.array([turn.startswith("open-") for turn in table["turn"].to_pylist()], dtype=bool)


def _gate_result(gates: GateConfig, column: Column, table: pa.Table) -> GateResult:
    """Apply the gates to the measures in `table`. Failed and cut answers are always dropped, under reasons of their own."""
    stop_N = np.array(column.read_index(["stop"])["stop"].to_pylist(), dtype=object)
    keep_N = np.asarray(stop_N == "eos")
    counts = {"failed": int((stop_N == "error").sum()), "cut": int((stop_N == "length").sum())}
    for reason, bad_N in dropped(gates, _measure_arrays(table), _is_open(table)).items():
        counts[reason] = int((keep_N & bad_N).sum())
        keep_N = keep_N & ~bad_N
    return GateResult(keep_N, counts)


def _page_gates(gates: GateConfig, corpus: Corpus, column: Column, table: pa.Table) -> Iterator[Gate]:
    """For the page: how many answers each gate drops, and the worst answers by its badness (its measure, turned so that higher is worse).

    A gate without such a measure has badness 1 for the answers that it drops.
    """
    arrays, open_N = _measure_arrays(table), _is_open(table)
    drops = dropped(gates, arrays, open_N)
    badness = {
        "refusal": arrays["refusal"].astype(float),
        "contradiction": arrays["contradictions"].astype(float),
        "coverage": np.where(open_N, 1.0 - np.nan_to_num(arrays["coverage"], nan=1.0), 0.0),
        "repetition": arrays["repetition"],
        "too long": arrays["words"].astype(float),
        "asr": np.nan_to_num(arrays["wer"], nan=0.0),
    }
    for reason in [*badness, *(reason for reason in drops if reason not in badness)]:
        badness_N = badness.get(reason, drops.get(reason, np.zeros(len(column))).astype(float))
        order = np.argsort(-badness_N, kind="stable")[:WORST]
        worst = [_worst(corpus, column, table, int(row), float(badness_N[row])) for row in order if badness_N[row] > 0]
        drop = int(drops[reason].sum()) if reason in drops else None
        yield Gate(reason, drop, float(np.mean(badness_N)) if len(column) else 0.0, worst)


def _worst(corpus: Corpus, column: Column, table: pa.Table, row: int, badness: float) -> WorstAnswer:
    turn = column.read(row)
    shard, offset = column.sample_of(row)
    metadata = corpus.shards.table["metadata"][int(corpus.shards.starts[shard]) + offset].as_py()
    return WorstAnswer(column.key_of(row), turn.turn, turn.question, turn.text, metadata, badness)
