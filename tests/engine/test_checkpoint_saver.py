"""Checkpoints written beside training: what stays, the copy in a second place, and what happens when a write fails."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from speechkd.core.files import read_json
from speechkd.data.storage.store import UrlPath, parse_location
from speechkd.engine import checkpoint, checkpoint_copy
from speechkd.engine.checkpoint_copy import SecondPlace, bring_back, copy_checkpoint, names_in
from speechkd.engine.checkpoint_saver import Retention, prune
from tests.engine.conftest import Campaign


@pytest.fixture
def folder(campaign: Campaign, tmp_path: Path) -> Path:
    """Two checkpoints, of steps 3 and 4."""
    return Path(shutil.copytree(campaign.folder / "keep/checkpoints", tmp_path / "checkpoints"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_training_goes_on_while_a_checkpoint_is_written(campaign: Campaign) -> None:
    """What was saved is the state at the save, not that of the steps made since; the failure of the write is raised at the next save."""
    seen = campaign.answers["beside"]
    assert seen == {"steps_meanwhile": 3, "same": True, "failed_late": True, "told": True, "times": [1]}


def test_an_update_is_dropped_on_all_ranks_when_the_guard_says_so(campaign: Campaign) -> None:
    """It takes the way of one that is not finite, but is not counted as one, and its norm is known."""
    for memory in ("zero3_test", "zero2"):
        seen = campaign.answers[f"spike-{memory}"]
        assert seen["same"] and seen["norm"] == seen["norms"][1] and seen["skipped"] == [0, 0]
        assert seen["norms"][2:] in (["inf"], []) and seen["after"] == [1, 1] and seen["kept"]


@pytest.mark.parametrize(("every", "kept"), [(None, [5, 6]), (2, [2, 4, 5, 6]), (4, [4, 5, 6])])
def test_the_newest_stay_and_every_nth_for_good(folder: Path, every: int | None, kept: list[int]) -> None:
    for step in (1, 2, 5, 6):
        shutil.copytree(folder / "step-000004", folder / f"step-{step:06d}")
    (folder / ".step-000007.tmp").mkdir()
    prune(folder, Retention(keep=2, every=every))
    assert names(folder) == [f"step-{step:06d}" for step in kept]


def test_what_is_being_copied_stays_until_it_is(folder: Path) -> None:
    for step in (5, 6):
        shutil.copytree(folder / "step-000004", folder / f"step-{step:06d}")
    prune(folder, Retention(keep=2), held=["step-000003"])
    assert names(folder) == ["step-000003", "step-000005", "step-000006"]


@pytest.fixture(params=["folder", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A second place: a folder, or a URL."""
    return tmp_path / "second" if request.param == "folder" else parse_location(f"memory://{tmp_path.name}")


def test_a_run_that_lost_its_checkpoints_gets_them_back(folder: Path, place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("step-000003", "step-000004"):
        copy_checkpoint(folder / name, place)
    copy_checkpoint(folder / "step-000004", place)  # again: nothing to do
    whole = {path.name: path.read_bytes() for path in (folder / "step-000004").iterdir()}
    shutil.rmtree(folder)
    assert bring_back(place, folder) == folder / "step-000004" == checkpoint.latest(folder)
    assert {path.name: path.read_bytes() for path in (folder / "step-000004").iterdir()} == whole
    said = capsys.readouterr().err
    assert said == f"train: no valid checkpoint in `{folder}`: step-000004 was fetched from `{place}`\n"


def test_a_damaged_copy_is_named_and_the_one_before_is_used(folder: Path, place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from speechkd.data.storage.store import remove, write_bytes

    for name in ("step-000003", "step-000004"):
        copy_checkpoint(folder / name, place)
    write_bytes(place / "step-000004" / "weights.safetensors", b"x")
    assert bring_back(place, folder) == folder / "step-000003"
    assert "checkpoint step-000004 in" in capsys.readouterr().err
    remove(place / "step-000003" / "moments.safetensors")
    assert bring_back(place, folder) is None
    assert "step-000003 in" in capsys.readouterr().err
    assert bring_back(place / "nowhere", folder) is None


def test_copies_are_kept_as_checkpoints_are(folder: Path, place: Any) -> None:
    retention = Retention(keep=2, every=4)
    second = SecondPlace(place, retention.stays, retention.for_good)
    for step in range(4, 9):
        if step > 4:
            shutil.copytree(folder / "step-000004", folder / f"step-{step:06d}")
        second.offer(folder / f"step-{step:06d}")
        assert second.wait(60)
    assert names_in(place) == ["step-000008", "step-000007", "step-000004"]


def test_while_one_is_copied_only_the_newest_waits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that are to stay for good. Nothing of it keeps the caller waiting."""
    go, copied = threading.Event(), list[str]()
    monkeypatch.setattr(checkpoint_copy, "copy_checkpoint", lambda source, place: (go.wait(60), copied.append(source.name)))
    second = SecondPlace(tmp_path / "second", lambda step, steps: True, lambda step: step % 4 == 0)
    for step in range(3, 8):
        second.offer(folder / f"step-{step:06d}")
    assert not second.wait(0.01) and second.held() == ["step-000004", "step-000007", "step-000003"]
    go.set()
    assert second.wait(60) and copied == ["step-000003", "step-000004", "step-000007"]


def test_a_copy_that_fails_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    second = SecondPlace(tmp_path / "file", lambda step, steps: True, lambda step: False)
    second.offer(folder / "step-000004")
    assert second.wait(60)
    said = capsys.readouterr().err
    assert said.startswith(f"train: checkpoint step-000004 was not copied to `{tmp_path / 'file'}`: ") and said.count("\n") == 1
    second = SecondPlace(UrlPath("http://127.0.0.1:9/none"), lambda step, steps: True, lambda step: False)
    second.offer(folder / "step-000004")
    assert second.wait(60) and "was not copied" in capsys.readouterr().err


def test_a_copy_that_differs_gets_no_marker(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_copy, "sha256_of", lambda file: "0" * 64)
    with pytest.raises(Exception, match="differs when it is read back"):
        copy_checkpoint(folder / "step-000004", tmp_path / "second")
    assert not (tmp_path / "second/step-000004/COMMIT.json").exists()
    assert read_json(folder / "step-000004/COMMIT.json")["files"]
