"""A shared folder that shows what was written seconds later: another node waits for exactly what node 0 wrote, or says what is missing."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from speechkd.core.errors import InputError
from speechkd.core.files import sha256_bytes, sha256_file, write_json, write_text
from speechkd.engine.checkpoint import FILES, FORMAT
from speechkd.stages import train_nodes


def write_run(folder: Path) -> dict[str, Any]:
    """A run folder with a checkpoint, and what node 0 tells of it."""
    write_text(folder / "recipe.yaml", "name: run\n")
    checkpoint = folder / "checkpoints" / "step-000020"
    for file in FILES:
        write_text(checkpoint / file, file)
    write_json(checkpoint / "COMMIT.json", {"format": FORMAT, "files": {file: sha256_file(checkpoint / file) for file in FILES}})
    commit = sha256_file(checkpoint / "COMMIT.json")
    return {"recipe": sha256_bytes(b"name: run\n"), "checkpoint": "step-000020", "commit": commit, "port": 1}


@contextmanager
def seen_late(source: Path, here: Path, delay_s: float, without: tuple[str, ...] = ()) -> Iterator[None]:
    """The files of `source` appear in `here` one by one: folders as they are made, each file's content a moment after its name."""

    def appear() -> None:
        for path in sorted(source.rglob("*"), reverse=True):
            if path.is_file() and path.name not in without:
                time.sleep(delay_s)
                target = here / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
                time.sleep(delay_s)
                shutil.copyfile(path, target)

    thread = threading.Thread(target=appear)
    thread.start()
    yield
    thread.join()


def test_a_node_waits_until_it_sees_what_node_0_wrote(tmp_path: Path) -> None:
    plan = write_run(tmp_path / "there")
    here = tmp_path / "here"
    write_text(here / "recipe.yaml", "name: run\nolder: true\n")  # an earlier start's
    began = time.monotonic()
    with seen_late(tmp_path / "there", here, 0.15):
        train_nodes._await_run(here, plan, 30.0)
        assert time.monotonic() - began > 8 * 0.15
        assert train_nodes._missing(here, plan) == ""


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        (("recipe.yaml",), "recipe.yaml` is not what node 0 wrote"),
        (("COMMIT.json",), "step-000020/COMMIT.json` is not what node 0 reads"),
        (("moments.safetensors",), "step-000020` is not whole \\("),
    ],
)
def test_what_never_comes_is_named(tmp_path: Path, without: tuple[str, ...], missing: str) -> None:
    plan = write_run(tmp_path / "there")
    with seen_late(tmp_path / "there", tmp_path / "here", 0.01, without):
        with pytest.raises(
            InputError, match=f"after 0.5 s .*{missing}.* on {os.uname().nodename}: is `.*` one folder that all nodes share"
        ):
            train_nodes._await_run(tmp_path / "here", plan, 0.5)
