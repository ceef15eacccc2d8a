"""Means are weighted by count over steps and ranks; `drain` is one collective and one transfer, then starts again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from speechkd.tracking.metrics import Meter


def test_means_weigh_by_count_and_a_drain_starts_anew() -> None:
    meter = Meter({"loss": "mean", "skipped": "total", "empty": "mean"})
    meter.add("loss", torch.tensor(6.0, requires_grad=True), torch.tensor(2.0))
    meter.add("loss", torch.tensor(3.0), torch.tensor(1))
    meter.add("loss", 1.0, 1)
    meter.add("skipped", 1)
    assert meter.drain() == {"loss": 10.0 / 4.0, "skipped": 1.0}
    assert meter.drain() == {"skipped": 0.0}


def test_rates_are_per_second() -> None:
    meter = Meter({"samples": "rate"})
    time.sleep(0.05)
    meter.add("samples", 100)
    assert 100 / 0.5 < meter.drain()["samples"] <= 100 / 0.05


def test_an_undeclared_name_is_refused() -> None:
    with pytest.raises(KeyError):
        Meter({"a": "mean"}).add("b", 1.0)


def test_a_nan_is_reported_not_hidden() -> None:
    meter = Meter({"loss": "mean"})
    meter.add("loss", torch.tensor(float("nan")), 1)
    assert str(meter.drain()["loss"]) == "nan"


def test_adding_never_asks_the_device() -> None:
    """Fake tensors have no values: any sync would raise."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        meter = Meter({"loss": "mean"})
        meter.add("loss", torch.ones(()), torch.ones(()))


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    meter = Meter({"loss": "mean", "only_on_one": "mean", "samples": "rate", "skipped": "total"})
    meter.add("loss", torch.tensor(1.0 if rank else 9.0), torch.tensor(1.0 if rank else 3.0))
    if rank:
        meter.add("only_on_one", 0.5)
    meter.add("samples", 50)
    meter.add("skipped", 1)
    Path(folder, f"{rank}.json").write_text(json.dumps(meter.drain()))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file")
def test_two_ranks_agree(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert zero == one
    assert zero["loss"] == 2.5 and zero["only_on_one"] == 0.5 and zero["skipped"] == 2.0 and zero["samples"] > 0
