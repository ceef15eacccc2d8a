"""Shards of a small corpus, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from speechkd.data.shards.index import open_shards
from speechkd.stages.shard import shard
from tests.data.corpus import write_card, write_echo, write_tones


@pytest.fixture(scope="session")
def tones_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    return write_card(folder, write_tones(folder))


@pytest.fixture(scope="session")
def tones_root(tones_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published shards with a column `echo` of two turns a sample; never written to."""
    root = shard(tones_card, tmp_path_factory.mktemp("shards"), quiet=True)
    write_echo(open_shards(root))
    return root


@pytest.fixture
def copied(tones_root: Path, tmp_path: Path) -> Path:
    """A copy of the published shards that a test may damage."""
    return Path(shutil.copytree(tones_root, tmp_path / "copy"))
