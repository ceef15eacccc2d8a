"""The shipped stand-ins are small, match their recorded scores, and score the same when rebuilt from the card."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, WhisperFeatureExtractor

from speechkd.models.projectors.query_bank import QueryBank, QueryBankConfig
from speechkd.models.projectors.whisper_init import init_from_whisper

ROOT = Path(__file__).parents[2]
STANDINS = ROOT / "standins"
TOLERANCE = 0.05
"""A rebuild on another processor sums in another order, so training takes another path to about the same place"""


def _accuracies(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    for key, value in node.items() if isinstance(node, dict) else ():
        if key == "accuracy":
            yield path, float(value)
        else:
            yield from _accuracies(value, f"{path}/{key}")


def _scores(path: Path, part: str) -> dict[str, float]:
    return dict(_accuracies(json.loads(path.read_text(encoding="utf-8"))[part]))


def test_scores_are_of_the_weights_that_ship() -> None:
    scores = json.loads((STANDINS / "scores.json").read_text(encoding="utf-8"))
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in STANDINS.glob("*/*.safetensors")}
    recorded = [scores["llm"]["sha256"], *scores["encoder"]["sha256"].values()]
    assert set(recorded) == digests


def test_they_fit_into_8_mb() -> None:
    assert sum(path.stat().st_size for path in STANDINS.rglob("*") if path.is_file() and "__pycache__" not in path.parts) <= 8_000_000


def test_a_q_former_starts_from_the_decoder_that_is_built_over_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor fits; the encoder below it stays the one that ships, whatever the decoder learned."""
    monkeypatch.syspath_prepend(STANDINS)
    build = importlib.import_module("build_decoder")
    tokenizer, extractor = AutoTokenizer.from_pretrained(STANDINS / "llm"), WhisperFeatureExtractor.from_pretrained(STANDINS / "encoder")
    model = build.with_decoder(STANDINS / "encoder", tokenizer, layers=2, positions=32)
    before = model.model.decoder.layers[1].fc1.weight.detach().clone()
    clips = [np.random.default_rng(i).integers(-999, 999, 16000).astype(np.int16) for i in range(2)]
    build.train(model, clips, ["eins zwei", "three"], extractor, tokenizer, steps=2)
    assert not torch.equal(before, model.model.decoder.layers[1].fc1.weight)
    model.save_pretrained(tmp_path)
    saved, shipped = load_file(tmp_path / "model.safetensors"), load_file(STANDINS / "encoder/model.safetensors")
    assert all(torch.equal(saved[f"model.{name}"], value) for name, value in shipped.items() if name.startswith("encoder."))
    bank = QueryBank(QueryBankConfig(languages=["german", "english"], queries=24, heads=4, init_from=str(tmp_path)), 128, 128)
    fit = init_from_whisper(bank)
    assert fit is not None and (len(fit.fitting), fit.misfit) == (fit.total, None)
    assert torch.equal(bank.decoder.layers[1].fc1.weight, saved["model.decoder.layers.1.fc1.weight"])


def _rebuilt(folder: Path, steps: dict[str, list[str]]) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Run both scripts side by side, one core each; yields what ships scores, and what was built, for each."""
    scripts = {"llm": "build_llm.py", "encoder": "build_encoder.py"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    builds = {}
    for part, script in scripts.items():
        command = [
            sys.executable,
            str(STANDINS / script),
            "--out",
            str(folder / part),
            "--scores",
            str(folder / f"{part}.json"),
            *steps[part],
        ]
        with (folder / f"{part}.log").open("w") as log:
            builds[part] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    for part, build in builds.items():
        assert build.wait(timeout=2300) == 0, (folder / f"{part}.log").read_text()[-2000:]
        yield _scores(STANDINS / "scores.json", part), _scores(folder / f"{part}.json", part)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_scripts_build_and_score_both(tmp_path: Path) -> None:
    """A few steps on few clips, which not every task asks about; what the scores are worth is the next test's."""
    card = yaml.safe_load((ROOT / "shards/cards/minibabel.yaml").read_text(encoding="utf-8"))
    for split in card["source"]["splits"].values():
        split["clips"] = max(24, split["clips"] // 40)
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(card, allow_unicode=True, sort_keys=False), encoding="utf-8")
    few = ["--card", str(tmp_path / "few.yaml"), "--steps"]
    for shipped, built in _rebuilt(tmp_path, {"llm": [*few, "0.01"], "encoder": [*few, "20"]}):
        assert set(built) <= set(shipped) and len(built) >= 2


@pytest.mark.torture
@pytest.mark.timeout(2400)
def test_a_rebuild_scores_the_same(tmp_path: Path) -> None:
    """Within 5 points on every task and split."""
    for shipped, rebuilt in _rebuilt(tmp_path, {"llm": [], "encoder": []}):
        assert set(shipped) == set(rebuilt) and len(shipped) >= 4
        assert all(rebuilt[name] >= shipped[name] - TOLERANCE for name in shipped), (shipped, rebuilt)
