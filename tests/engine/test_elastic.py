"""One global step is the same on any number of ranks, and a checkpoint continues on any of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engine.conftest import SAVED_AT, STEPS, Campaign
from tests.engine.ranks import run


def apart(ours: list[float], theirs: list[float]) -> float:
    """Largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("other", ["alone", "four"])
def test_the_curve_does_not_know_how_many_ranks_there_are(campaign: Campaign, other: str) -> None:
    ours, theirs = campaign.answers[other]["curve"], campaign.answers["full"]["curve"]
    assert ours[-1] < 0.3 * ours[0], "nothing was learned, so equality would say nothing"
    assert apart(ours[:1], theirs[:1]) <= 1e-6
    assert apart(ours, theirs) <= 1e-4


@pytest.mark.parametrize("job", ["alone", "full", "four"])
def test_head_and_projector_are_partitioned_between_steps(campaign: Campaign, job: str) -> None:
    report = campaign.answers[job]["report"]
    assert set(report) == {f"{m}.{p}" for m in ("projector", "base", "head") for p in ("weight", "bias")}
    assert not any(report.values())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_resumed_run_is_the_uninterrupted_one(campaign: Campaign, ranks: int) -> None:
    """The trainable weights before loading are NaN, so whatever is not restored shows."""
    full, resumed = campaign.answers["full"], campaign.answers[f"resumed-{ranks}"]
    assert resumed["start"] == SAVED_AT
    assert apart(resumed["curve"][:1], full["curve"][SAVED_AT : SAVED_AT + 1]) <= 1e-6
    assert apart(resumed["curve"], full["curve"][SAVED_AT:]) <= 1e-4
    if ranks == 2:
        assert (resumed["curve"], resumed["weights"]) == (full["curve"][SAVED_AT:], full["weights"]), "bit for bit on the same ranks"


def test_with_other_moments_it_is_another_run_and_one_process_needs_no_torchrun(campaign: Campaign, tmp_path: Path) -> None:
    """The control for the test above: it can fail."""
    from safetensors.torch import load_file, save_file

    saved = Path(shutil.copytree(campaign.folder / "full/checkpoints" / f"step-{SAVED_AT:06d}", tmp_path / f"step-{SAVED_AT:06d}"))
    save_file({k: v * 0 + 1e-3 for k, v in load_file(saved / "moments.safetensors").items()}, saved / "moments.safetensors")
    [resumed] = run(1, [["train", str(tmp_path / "job"), "zero3_test", str(STEPS), "0", str(saved)]], forked=False)
    assert apart(resumed["curve"], campaign.answers["full"]["curve"][SAVED_AT:]) > 1e-2


def test_bf16_keeps_its_float32_weights_over_a_resume(campaign: Campaign) -> None:
    full, resumed = campaign.answers["bf16"], campaign.answers["bf16-resumed"]
    assert (resumed["curve"], resumed["weights"]) == (full["curve"][6:], full["weights"])


def test_ranks_add_bf16_gradients_in_float32(campaign: Campaign) -> None:
    assert campaign.answers["reduced"] <= 1e-6, "bfloat16 itself rounds at 4e-3"


def test_four_ranks_with_second_copies_in_nodes_of_two_train_alike(campaign: Campaign) -> None:
    assert apart(campaign.answers["zero3_hpz"]["curve"], campaign.answers["full"]["curve"][:12]) <= 1e-5


@pytest.mark.parametrize("memory", ["zero2", "zero3", "zero3_offload"])
def test_the_production_files_train_and_resume_alike(campaign: Campaign, memory: str) -> None:
    wanted = campaign.answers["full"]["curve"]
    assert apart(campaign.answers[memory]["curve"], wanted[:12]) <= 1e-5
    assert apart(campaign.answers[f"{memory}-resumed"]["curve"], wanted[6:12]) <= 1e-5


@pytest.mark.parametrize("memory", ["zero3_test", "zero2"])
def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(campaign: Campaign, memory: str) -> None:
    seen = campaign.answers[f"nan-{memory}"]
    assert seen["same"], "weights changed in a skipped step"
    assert seen["counts"] == [1, 1, 1]  # skipped, in a row, updates that Adam made
    assert seen["finite"] and seen["moved"] and seen["row"] == 0 and 0 < seen["norm"] < 100 and seen["bad"] == "inf"
