"""One global step is the same on any number of ranks, and a checkpoint continues on any of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engine.ranks import run

SAVED_AT, STEPS = 20, 50


def apart(ours: list[float], theirs: list[float]) -> float:
    """Largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """50 steps on two ranks, saved at 20."""
    folder = tmp_path_factory.mktemp("full")
    return {**run(2, "train", folder, "zero3_test", str(STEPS), str(SAVED_AT)), "saved": folder / "checkpoints" / f"step-{SAVED_AT:06d}"}


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_curve_does_not_know_how_many_ranks_there_are(full: dict[str, Any], tmp_path: Path, ranks: int) -> None:
    other = run(ranks, "train", tmp_path, "zero3_test", str(STEPS))
    assert other["curve"][-1] < 0.3 * other["curve"][0], "nothing was learned, so equality would say nothing"
    assert apart(other["curve"][:1], full["curve"][:1]) <= 1e-6
    assert apart(other["curve"], full["curve"]) <= 1e-4


def test_head_and_projector_are_partitioned_between_steps(full: dict[str, Any]) -> None:
    assert set(full["report"]) == {f"{m}.{p}" for m in ("projector", "base", "head") for p in ("weight", "bias")}
    assert not any(full["report"].values())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_resumed_run_is_the_uninterrupted_one(full: dict[str, Any], tmp_path: Path, ranks: int) -> None:
    """The weights before loading are NaN, so whatever is not restored shows."""
    resumed = run(ranks, "train", tmp_path, "zero3_test", str(STEPS), "0", str(full["saved"]))
    assert resumed["start"] == SAVED_AT
    assert apart(resumed["curve"][:1], full["curve"][SAVED_AT : SAVED_AT + 1]) <= 1e-6
    assert apart(resumed["curve"], full["curve"][SAVED_AT:]) <= 1e-4
    if ranks == 2:
        assert (resumed["curve"], resumed["weights"]) == (full["curve"][SAVED_AT:], full["weights"]), "bit for bit on the same ranks"


def test_without_moments_it_would_be_another_run(full: dict[str, Any], tmp_path: Path) -> None:
    """The control for the tests above: they can fail."""
    from safetensors.torch import load_file, save_file

    saved = Path(shutil.copytree(full["saved"], tmp_path / full["saved"].name))
    save_file({k: v * 0 + 1e-3 for k, v in load_file(saved / "moments.safetensors").items()}, saved / "moments.safetensors")
    resumed = run(1, "train", tmp_path, "zero3_test", str(STEPS), "0", str(saved))
    assert apart(resumed["curve"], full["curve"][SAVED_AT:]) > 1e-2


def test_bf16_keeps_its_float32_weights_over_a_resume(tmp_path: Path) -> None:
    full = run(2, "train", tmp_path / "a", "zero3_test", "12", "6", "", "bf16")
    resumed = run(2, "train", tmp_path / "b", "zero3_test", "12", "0", str(tmp_path / "a/checkpoints/step-000006"), "bf16")
    assert (resumed["curve"], resumed["weights"]) == (full["curve"][6:], full["weights"])


@pytest.mark.parametrize("memory", ["zero2", "zero3"])
def test_the_production_files_train_and_resume_alike(full: dict[str, Any], tmp_path: Path, memory: str) -> None:
    saving = run(2, "train", tmp_path, memory, "12", "6")
    resumed = run(1, "train", tmp_path / "again", memory, "12", "0", str(tmp_path / "checkpoints/step-000006"))
    assert apart(saving["curve"], full["curve"][:12]) <= 1e-5
    assert apart(resumed["curve"], full["curve"][6:12]) <= 1e-5


@pytest.mark.parametrize("memory", ["zero3_test", "zero2"])
def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path: Path, memory: str) -> None:
    seen = run(2, "nan", tmp_path, memory)
    assert seen["same"], "weights changed in a skipped step"
    assert seen["counts"] == [1, 1, 1]  # skipped, in a row, updates that Adam made
    assert seen["finite"] and seen["moved"] and seen["row"] == 0 and 0 < seen["norm"] < 100 and seen["bad"] == "inf"
