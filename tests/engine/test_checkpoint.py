"""What counts as a checkpoint, and what is never read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from speechkd.core.errors import DataError
from speechkd.core.files import sha256_file
from speechkd.engine import checkpoint
from tests.engine.conftest import Campaign


@pytest.fixture
def folder(campaign: Campaign, tmp_path: Path) -> Path:
    """Four saves on two ranks, of which two are kept."""
    return Path(shutil.copytree(campaign.folder / "keep/checkpoints", tmp_path / "checkpoints"))


def test_a_failed_write_is_heard_on_every_rank_and_harms_nothing(campaign: Campaign) -> None:
    assert campaign.answers["keep"] == {"failed": True, "latest": "step-000004"}


def test_the_newest_two_are_kept_and_nothing_else_is_there(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["step-000003", "step-000004"]
    assert sorted(p.name for p in (folder / "step-000004").iterdir()) == [
        "COMMIT.json",
        "moments.safetensors",
        "trainer.json",
        "weights.safetensors",
    ]
    assert checkpoint.latest(folder) == folder / "step-000004" and checkpoint.ever_published(folder)
    assert checkpoint.read_trainer(folder / "step-000004")["adam_step"] == 4


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None and not checkpoint.ever_published(tmp_path / "none")


def test_one_without_commit_is_ignored_with_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "step-000004" / "COMMIT.json").unlink()
    assert checkpoint.latest(folder) == folder / "step-000003"
    assert capsys.readouterr().err == "checkpoint step-000004 is ignored: it was never committed\n"


@pytest.mark.parametrize("file", ["weights.safetensors", "moments.safetensors", "trainer.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_one_is_ignored(folder: Path, file: str, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "step-000004" / file
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if how == "flip" else data[:-1])
    if how == "remove":
        path.unlink()
    assert checkpoint.latest(folder) == folder / "step-000003"
    assert capsys.readouterr().err.count("\n") == 1
    shutil.rmtree(folder / "step-000003")
    assert checkpoint.latest(folder) is None and checkpoint.ever_published(folder)


def test_one_that_was_checked_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its marker is, so that the word holds for these very bytes; any other checkpoint is read as always."""
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(f"{path.parent.name}/{path.name}")
        return sha256_file(path)

    monkeypatch.setattr(checkpoint, "sha256_file", counted)
    newest = folder / "step-000004"
    checked = checkpoint.seal(newest)
    assert checkpoint.latest(folder, checked) == newest and read == ["step-000004/COMMIT.json"] * 2
    assert checkpoint.latest(folder, checkpoint.seal(folder / "step-000003")) == newest
    assert "step-000004/weights.safetensors" in read and "step-000003/weights.safetensors" not in read
    (newest / "moments.safetensors").unlink()
    assert checkpoint.latest(folder, checked) == folder / "step-000003"


def test_a_marker_that_was_written_again_is_another_checkpoint(folder: Path) -> None:
    newest = folder / "step-000004"
    checked = checkpoint.seal(newest)
    (newest / "weights.safetensors").write_bytes(b"other")
    (newest / "COMMIT.json").write_text((newest / "COMMIT.json").read_text() + "\n")
    assert checkpoint.latest(folder, checked) == folder / "step-000003"


@pytest.mark.parametrize("text", ["", "null", "[1]", '{"format": 1}', '{"format": 1, "files": {"../x": ""}}', "[" * 100_000])
def test_a_commit_that_makes_no_sense_is_ignored(folder: Path, text: str) -> None:
    (folder / "step-000004" / "COMMIT.json").write_text(text)
    assert checkpoint.latest(folder) == folder / "step-000003"


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_planted_pickle_is_never_read(folder: Path, tmp_path: Path) -> None:
    """Beside the files it is not looked at; in place of one, and committed as such, it is refused as what it is not."""
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    newest = folder / "step-000004"
    for name in ("pytorch_model.bin", "optim_states.pt", "latest"):
        (newest / name).write_bytes(bomb)
    assert checkpoint.latest(folder) == newest
    (newest / "weights.safetensors").write_bytes(bomb)
    commit = json.loads((newest / "COMMIT.json").read_text())
    commit["files"]["weights.safetensors"] = checkpoint.sha256_file(newest / "weights.safetensors")
    (newest / "COMMIT.json").write_text(json.dumps(commit))
    assert checkpoint.latest(folder) == newest
    with pytest.raises(DataError, match="not a safetensors file"):
        checkpoint.load_weights(nn.Linear(2, 2), newest)
    assert not (tmp_path / "executed").exists()
    pickle.loads(bomb)
    assert (tmp_path / "executed").exists(), "the bomb is a dud, so this test would prove nothing"


def test_a_symbolic_link_is_no_checkpoint(folder: Path) -> None:
    (folder / "step-000009").symlink_to(folder / "step-000003")
    assert checkpoint.latest(folder) == folder / "step-000004"


def test_weights_of_another_student_are_refused(folder: Path) -> None:
    class Other(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.projector, self.base, self.head = (nn.Linear(33, width), nn.Linear(width, width), nn.Linear(width, 7))
            self.base.requires_grad_(False)

    with pytest.raises(DataError, match="`projector.weight` is .64, 33. in the student and .63, 33. in the checkpoint"):
        checkpoint.load_weights(Other(64), folder / "step-000004")
    student = Other(63)
    student.base.requires_grad_(True)
    with pytest.raises(DataError, match="`base.weight` is .* in the student and absent in the checkpoint"):
        checkpoint.load_weights(student, folder / "step-000004")
    student.base.requires_grad_(False)
    before = student.projector.weight.clone()
    checkpoint.load_weights(student, folder / "step-000004")
    assert not torch.equal(student.projector.weight, before)


def test_the_library_reads_our_files(folder: Path) -> None:
    from safetensors.torch import load_file

    weights, moments = (load_file(folder / "step-000004" / name) for name in ("weights.safetensors", "moments.safetensors"))
    assert set(weights) == {f"{m}.{p}" for m in ("projector", "head") for p in ("weight", "bias")}
    assert set(moments) == {f"{n}.{k}" for n in weights for k in ("exp_avg", "exp_avg_sq")}
    assert all(t.dtype == torch.float32 and t.abs().sum() > 0 for t in [*weights.values(), *moments.values()])
