"""Miniatures for real: variants that stand on other runs are planned on them, and runs side by side give a table."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from speechkd.core.files import read_json, write_json
from tests.e2e.conftest import ROOT

FOLDER = ROOT / "pipelines/miniatures"
PAPERS = sorted(path.stem for path in FOLDER.glob("*.yaml") if yaml.safe_load(path.read_text(encoding="utf-8")).get("needs"))
SCRIPT = """
import sys
sys.path[:0] = [sys.argv[1]]
import run
from pathlib import Path
from speechkd.core.config import build, read_yaml
from tables import Judged, markdown
mini = build(run.Miniature, read_yaml(Path(sys.argv[2])), "mini")
bench = run.Bench(mini, Path(sys.argv[3]), "small", 1, 2)
for name in mini.needs:
    bench.make_need(name)
scores = bench.make_all()
print(markdown("small", Judged(mini.claim, mini.seeds, mini.expect, scores, bench.make_base())))
"""


@pytest.mark.system
@pytest.mark.parametrize("paper", PAPERS)
def test_variants_that_stand_on_other_runs_are_planned(
    exported: Path, tmp_path: Path, paper: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student that hears, a language model that was merged, one or a decoder that a script built: each by a folder of its kind."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.syspath_prepend(ROOT / "standins")
    monkeypatch.chdir(ROOT)
    run, decoder = importlib.import_module("run"), importlib.import_module("build_decoder")
    llm, whisper = ROOT / "standins/llm", tmp_path / "whisper"
    decoder.with_decoder(ROOT / "standins/encoder", AutoTokenizer.from_pretrained(llm), layers=2, positions=32).save_pretrained(whisper)
    heard = shutil.copytree(exported, tmp_path / "heard")
    manifest = read_json(heard / "export.json")
    write_json(heard / "export.json", {**manifest, "student": {**manifest["student"], "encoder_window": "full"}})  # as the papers' tables
    for name, real in {"hearing/export": heard, "reader/merged/llm": llm, "narrow": llm, "whisper": whisper}.items():
        (tmp_path / "needs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "needs" / name).symlink_to(real)
    mini = run.load(paper)
    run.plan(run.Bench(mini, tmp_path, paper, 1, 2))
    runs = [need for need in mini.needs.values() if need.recipe]
    assert capsys.readouterr().out.count("regime      ") == len(runs) + len(mini.variants)


@pytest.mark.torture
def test_a_miniature_from_what_it_needs_to_its_table(workshop: Path, tmp_path: Path) -> None:
    """A need, two variants, two seeds, two forks at a time; a second time nothing is trained; a run that fails is named with its log."""
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"]["corpora"][0]["card"] = str(workshop / "tiny.yaml")
    steps = "train.regimes.kd=[{name: kd, steps: 3, mix: {kd: 1}}]"
    limits = ["evaluation.limit=4", "evaluation.controls=false", "evaluation.reads={form: json, fields: [language, gender]}"]
    mini = {
        "claim": "more steps hear more",
        "recipe": str(workshop / "recipe.yaml"),
        "seeds": [1, 2],
        "needs": {"before": {"recipe": str(workshop / "recipe.yaml"), "set": [steps, *limits]}},
        "base": "before",
        "set": ["student.init_from=NEEDS/before/export", "evaluation.tasks=[language, gender]", *limits],
        "variants": {"few": [steps], "more": [steps.replace("3", "6")]},
        "expect": {"mean": [["more", "few"]]},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(mini), encoding="utf-8")

    def go() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", SCRIPT, str(FOLDER), str(path), str(tmp_path / "runs")]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)})

    done = go()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| % right | before | few | more |" in done.stdout and "| language, read | " in done.stdout
    assert "| more above few | mean | " in done.stdout
    runs = tmp_path / "runs" / "small"
    trained = {name: (runs / name / "checkpoints").stat().st_mtime_ns for name in ("few-1", "few-2", "more-1", "more-2")}
    assert read_json(runs / "more-2" / "export" / "export.json")["step"] == 6
    again = go()
    assert again.returncode == 0 and again.stdout == done.stdout
    assert {name: (runs / name / "checkpoints").stat().st_mtime_ns for name in trained} == trained

    mini["variants"]["few"] = [steps.replace("3", "4")]  # another recipe than the one in the run's folder
    path.write_text(yaml.safe_dump(mini), encoding="utf-8")
    failed = go()
    assert failed.returncode == 1 and "few-1: failed" in failed.stderr
    assert "belongs to another recipe" in (runs / "few-1.log").read_text(encoding="utf-8")
