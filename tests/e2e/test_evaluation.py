"""Held-out loss while a run trains, then its evaluation in two parts: the same answers as in one, and graded again without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechkd.tracking.journal import JOURNAL, metric_series
from tests.e2e.conftest import speechkd

pytestmark = pytest.mark.system


def test_a_run_measures_what_it_is_not_trained_on_and_two_processes_evaluate_it(workshop: Path) -> None:
    run = workshop / "runs/measured"
    held_out = "train.held_out={split: test_known, every: 2, examples: 12, batch_size: 4}"
    controls = "evaluation.more_controls=[silence, noise, text_only]"
    words = (
        workshop / "recipe.yaml",
        *(w for s in ("name=measured", "train.regimes.kd.0.steps=5", held_out, controls) for w in ("--set", s)),
    )
    done = speechkd("train", *words, "--ranks", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    series = metric_series(run / JOURNAL)
    assert [step for step, _ in series["held_out/loss"]] == [2, 4, 5]
    losses = dict(series["held_out/loss"])
    record = json.loads((run / "held_out.json").read_text())
    best = min(losses, key=lambda step: losses[step])
    assert record["best"] == {"step": best, "loss": losses[best]} and record["stopped"] is None
    assert (run / f"checkpoints/step-{best:06d}").is_dir()
    assert {"held_out/gender_english", "held_out/gender_german", "held_out/language"} <= set(series)

    first = speechkd("eval", *words, "--partition", "1/2")
    assert first.returncode == 0 and "has asked its share" in first.stderr and not (run / "eval/summary.json").exists(), first.stderr[
        -2000:
    ]
    second = speechkd("eval", *words, "--partition", "0/2")
    assert second.returncode == 0, second.stderr[-3000:]
    whole = speechkd("eval", *words, "--checkpoint", run / "export")
    assert whole.returncode == 0, whole.stderr[-3000:]
    name = "predictions-tiny.jsonl"
    assert (run / "eval" / name).read_bytes() == (run / "eval/export" / name).read_bytes()
    rows = json.loads((run / "eval/summary.json").read_text())["tasks"]
    assert rows == json.loads((run / "eval/export/summary.json").read_text())["tasks"]
    assert {p["system"] for p in map(json.loads, (run / "eval" / name).read_text().splitlines())} == {
        *("student", "untrained", "teacher", "silence", "noise", "text_only")
    }
    for task, row in rows.items():
        assert row["permutation"]["pairings"] in ("all", "10000") and row["teacher"] >= 0.9, (task, row)
        assert set(row["controls"]) == {"silence", "noise", "text_only"}, row["controls"]
        assert set(row["intervals"]["student"]) == {"clips", "speakers"} and row["slices"]["language"]
    assert rows["digits"]["edits"]["total"] > 0 and "whisper" in rows["digits"]["parsers"] and "mmau" in rows["gender"]["parsers"]

    again = speechkd("eval", *words, "--regrade", "--set", "evaluation.slices=[gender]", "--against", run / "eval/export")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "eval student" not in again.stderr and "+0.0 points" in again.stderr
    assert list(json.loads((run / "eval/summary.json").read_text())["tasks"]["language"]["slices"]) == ["gender"]
