"""`speechkd train --nodes N`: node 0 prepares the run, all nodes start their ranks, and all end alike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from speechkd.cluster.interface import socket_interface
from speechkd.cluster.local import OnNodes, free_port, run_ranks
from speechkd.cluster.nodes import SILENT_S, Ended, Place, Team
from speechkd.core.errors import EXIT_INPUT, InputError
from speechkd.core.files import digest, sha256_file
from speechkd.core.log import say
from speechkd.engine.checkpoint import COMMIT, why_invalid
from speechkd.recipe import Recipe
from speechkd.stages.run_folder import CHECKPOINTS, RECIPE, Resume
from speechkd.stages.train import finished, launch, prepared, worker
from speechkd.tracking.sampler import node_name, start_sampler

SEEN_S = 60.0
"""Seconds that another node gets to see what node 0 has written into the run folder: shared folders show renames late"""
_GRACE_S = 10.0


def train_on_nodes(load: Callable[[], Recipe], words: Sequence[str], place: Place, ranks: int, resume: Resume) -> int:
    """Train on `place.nodes` nodes with `ranks` processes each; runs on every node, and returns the same exit code on all.

    `load` reads the recipe: inside, so that a node where it cannot be read is heard of. `words` are what every node was told alike; they
    tell this training from another one at the same address. Raises InputError.
    """
    received: list[signal.Signals] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    signal.signal(signal.SIGUSR1, receive)  # may come while the run is being prepared; its ranks hear of it when they are up
    token = digest([*words, place.nodes, ranks, os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT")])
    with Team(place, token) as team:
        recipe = load()
        stall_s = recipe.train.stall_s
        team.limit_s = min(SILENT_S, stall_s / 2)

        def start(folder: Path, port: int, newest: Path | None) -> Ended:
            interface = socket_interface(place.host, place.port)
            team.ready()
            on_nodes = OnNodes(team=team, port=port, interface=interface, grace_s=min(_GRACE_S, stall_s / 4))
            return run_ranks(worker(folder, newest), ranks, folder, received=received, on_nodes=on_nodes)

        return _lead(recipe, team, ranks, resume, start) if team.leads else _follow(recipe, team, start)


def _lead(recipe: Recipe, team: Team, ranks: int, resume: Resume, start: Callable[[Path, int, Path | None], Ended]) -> int:
    nodes = team.place.nodes
    with prepared(recipe, nodes * ranks, resume, recipe.run_dir) as run:
        if (done := finished(run)) is not None:
            team.dismiss(Ended(0, done))

        def begin() -> Ended:
            port = free_port(team.place.port)
            plan = {"recipe": sha256_file(run.folder / RECIPE), "checkpoint": run.newest.name if run.newest else None, "port": port}
            plan["node"] = node_name()
            plan["commit"] = sha256_file(run.newest / COMMIT) if run.newest else None
            if (refused := team.lead(plan)) is not None:
                say(f"error: {refused.reason}")
                team.dismiss(refused)
                return refused
            return start(run.folder, port, run.newest)

        return launch(run, begin, nodes * ranks, nodes)


def _follow(recipe: Recipe, team: Team, start: Callable[[Path, int, Path | None], Ended]) -> int:
    plan = team.follow()
    if isinstance(plan, Ended):
        if plan.code == EXIT_INPUT:
            raise InputError(plan.reason)
        say(f"train: {plan.reason}")
        return plan.code
    _await_run(recipe.run_dir, plan, SEEN_S)
    if node_name() != plan["node"]:  # the sender there samples its own
        start_sampler(recipe.run_dir)
    return start(recipe.run_dir, int(plan["port"]), None).code


def _await_run(folder: Path, plan: dict[str, Any], wait_s: float) -> None:
    """Wait until this node sees the run folder as node 0 wrote it. Raises InputError naming what is missing."""
    end = time.monotonic() + wait_s
    while missing := _missing(folder, plan):
        if time.monotonic() > end:
            raise InputError(
                f"after {wait_s:g} s {missing} on {os.uname().nodename}: is `{folder.absolute()}` one folder that all nodes share?"
            )
        time.sleep(0.5)


def _missing(folder: Path, plan: dict[str, Any]) -> str:
    if not _is(folder / RECIPE, plan["recipe"]):
        return f"`{folder / RECIPE}` is not what node 0 wrote"
    if plan["checkpoint"] is None:
        return ""
    checkpoint = folder / CHECKPOINTS / Path(plan["checkpoint"]).name
    if not _is(checkpoint / COMMIT, plan["commit"]):
        return f"`{checkpoint / COMMIT}` is not what node 0 reads"
    why = why_invalid(checkpoint)
    return f"`{checkpoint}` is not whole ({why})" if why else ""


def _is(path: Path, sha256: str) -> bool:
    try:
        return sha256_file(path) == sha256
    except OSError:
        return False
