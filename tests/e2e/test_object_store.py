"""The whole pipeline on shards and columns that lie in an object store: a real S3 server on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkd.data.shards.index import open_shards
from speechkd.data.storage.store import open_filesystem
from tests.data.stores import s3_environment, s3_server
from tests.e2e.conftest import losses, speechkd


@pytest.mark.system
def test_everything_from_a_bucket_is_as_from_a_folder(
    workshop: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharded, taught, trained on two ranks, exported and evaluated from s3://; the losses are those of the same steps from a folder."""
    with s3_server() as port:
        for name, value in {**s3_environment(port), "SPEECHKD_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        with open_filesystem("s3://bucket") as (files, _):
            files.mkdir("bucket")
        words = ("--set", "name=bucket", "--set", "data.root=s3://bucket/data", "--set", "train.regimes.kd.0.steps=3")
        done = speechkd("run", workshop / "recipe.yaml", *words, "--ranks", 2)
        assert done.returncode == 0, done.stderr[-3000:]
        shards, here = (open_shards(f"{root}/tiny/v1") for root in ("s3://bucket/data", workshop / "data"))
        assert shards.digest == here.digest and shards.column_names() == here.column_names() != []
        assert list(shards.verify()) == []
    runs = workshop / "runs"
    assert sorted(losses(runs / "bucket")) == [1, 2, 3] and losses(runs / "bucket") == pytest.approx(losses(runs / "short"), rel=1e-6)
    assert (runs / "bucket/export").is_dir() and (runs / "bucket/summary.json").is_file()
    assert list((tmp_path / "cache").rglob("*")), "what was trained on came through the cache"
