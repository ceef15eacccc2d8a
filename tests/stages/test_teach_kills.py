"""`speechkd teach` killed at 50 random moments: the column has the bytes of an uninterrupted one. Children are forks of this process, which
has everything imported, so that a start costs milliseconds and kills fall on the work."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import transformers  # noqa: F401  (imported once, before the forks)
import yaml

from speechkd.recipe import load_recipe
from speechkd.stages.shard import shard
from speechkd.stages.teach import teach
from speechkd.teachers import hf_local  # noqa: F401
from tests.data.corpus import write_card

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
KILLS = 50


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """96 text-only samples in 8 shards, two turns each, answered greedily by the stand-in."""
    monkeypatch.chdir(ROOT)
    languages = ["english", "german", "spanish", "french"]
    rows = [{"id": f"c{i:02d}", "part": "train", "transcript": f"eins {i}", "language": languages[i % 4]} for i in range(96)]
    task = {"instruction": "What language is spoken?", "field": "language", "kind": "choice", "choices": languages}
    shard(write_card(tmp_path, rows, shard_samples=12, tasks={"language": task}, fields={}), tmp_path / "data", quiet=True)
    data = yaml.safe_load((ROOT / "pipelines/meta_prompt_kd.yaml").read_text(encoding="utf-8"))
    data["data"] = {"root": str(tmp_path / "data"), "corpora": [{"card": str(tmp_path / "card.yaml")}]}
    data["teachers"]["kd"] |= {"batch_size": 8, "max_new_tokens": 24, "fields": ["language", "transcript"]}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def fork_teach(recipe: Path) -> int:
    """A child that teaches; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            torch.set_num_threads(1)
            os._exit(0 if teach(load_recipe(recipe))[0] is not None else 1)
        except BaseException:
            os._exit(2)
    return pid


def column_bytes(data: Path) -> dict[str, bytes]:
    """Every published file of the one column; journals and locks are not part of it."""
    [column] = (data / "tones/v1/columns").iterdir()
    assert (column / "manifest.json").is_file()
    return {path.name: path.read_bytes() for path in column.iterdir() if path.is_file() and not path.name.startswith(".")}


def done(columns: Path) -> int:
    """Shards that are finished."""
    return len(list(columns.glob("*/receipts/*.json")))


def wait_for_shards(columns: Path, count: int, seconds: float) -> None:
    """Until so many are finished, or the column is."""
    end = time.monotonic() + seconds
    while done(columns) < min(count, 8) and time.monotonic() < end:
        time.sleep(0.005)


def test_fifty_kills_change_no_byte(recipe: Path, tmp_path: Path) -> None:
    columns, data = tmp_path / "data/tones/v1/columns", tmp_path / "data"
    began = time.monotonic()
    assert os.waitpid(fork_teach(recipe), 0)[1] == 0
    whole_s = time.monotonic() - began
    whole = column_bytes(data)
    assert len([name for name in whole if name.endswith(".tar")]) == 8
    shutil.rmtree(columns)
    dice = random.Random(11)
    killed = finished = 0
    receipts: set[int] = set()
    while killed < KILLS:
        pid = fork_teach(recipe)
        # At a random moment, mostly of loading, or in the work of a shard, by what is done: on a busy machine the clock says little.
        further = dice.choice([0, 1, 1, 2, 3])
        wait_for_shards(columns, done(columns) + further, 20 * whole_s)
        time.sleep(dice.uniform(0, 0.05 if further else 0.9) * whole_s)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            killed += 1
            receipts.add(done(columns))
            continue
        assert os.WEXITSTATUS(status) == 0 and column_bytes(data) == whole
        finished += 1
        shutil.rmtree(columns)
    assert os.waitpid(fork_teach(recipe), 0)[1] == 0
    assert column_bytes(data) == whole
    print(f"{killed} kills, {finished + 1} columns finished in between, of {whole_s:.1f} s each; kills after {sorted(receipts)} shards")
    assert len(receipts) >= 4, "kills fell on many places"
