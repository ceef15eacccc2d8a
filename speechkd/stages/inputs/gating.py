"""Quality of a column: measured once, stored beside it, shown on a page; what a recipe's gates keep of it.

`columns/<name>/quality-<digest>.parquet` has one row per row of the column's index: `key`, `turn` and the measures of `teachers.gates`.
It is derived from column and base alone and may be removed at any time.
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
from speechkd.recipe import Recipe
from speechkd.stages.inputs.corpora import Corpus
from speechkd.teachers.gates import COMMON_VALUES, MEASURES_VERSION, Measures, ReferenceFacts, dropped, measure, normalised

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


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gates leave of a column, by row of its index."""

    keep_N: np.ndarray
    counts: dict[str, int]
    """reason -> answers, each under the first that holds; `failed`, `cut` and every gate that is set are there"""

    @property
    def dropped(self) -> int:
        return sum(self.counts.values())

    def line(self) -> str:
        """For people: ``kept 90 of 100 answers; dropped: refusal 8, contradiction 2``."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.items())
        return f"kept {int(self.keep_N.sum()):,} of {len(self.keep_N):,} answers; dropped: {reasons}"


def gate(recipe: Recipe, role: str, corpus: Corpus, column: Column) -> GateResult:
    """Which whole answers of a column the recipe's gates keep. Raises InputError where the column is not measured yet."""
    path = quality_path(recipe, role, column)
    table = read_quality(path, column)
    if table is None:
        raise InputError(f"column `{column.name}` of `{corpus.card.name}` is not measured for `gates`: run `speechkd teach` on this recipe")
    return _judge(recipe, column, table)


def assess(recipe: Recipe, role: str, corpus: Corpus, column: Column) -> GateResult:
    """Measure a published column where that is not done yet, and write its page."""
    path = quality_path(recipe, role, column)
    table = read_quality(path, column)
    if table is None:
        facts = _reference_facts(recipe, role, corpus)
        rows = progress(_measured(corpus, column, facts), f"gates {role}", total=len(column))
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA).replace_schema_metadata({"column": column.digest})
        write_parquet(path, table)
    kept = _judge(recipe, column, table)
    write_answers_page(column.root / PAGE, column.name, kept.line(), _gates(recipe, corpus, column, table))
    return kept


def quality_path(recipe: Recipe, role: str, column: Column) -> Path:
    """Where the measures of a column lie; other things to measure are another file."""
    gates = recipe.gates
    asr = None if gates.asr is None else [gates.asr.hypothesis, gates.asr.reference]
    made_of = digest([MEASURES_VERSION, _fields(recipe, role), asr, bool(gates.languages)])[:8]
    return column.root / f"quality-{made_of}.parquet"


def read_quality(path: Path, column: Column) -> pa.Table | None:
    """The measures, or None where there are none of this very column. Raises DataError for a file that is not what was written."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        return None
    except pa.ArrowException as error:
        raise DataError(f"{path}: {error}; remove it, it is made again") from None
    if (table.schema.metadata or {}).get(b"column") != column.digest.encode():
        return None
    index = column.read_index(["key", "turn"])
    same = table.schema.names == SCHEMA.names and all(table[name].to_pylist() == index[name].to_pylist() for name in ("key", "turn"))
    if not same:
        raise DataError(f"{path}: does not belong to its column; remove it, it is made again")
    return table


def _fields(recipe: Recipe, role: str) -> list[str]:
    """The metadata that the role's teacher read."""
    fields: list[str] = getattr(recipe.teachers[role], "fields", [])
    return fields


def _reference_facts(recipe: Recipe, role: str, corpus: Corpus) -> ReferenceFacts:
    gates, fields = recipe.gates, _fields(recipe, role)
    asr = None if gates.asr is None else (gates.asr.hypothesis, gates.asr.reference)
    return ReferenceFacts(
        fields, _classes(corpus, [*fields, *(task.field for task in corpus.card.tasks.values())]), asr, bool(gates.languages)
    )


def _classes(corpus: Corpus, fields: list[str]) -> dict[str, frozenset[str]]:
    """Values of the fields that are classes: the choices of the card's tasks, else all values, where they are text and few."""
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
    texts = corpus.shards.table["metadata"]
    fields = {f"task-{name}": task.field for name, task in corpus.card.tasks.items()}
    index = column.read_index(["key", "turn", "sample"])
    places = zip(index["key"].to_pylist(), index["turn"].to_pylist(), index["sample"].to_pylist(), strict=True)
    for row, (key, turn, sample) in enumerate(places):
        metadata: Metadata = json.loads(texts[sample].as_py())
        found = measure(facts, column.read(row).text, metadata, fields.get(turn))
        yield {"key": key, "turn": turn, **found._asdict()}


def _arrays(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy(zero_copy_only=False) for name in Measures._fields}


def _open(table: pa.Table) -> np.ndarray:
    return np.array([turn.startswith("open-") for turn in table["turn"].to_pylist()], dtype=bool)


def _judge(recipe: Recipe, column: Column, table: pa.Table) -> GateResult:
    """Failed and cut answers are no business of the gates: they are not trained on in any case."""
    stop_N = np.array(column.read_index(["stop"])["stop"].to_pylist(), dtype=object)
    keep_N = np.asarray(stop_N == "eos")
    counts = {"failed": int((stop_N == "error").sum()), "cut": int((stop_N == "length").sum())}
    for reason, bad_N in dropped(recipe.gates, _arrays(table), _open(table)).items():
        counts[reason] = int((keep_N & bad_N).sum())
        keep_N = keep_N & ~bad_N
    return GateResult(keep_N, counts)


def _gates(recipe: Recipe, corpus: Corpus, column: Column, table: pa.Table) -> Iterator[Gate]:
    """What the page shows of each gate: how many it drops, and the worst answers by its measure."""
    arrays, open_N = _arrays(table), _open(table)
    drops = dropped(recipe.gates, arrays, open_N)
    orders = {
        "refusal": arrays["refusal"].astype(float),
        "contradiction": arrays["contradictions"].astype(float),
        "coverage": np.where(open_N, 1.0 - np.nan_to_num(arrays["coverage"], nan=1.0), 0.0),
        "repetition": arrays["repetition"],
        "too long": arrays["words"].astype(float),
        "asr": np.nan_to_num(arrays["wer"], nan=0.0),
    }
    for reason in [*orders, *(reason for reason in drops if reason not in orders)]:
        badness_N = orders.get(reason, drops.get(reason, np.zeros(len(column))).astype(float))
        order = np.argsort(-badness_N, kind="stable")[:WORST]
        worst = [_worst(corpus, column, table, int(row), float(badness_N[row])) for row in order if badness_N[row] > 0]
        drop = int(drops[reason].sum()) if reason in drops else None
        yield Gate(reason, drop, float(np.mean(badness_N)) if len(column) else 0.0, worst)


def _worst(corpus: Corpus, column: Column, table: pa.Table, row: int, badness: float) -> WorstAnswer:
    turn = column.read(row)
    shard, place = column.sample_of(row)
    metadata = corpus.shards.table["metadata"][int(corpus.shards.starts[shard]) + place].as_py()
    return WorstAnswer(column.key_of(row), turn.turn, turn.question, turn.text, metadata, badness)
