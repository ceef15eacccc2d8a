"""A shared folder and the clocks, seen from several nodes: how late writes and renames appear, whether locks reach across, skew."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as torch_dist

from speechkd.core.files import write_text
from speechkd.stages.doctor.finding import Finding
from speechkd.stages.doctor.shared_folder import CHECK, NO_LOCKS, SKEW_S, WRONG_S
from speechkd.tracking.sampler import node_name

CLOCK = "clocks"
LATE_S, MOST_LATE_S = 2.0, 30.0
"""Seconds at which the delay of a write is worth a warning, and after which it counts as not shared"""

Gather = Callable[[Any], list[Any]]


def check_across_nodes(folder: Path, gather: Gather) -> list[Finding]:
    """Every rank must call it; `gather` collects a JSON value of each rank. Findings are the same on every rank."""
    rank = torch_dist.get_rank()
    hosts: list[str] = gather(node_name())
    nodes = len(set(hosts))
    speaks = hosts.index(hosts[rank]) == rank
    """one process of each node writes and looks"""
    here = folder / f".speechkd-doctor-ranks-{gather(time.time_ns())[0]}"
    if rank == 0:
        here.mkdir()
    torch_dist.barrier()
    try:
        found = [_visible(here, rank, gather, hosts, speaks), _replaced(here, rank, gather, speaks), _locks(here, rank, gather, speaks)]
        found.append(_order(here, rank, gather, hosts))
    finally:
        torch_dist.barrier()
        if rank == 0:
            for path in here.iterdir():
                path.unlink(missing_ok=True)
            here.rmdir()
    return [*found, _clocks(gather, nodes)]


def _until(what: Callable[[], bool]) -> float:
    """Seconds until `what` holds, at most MOST_LATE_S."""
    began = time.monotonic()
    while not what() and time.monotonic() < began + MOST_LATE_S:
        time.sleep(0.02)
    return time.monotonic() - began


def _seen(what: str, seconds: float) -> Finding:
    if seconds >= MOST_LATE_S:
        return Finding(
            CHECK, "fail", f"{what} was not seen by every rank within {MOST_LATE_S:.0f} s", "is it the same folder on every node?"
        )
    if seconds > LATE_S:
        return Finding(CHECK, "warn", f"{what} is seen by every rank only after {seconds:.1f} s", "lower the mount's cache times (actimeo)")
    return Finding(CHECK, "ok", f"{what} is seen by every rank after {seconds:.2f} s")


def _visible(here: Path, rank: int, gather: Gather, hosts: list[str], speaks: bool) -> Finding:
    """Each node's new file, on every node. The folder is listed first, so that its cached listing is what is tested."""
    names = {f"of-{host}" for host in hosts}
    if _until(here.is_dir) < MOST_LATE_S:
        list(here.iterdir())
    torch_dist.barrier()
    if speaks:
        write_text(here / f"of-{hosts[rank]}", "new")
    torch_dist.barrier()
    late = _until(lambda: names <= {path.name for path in here.iterdir()}) if speaks else 0.0
    return _seen("a new file", max(gather(late)))


def _replaced(here: Path, rank: int, gather: Gather, speaks: bool) -> Finding:
    """A file that was read, then renamed over: when the others read the new bytes."""
    path = here / "replaced"
    if rank == 0:
        write_text(path, "old")
    torch_dist.barrier()
    if speaks:
        _until(path.is_file)
        path.read_text(encoding="utf-8")
    torch_dist.barrier()
    if rank == 0:
        write_text(path, "new")
    torch_dist.barrier()
    late = _until(lambda: path.read_text(encoding="utf-8") == "new") if speaks else 0.0
    return _seen("a renamed file", max(gather(late)))


def _locks(here: Path, rank: int, gather: Gather, speaks: bool) -> Finding:
    """A lock that rank 0 holds must be refused to the others."""
    path = here / "lock"
    problem, granted = "", False
    with path.open("a+") as stream:
        if rank == 0:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                problem = error.strerror or str(error)
        problem = gather(problem)[0]
        if rank != 0 and (speaks or rank == torch_dist.get_world_size() - 1):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                granted = not problem
            except OSError:
                pass
        second = any(gather(granted))
    if problem:
        return Finding(CHECK, "warn", f"flock is refused ({problem}): locks by hard link are used", NO_LOCKS)
    if second:
        return Finding(CHECK, "fail", "a lock of one rank was granted to another: two runs could write one folder", NO_LOCKS)
    return Finding(CHECK, "ok", "a lock of one rank is refused to the others")


def _order(here: Path, rank: int, gather: Gather, hosts: list[str]) -> Finding:
    """Nodes write one after another: times of modification must not go back."""
    turns = [hosts.index(host) for host in dict.fromkeys(hosts)][:16]
    for number, turn in enumerate(turns):
        if rank == turn:
            (here / f"turn-{number}").write_text("x", encoding="utf-8")
        torch_dist.barrier()
    stamps = [(here / f"turn-{number}").stat().st_mtime for number in range(len(turns))] if rank == 0 else []
    back = gather(max([0.0, *(before - after for before, after in zip(stamps, stamps[1:]))]))[0]
    if back > 0.01:
        text = f"files written one after another have times that go back by {back:.2f} s"
        return Finding(CHECK, "warn", text, "nodes stamp files with their own clocks: synchronise them (NTP)")
    return Finding(CHECK, "ok", f"times of modification follow the order of writing over {len(turns)} node{'s' if len(turns) > 1 else ''}")


def _clocks(gather: Gather, nodes: int) -> Finding:
    """The clocks of all ranks, read just after a barrier; the smallest spread of five, since a barrier lets some go late."""
    spreads = []
    for _ in range(5):
        torch_dist.barrier()
        times = gather(time.time())
        spreads.append(max(times) - min(times))
    spread = min(spreads)
    text = f"of {nodes} node{'s' if nodes > 1 else ''} differ by at most {1000 * spread:.0f} ms"
    if spread > SKEW_S:
        return Finding(
            CLOCK, "fail" if spread > WRONG_S else "warn", text, "synchronise them (NTP): journals and times of files would disagree"
        )
    return Finding(CLOCK, "ok", text)
