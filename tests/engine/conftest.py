"""All rank jobs of the engine's tests in three launches, because starting ranks costs more than what they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.ranks import run, save_causal_lm, save_whisper

SAVED_AT, STEPS = 20, 50


@dataclass(frozen=True)
class Campaign:
    """What rank 0 answered to every job, by name, and where the jobs left their files."""

    folder: Path
    answers: dict[str, Any]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small pretrained models: one file with tied head, many files with a head of its own, a Whisper."""
    folder = tmp_path_factory.mktemp("models")
    found = {
        "tied": save_causal_lm(folder / "tied"),
        "sharded": save_causal_lm(folder / "sharded", tied=False, shard="60KB"),
        "whisper": save_whisper(folder / "whisper"),
    }
    assert len(list(found["sharded"].glob("model-*.safetensors"))) > 2
    return {name: str(path) for name, path in found.items()}


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> Campaign:
    """Two ranks train and save; one and four resume what they saved."""
    root = tmp_path_factory.mktemp("campaign")
    steps, at, whisper = str(STEPS), str(SAVED_AT), models["whisper"]

    def saved(job: str, step: int = 6) -> str:
        return str(root / job / "checkpoints" / f"step-{step:06d}")

    jobs = {
        2: {
            "full": ["train", "zero3_test", steps, at],
            "resumed-2": ["train", "zero3_test", steps, "0", saved("full", SAVED_AT)],
            "nan-zero3_test": ["nan", "zero3_test"],
            "nan-zero2": ["nan", "zero2"],
            "spike-zero3_test": ["spike", "zero3_test"],
            "spike-zero2": ["spike", "zero2"],
            "beside": ["beside"],
            "keep": ["keep"],
            "load-2-float32": ["load", models["sharded"], whisper, "float32"],
            "load-2-bfloat16": ["load", models["tied"], whisper, "bfloat16"],
            "bf16": ["train", "zero3_test", "12", "6", "", "bf16"],
            "bf16-resumed": ["train", "zero3_test", "12", "0", saved("bf16"), "bf16"],
            "zero2": ["train", "zero2", "12", "6"],
            "zero3": ["train", "zero3", "12", "6"],
            "zero3_offload": ["train", "zero3_offload", "12", "6"],
            "reduced": ["reduced"],
        },
        1: {
            "alone": ["train", "zero3_test", steps],
            "resumed-1": ["train", "zero3_test", steps, "0", saved("full", SAVED_AT)],
            "load-1-float32": ["load", models["tied"], whisper, "float32"],
            "zero2-resumed": ["train", "zero2", "12", "0", saved("zero2")],
            "zero3-resumed": ["train", "zero3", "12", "0", saved("zero3")],
            "zero3_offload-resumed": ["train", "zero3_offload", "12", "0", saved("zero3_offload")],
        },
        4: {
            "four": ["train", "zero3_test", steps],
            "zero3_hpz": ["train", "zero3_hpz", "12", "6"],
            "resumed-4": ["train", "zero3_test", steps, "0", saved("full", SAVED_AT)],
            "load-4-bfloat16": ["load", models["sharded"], whisper, "bfloat16"],
        },
    }
    answers: dict[str, Any] = {}
    for ranks, named in jobs.items():
        found = run(ranks, [[job[0], str(root / name), *job[1:]] for name, job in named.items()])
        answers |= dict(zip(named, found, strict=True))
    return Campaign(root, answers)
