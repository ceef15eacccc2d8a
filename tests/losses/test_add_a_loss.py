"""Adding a loss is one file and one table entry: a toy of each kind (`toys/`) is read, checked and trained, and nothing else knows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechkd.core.errors import InputError
from speechkd.losses import LOSSES
from speechkd.recipe import load_recipe
from tests.contracts.test_zero3 import check
from tests.losses.toys.table import TOYS

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "pipelines/meta_prompt_kd.yaml"


def test_toys_of_every_kind_train_two_steps_on_two_ranks(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.forked", "2", "tests.losses.toys.worker", str(tmp_path / "facts.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads((tmp_path / "facts.json").read_text())
    check({"toys": facts})
    assert all(count > 0 for step in facts["counts"] for count in step), "every loss counted something at every step"


@pytest.fixture()
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOSSES, "entries", LOSSES.entries | TOYS)
    monkeypatch.chdir(ROOT)


def test_a_recipe_names_them_and_their_needs_are_checked(toys: None) -> None:
    block = "losses={toy_head: {teacher: reader, scale: 2}, toy_layer: {teacher: reader}, toy_clip: {}}"
    recipe = load_recipe(RECIPE, ["live.reader={kind: self}", block])
    assert recipe.losses["toy_head"].needs().live == {"dense"} and recipe.losses["toy_layer"].pairs(4, 9) == [(4, 9)]
    for blocks, message in {
        "{toy_head: {}}": "loss `toy_head` needs a live teacher: set `losses.toy_head.teacher`",
        "{toy_head: {teacher: raeder}}": "live teacher `raeder`.*did you mean `reader`",
        "{toy_head: {teacher: reader, at: audio}}": "loss `toy_head` looks at audio, which live teacher `reader` \\(self\\) does not hear",
        "{toy_head: {teacher: reader, scael: 2}}": "did you mean `scale`",
        "{toy_layer: {}}": "loss `toy_layer` needs `hidden`, but teacher `kd`",
        "{toy_hed: {}}": "did you mean `toy_head`",
    }.items():
        with pytest.raises(InputError, match=message):
            load_recipe(RECIPE, ["live.reader={kind: self}", f"losses={blocks}"])
