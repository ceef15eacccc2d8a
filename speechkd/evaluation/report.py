"""Writes the HTML report of a run from its folder: one self-contained page without scripts or network access.

Names, transcripts and answers are untrusted text. Jinja2 escapes all of it, charts contain no text except axis numbers, sounds are decoded
before they are embedded, and the page's content policy forbids scripts and outside resources.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from speechkd.core.files import write_text
from speechkd.evaluation.report_charts import charts_of, waveform
from speechkd.evaluation.report_details import Details, details_of
from speechkd.evaluation.starts import starts_of
from speechkd.tracking.journal import JOURNAL, metric_series, read_journal
from speechkd.tracking.redact import flat_texts

SAMPLES, SAMPLE_BYTES, SAMPLE_SECONDS = 12, 2 << 20, 60.0
STAGES = ("shard", "teach", "train", "export", "eval", "report")
SYSTEMS = ("student", "unseen", "teacher", "chance", "shuffled", "untrained")
_SOUNDS = {b"fLaC": "audio/flac", b"RIFF": "audio/wav", b"OggS": "audio/ogg"}


def write_report(run_dir: Path, out: Path) -> Path:
    """Write the page about `run_dir` to `out` and return it. No file is required: the page says what is missing.

    Reads journal.jsonl, recipe.yaml, datasets.json ({name: {fact: value}}), eval/summary.json, eval/samples.jsonl, eval/*/results.json, and
    seconds.json ({stage: seconds}; else the summary's `seconds`).
    """
    templates = PackageLoader("speechkd.evaluation", ".")
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": _percent, "number": _number, "clock": _clock, "moment": _moment}
    environment.tests["count"] = _is_count
    page = environment.get_template("report.html.j2").render(**_content(run_dir))
    write_text(out, page)
    return out


def _content(run_dir: Path) -> dict[str, Any]:
    journal = run_dir / JOURNAL
    series = metric_series(journal)
    starts = starts_of(read_journal(journal))
    seconds = _numbers(_json(run_dir / "seconds.json") or _json(run_dir / "eval" / "summary.json").get("seconds"))
    if starts:  # of every start, whichever command made it
        seconds["train"] = max(seconds.get("train", 0.0), sum(start.seconds for start in starts))
    summary = _json(run_dir / "eval" / "summary.json")
    tasks = _tasks(summary)
    return {
        "name": run_dir.resolve().name,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "head": _head(journal),
        "tiles": _tiles(tasks, series),
        "tasks": tasks,
        "details": _details(summary),
        "columns": _columns(tasks),
        "bars": _bars(tasks),
        "seconds": _in_order(seconds),
        "starts": starts,
        "charts": charts_of(series, [start.at for start in starts[1:]]),
        "single": {name: points[-1][1] for name, points in sorted(series.items()) if len(points) == 1},
        "samples": list(_samples(run_dir / "eval" / "samples.jsonl")),
        "datasets": {name: _facts(facts) for name, facts in _json(run_dir / "datasets.json").items() if isinstance(facts, Mapping)},
        "results": {path.parent.name: flat_texts(_json(path)) for path in sorted((run_dir / "eval").glob("*/results.json"))},
        "recipe": _text(run_dir / "recipe.yaml"),
        "has_journal": journal.exists(),
    }


def _head(journal: Path) -> dict[str, Any]:
    status, start, end = "no status", None, None
    named: dict[str, dict[str, str]] = {"param": {}, "tag": {}}
    for record in read_journal(journal):
        start, end = start or record["time_ms"], record["time_ms"]
        if record["kind"] == "status":
            status = record["status"]
        elif record["kind"] in named:
            named[record["kind"]] |= record["values"]
    began = _moment(start) if start else None
    seconds = (end - start) / 1000 if start and end else None
    return {"status": status, "began": began, "seconds": seconds, "params": named["param"], "tags": named["tag"]}


def _tiles(tasks: Mapping[str, Mapping[str, Any]], series: Mapping[str, list[tuple[int, float]]]) -> list[tuple[str, str, str]]:
    """The headline numbers, as (value, label, style)."""
    tiles = []
    for key, label in (("student", "student, mean of tasks"), ("unseen", "student, unseen"), ("teacher", "teacher"), ("chance", "chance")):
        values = [task[key] for task in tasks.values() if task.get(key) is not None]
        if values:
            coverage = f" ({len(values)} of {len(tasks)} tasks)" if len(values) < len(tasks) else ""
            tiles.append((_percent(sum(values) / len(values)), label + coverage, key))
    steps = max((points[-1][0] for name, points in series.items() if name.startswith("train/")), default=None)
    if steps is not None:
        tiles.append((f"{steps:,}", "steps", "plain"))
    return tiles


def _tasks(summary: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Task -> its numbers; None for anything that is not a number."""
    tasks = summary.get("tasks")
    if not isinstance(tasks, Mapping):
        return {}
    rows = {str(name): task for name, task in tasks.items() if isinstance(task, Mapping)}
    return {name: {str(key): _finite(value) for key, value in task.items()} for name, task in rows.items()}


def _details(summary: Mapping[str, Any]) -> dict[str, Details]:
    """Task -> what is known of it beyond its scores."""
    tasks = summary.get("tasks")
    rows = tasks.items() if isinstance(tasks, Mapping) else ()
    return {str(name): details_of(task) for name, task in rows if isinstance(task, Mapping)}


def _columns(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Table columns: known systems in order, other splits, then the main split's counts (other counts are only in summary.json)."""
    more = {key for task in tasks.values() for key, value in task.items() if value is not None and not _is_count(key)} - {*SYSTEMS}
    return [*SYSTEMS, *sorted(more), "unparsable", "n"]


def _is_count(key: str) -> bool:
    return key in ("n", "unparsable", "hears") or key.endswith(("_n", "_unparsable"))


def _bars(tasks: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(key, label, style) of each bar: teacher, student on each split (`unseen`, and every `x` with a count `x_n`), controls."""
    splits = sorted({key.removesuffix("_n") for task in tasks.values() for key in task if key.endswith("_n")} - {*SYSTEMS})
    return [
        ("teacher", "teacher (reads text)", "teacher"),
        ("student", "student", "student"),
        *((split, f"student, {split}", "unseen") for split in ("unseen", *splits)),
        ("shuffled", "shuffled audio", "control"),
        ("untrained", "untrained projector", "control"),
    ]


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip with its question and answers."""

    facts: dict[str, str]
    metadata: dict[str, str]
    correct: bool | None
    sound: str | None
    """data URI; None if the audio cannot be embedded"""
    wave: Markup | None
    seconds: float | None


def _samples(path: Path) -> Iterator[Sample]:
    """About a dozen samples, spread over tasks, splits, right and wrong answers."""
    tasks: dict[str, dict[tuple[bool, str], list[dict[str, Any]]]] = {}
    for line in (_text(path) or "").split("\n"):  # not splitlines(), which also splits at characters inside texts
        try:
            row = json.loads(line)
        except ValueError:  # last line torn by a kill
            continue
        if isinstance(row, dict):
            tasks.setdefault(str(row.get("task")), {}).setdefault((row.get("correct") is False, str(row.get("split"))), []).append(row)
    spread = _in_turn([_in_turn([rows for _, rows in sorted(groups.items())]) for _, groups in sorted(tasks.items())])
    for row in sorted(spread[:SAMPLES], key=lambda row: str(row.get("task"))):
        facts = {key: _words(row.get(key)) for key in ("key", "split", "task", "question", "teacher", "student", "reference")}
        metadata = row.get("metadata")
        correct = row.get("correct")
        sound, wave, seconds = _sound(row.get("audio"))
        yield Sample(
            facts=facts,
            metadata=flat_texts(metadata) if isinstance(metadata, Mapping) else {},
            correct=correct if isinstance(correct, bool) else None,
            sound=sound,
            wave=wave,
            seconds=seconds,
        )


def _in_turn(groups: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The first of each group, then the second of each, and so on."""
    return [row for turn in zip_longest(*groups) for row in turn if row is not None]


def _sound(text: object) -> tuple[str | None, Markup | None, float | None]:
    """Decode a base64 clip within size limits; (data URI, waveform, seconds), all None if it is not valid audio."""
    import soundfile

    if not isinstance(text, str) or len(text) > SAMPLE_BYTES * 4 // 3:
        return None, None, None
    try:
        data = base64.b64decode(text, validate=True)
        with soundfile.SoundFile(io.BytesIO(data)) as clip:
            if data[:4] not in _SOUNDS or not 0 < clip.frames <= SAMPLE_SECONDS * clip.samplerate:
                return None, None, None
            samples_TC, rate = clip.read(dtype="float32", always_2d=True), clip.samplerate
    except (binascii.Error, soundfile.LibsndfileError):
        return None, None, None
    uri = f"data:{_SOUNDS[data[:4]]};base64,{base64.b64encode(data).decode()}"
    return uri, waveform(samples_TC.mean(axis=1)), len(samples_TC) / rate


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _words(value: object) -> str:
    return "" if value is None else str(value)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _numbers(values: object) -> dict[str, float]:
    numbers = {str(key): _finite(value) for key, value in values.items()} if isinstance(values, Mapping) else {}
    return {key: value for key, value in numbers.items() if value is not None}


def _in_order(seconds: Mapping[str, float]) -> dict[str, float]:
    """Pipeline stages in order, then all others."""
    return {name: seconds[name] for name in [*STAGES, *sorted(seconds)] if name in seconds}


def _facts(totals: Mapping[str, Any]) -> dict[str, str]:
    """A dataset's totals, formatted."""
    texts = flat_texts(totals)
    for name, value in totals.items():
        number = _finite(value)
        if number is not None:
            texts[name] = _clock(number) if name == "seconds" else f"{number / 1e6:,.1f} MB" if name == "bytes" else _number(number)
    return texts


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
