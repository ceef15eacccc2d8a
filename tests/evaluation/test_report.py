"""The run report shows the folder's content, says what is missing, and runs no code and makes no request."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechkd.evaluation.report import SAMPLES, write_report
from speechkd.evaluation.report_charts import charts_of
from speechkd.evaluation.starts import starts_of
from speechkd.tracking.journal import JOURNAL, Journal, read_journal

EVIL = "</script><script>document.title='owned'</script><img src=https://evil.example/x onerror=\"document.title='owned'\">'\"&{{ 7*7 }}"


def clip(seconds: float = 0.2) -> str:
    samples = np.sin(np.arange(int(16000 * seconds)) / 20).astype("float32")
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16000, format="FLAC")
    return base64.b64encode(stream.getvalue()).decode()


def sample(**changes: Any) -> str:
    row: dict[str, Any] = {"key": "k1", "split": "test", "task": "language", "question": "Which?", "teacher": "German", "student": "Dutch"}
    row |= {"reference": "German", "correct": False, "metadata": {"transcript": "drei"}, "audio": clip()}
    return json.dumps(row | changes) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my run"
    (folder / "eval" / "known").mkdir(parents=True)
    journal = Journal(folder / JOURNAL)
    journal.status("RUNNING")
    journal.params({"lr": 0.001})
    for step in range(1, 200):
        journal.metrics(step, {"train/loss": 3.0 / step, "train/loss_ce": 1.0 / step, "train/lr": 0.1, f"{EVIL}": 1.0})
    journal.metrics(3, {"train/grad_norm": float("nan")})
    journal.metrics(4, {"train/grad_norm": float("inf")})
    journal.status("FINISHED")
    task = {"student": 0.875, "unseen": None, "teacher": 1.0, "chance": 0.25, "shuffled": 0.26, "untrained": 0.0, "ctc": 0.66}
    task |= {"unparsable": 3, "n": 321}
    far = {**task, "accented": 0.5, "accented_n": 77, "splits": {"student": "test"}}
    (folder / "eval" / "summary.json").write_text(json.dumps({"tasks": {"language": task, EVIL: far}, "seconds": {"train": 61.2}}))
    (folder / "eval" / "known" / "results.json").write_text(json.dumps({"language": {"note": EVIL}}))
    rows = [sample(key=f"k{number}", correct=number % 2 == 0) for number in range(40)]
    rows += [sample(task="evil", student=EVIL, question=EVIL, metadata={EVIL: EVIL}, teacher=None), '{"torn']
    (folder / "eval" / "samples.jsonl").write_text("".join(rows))
    (folder / "recipe.yaml").write_text(f"name: {EVIL}\n")
    (folder / "datasets.json").write_text(json.dumps({"corpus": {"hours": 6.25, "samples": 4242}}))
    return folder


class Page(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_it_shows_what_the_folder_holds(run: Path) -> None:
    out = write_report(run, run / "report.html")
    page = read(out)
    shown = ["my run", "finished"]
    shown += ["87.5 %", "100.0 %", "321", "66.0 %", "train/loss_ce", "1 min 01 s", "4,242", "Dutch", "transcript: drei"]
    assert [words for words in shown if words not in page.text] == []
    assert sum(tag == "audio" for tag, _ in page.elements) == SAMPLES
    assert "student, accented" in page.text and "None" not in page.text
    assert out.stat().st_size < 6e6


def test_every_start_is_shown_with_its_time_and_its_end(run: Path) -> None:
    """Two resumes: one after a failure with a reason, one after a launcher that died; the time of all three is what training took."""
    records: list[dict[str, Any]] = []
    at = 1_700_000_000_000
    failed = {"status": "FAILED", "reason": EVIL}
    for steps, end in ((40, [failed]), (60, []), (90, [])):
        records.append({"kind": "status", "status": "RUNNING", "time_ms": at})
        records.append({"kind": "metric", "step": steps, "time_ms": at + 60_000, "values": {"train/loss": 1.0}})
        records += [{"kind": "status", "time_ms": at + 60_000, **status} for status in end]
        at += 3_600_000
    records.append({"kind": "status", "status": "FINISHED", "time_ms": at})
    records.append({"kind": "metric", "step": 90, "time_ms": at + 9_000_000, "latest": True, "values": {"eval/a": 1.0}})
    (run / JOURNAL).write_text("".join(json.dumps(record) + "\n" for record in records))
    starts = starts_of(read_journal(run / JOURNAL))
    assert [(s.at, s.reached, s.seconds, s.status) for s in starts] == [
        (0, 40, 60, "FAILED"), (40, 60, 60, "FAILED"), (60, 90, 3600, "FINISHED")
    ]  # fmt: skip
    text = read(write_report(run, run / "report.html")).text
    shown = [
        "Training was started 3 times, 1 h 02 min in all",
        "from step 40 to 60",
        f"failed: {EVIL}",
        "died without a word",
        "dotted line",
    ]
    assert [words for words in shown if words not in text] == []


def test_stages_follow_each_other_and_totals_are_readable(run: Path) -> None:
    (run / "seconds.json").write_text(json.dumps({"eval": 3, "extra": 1, "shard": 2, "teach": 61, "train": 3600}))
    totals = {"bytes": 162639872, "seconds": 7311.9, "samples": 7012, "version": "v1"}
    (run / "datasets.json").write_text(json.dumps({"corpus": totals}))
    text = read(write_report(run, run / "report.html")).text
    bars = text[text.index("Where the time went") : text.index("Data and settings")]
    places = [bars.index(stage) for stage in ("shard", "teach", "train", "eval", "extra")]
    assert places == sorted(places)
    assert all(words in text for words in ("162.6 MB", "2 h 01 min", "7,012", "v1"))


def test_the_only_part_of_a_loss_is_not_drawn_over_it() -> None:
    points = [(step, 100.0 / step**2) for step in range(1, 30)]
    [same] = charts_of({"train/loss": points, "train/loss_ce": list(points)})
    assert [name for name, *_ in same.legend] == ["train/loss"]
    [parts] = charts_of({"train/loss": points, "train/loss_ce": points[:9]})
    assert [name for name, *_ in parts.legend] == ["train/loss", "train/loss_ce"]


def test_untrusted_text_stays_text(run: Path) -> None:
    page = read(write_report(run, run / "report.html"))
    assert page.text.count("document.title='owned'") >= 6  # visible: task, metric, question, answer, metadata, recipe, results
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "link", "object", "embed", "base", "form"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_the_page_reaches_for_nothing_outside(run: Path) -> None:
    page = read(write_report(run, run / "report.html"))
    names = ("src", "href", "xlink:href", "srcset", "data", "poster")
    loads = [value or "" for _, attributes in page.elements for name, value in attributes.items() if name in names]
    assert loads and all(value.startswith(("data:audio/", "#")) for value in loads)
    text = (run / "report.html").read_text()
    assert "@import" not in text and "url(http" not in text
    assert "default-src 'none'" in text


def test_ids_of_charts_do_not_clash(run: Path) -> None:
    text = write_report(run, run / "report.html").read_text()
    wanted = set(re.findall(r"url\(#([^)]+)\)", text))
    assert wanted and [name for name in wanted if text.count(f'id="{name}"') != 1] == []


def test_an_empty_folder_says_what_it_lacks(tmp_path: Path) -> None:
    page = read(write_report(tmp_path, tmp_path / "report.html"))
    for name in ("eval/summary.json", "eval/samples.jsonl", "journal.jsonl", "recipe.yaml", "datasets.json"):
        assert name in page.text


ODD = '{"tasks": {"a": 1, "b": {"student": "x", "n": true, "chance": 1e999}}}'


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"tasks": [1], "seconds": 3}', ODD])
def test_a_broken_summary_does_not_break_the_page(tmp_path: Path, text: str) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "summary.json").write_text(text)
    page = read(write_report(tmp_path, tmp_path / "report.html"))
    assert ("No evaluation yet" in page.text) == (text != ODD)


@pytest.mark.parametrize("audio", [None, "", "!!!", base64.b64encode(b"<script>").decode(), clip(61.0), "A" * (4 << 20)])
def test_audio_that_is_no_short_sound_is_left_out(tmp_path: Path, audio: str | None) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "samples.jsonl").write_text(sample(audio=audio))
    page = read(write_report(tmp_path, tmp_path / "report.html"))
    assert "cannot be played" in page.text and "audio" not in {tag for tag, _ in page.elements}


def test_clips_are_spread_over_tasks_and_both_outcomes(run: Path) -> None:
    rows = [sample(key=f"k{number}", task="many", correct=True, student="yes") for number in range(100)]
    rows += [sample(key=f"w{number}", task="few", correct=number > 0) for number in range(3)]
    (run / "eval" / "samples.jsonl").write_text("".join(rows))
    page = read(write_report(run, run / "report.html"))
    assert all(f"w{number}" in page.text for number in range(3)) and "wrong" in page.text


@pytest.mark.system
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_real_browser_runs_nothing_of_it(run: Path, tmp_path: Path) -> None:
    out = write_report(run, run / "report.html")
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", out.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>my run · speechkd</title>" in dom
