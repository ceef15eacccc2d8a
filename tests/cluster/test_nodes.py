"""Launchers of several nodes, each with its own connection to a real store: all end alike, and say why."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import psutil
import pytest

from speechkd.cluster.interface import socket_interface
from speechkd.cluster.nodes import Ended, Place, Team
from speechkd.core.errors import EXIT_REQUEUE, InputError
from tests.cluster.ports import free_port

LIMIT_S = 3.0


def on_nodes(count: int, do: Callable[[Team], Any], token: Callable[[int], str] = lambda i: "training") -> list[Any]:
    """What `do` returns or raises on each node."""
    port = free_port()

    def one(i: int) -> Any:
        try:
            with Team(Place(nodes=count, node_rank=i, host="127.0.0.1", port=port), token(i)) as team:
                team.limit_s = LIMIT_S
                return do(team)
        except (InputError, RuntimeError) as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_all_go_on_with_the_plan_and_end_as_node_0_does() -> None:
    def do(team: Team) -> Any:
        if team.leads:
            assert team.lead({"port": 7}) is None
            return team.conclude(Ended(EXIT_REQUEUE, "stopped at a step boundary"))
        plan = team.follow()
        team.ready()
        return plan, team.conclude(Ended(0, "finished"))

    first, *others = on_nodes(3, do)
    assert first == (EXIT_REQUEUE, "stopped at a step boundary")
    assert others == [({"port": 7}, first)] * 2


def test_a_refusal_is_the_same_line_on_every_node() -> None:
    def do(team: Team) -> Any:
        if team.leads:
            raise InputError("unknown key `trian`")
        return team.follow()

    first, *others = on_nodes(3, do)
    assert str(first) == "unknown key `trian`" and others == [(2, "unknown key `trian`")] * 2


def test_what_another_node_lacks_ends_all_before_a_rank_starts() -> None:
    def do(team: Team) -> Any:
        if team.leads:
            refused = team.lead({})
            assert refused is not None
            team.dismiss(refused)
            return refused
        if team.place.node_rank == 2:
            raise InputError("no recipe here")
        team.follow()
        team.ready()
        return team.conclude(Ended(1, "its ranks were ended"))

    first, second, third = on_nodes(3, do)
    assert first == second == (2, "no recipe here") and isinstance(third, InputError)


def test_the_cause_is_told_and_not_its_consequence() -> None:
    """A rank that was killed takes its peers on other nodes with it, which may be noticed first."""
    noticed = Event()

    def do(team: Team) -> Any:
        if team.leads:
            assert team.lead({}) is None
            noticed.set()
            return team.conclude(Ended(1, "rank 0 ended with exit code 1"))
        team.follow()
        team.ready()
        assert noticed.wait(20)
        return team.conclude(Ended(1, f"rank 1 ended with {'SIGKILL' if team.place.node_rank == 2 else 'exit code 1'}"))

    first, *others = on_nodes(3, do)
    assert first == (1, f"node 2 ({socket.gethostname()}): rank 1 ended with SIGKILL") and others == [first] * 2


SILENT = """
import os, signal, sys, time
from speechkd.cluster.nodes import Place, Team
with Team(Place(nodes=2, node_rank=int(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1])), "training") as team:
    if team.leads:
        team.lead({})
    else:
        team.follow()
        team.ready()
    print("up", flush=True)
    time.sleep(1.5)
    os.kill(os.getpid(), getattr(signal, sys.argv[3]))
"""


@pytest.mark.system
@pytest.mark.alone
@pytest.mark.parametrize(("node", "number"), [(0, "SIGKILL"), (0, "SIGSTOP"), (1, "SIGKILL"), (1, "SIGSTOP")])
def test_a_launcher_that_dies_or_stops_is_noticed_by_name(node: int, number: str) -> None:
    """At once where the store is gone; otherwise after `limit_s` of silence."""
    port = free_port()
    other = subprocess.Popen([sys.executable, "-c", SILENT, str(port), str(node), number], stdout=subprocess.PIPE)
    try:
        with Team(Place(nodes=2, node_rank=1 - node, host="127.0.0.1", port=port), "training") as team:
            team.limit_s = 30.0  # starting may take its time
            if team.leads:
                assert team.lead({}) is None
            else:
                team.follow()
                team.ready()
            assert other.stdout is not None and other.stdout.readline() == b"up\n"
            team.limit_s, began = LIMIT_S, time.monotonic()
            while not (found := team.trouble()):
                assert time.monotonic() - began < 20
                time.sleep(0.05)
            assert time.monotonic() - began < 1.5 + LIMIT_S + 3
            if node == 0 and number == "SIGKILL":
                assert found.reason.startswith(f"node 0 ({socket.gethostname()}) is gone: its store at 127.0.0.1:{port} does not answer")
            else:
                assert (
                    found.reason
                    == f"node {node} ({socket.gethostname()}) has been silent for more than 3 s: its launcher is gone or stopped"
                )
            assert found.code == 1
    finally:
        other.kill()
        other.wait()


def test_another_training_at_the_same_address_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechkd.cluster.nodes.HELLO_S", 1.0)
    monkeypatch.setattr("speechkd.cluster.nodes.JOIN_S", 4.0)
    first, second = on_nodes(2, lambda team: team.lead({}), token=str)
    assert "another training answers: every node needs the same recipe" in str(second)
    assert first == (1, "node 1 did not come within 4 s")


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"node 0 cannot listen at --rendezvous 127.0.0.1:{port}") as refused:
            Team(Place(nodes=2, node_rank=0, host="127.0.0.1", port=port), "training")
    assert "\n" not in str(refused.value) and "it must be this host's address and a free port" in str(refused.value)


@pytest.mark.parametrize("given", [None, "", "node7", ":29500", "node7:80", "node7:99999", "a b:29500", "$(x):29500", "node7:29500/x"])
def test_a_rendezvous_is_host_and_port(given: str | None) -> None:
    with pytest.raises(InputError, match="must be HOST:PORT of node 0"):
        Place.parse(2, 0, given)
    with pytest.raises(InputError, match="--node-rank 2 must be from 0 to 1"):
        Place.parse(2, 2, "node7:29500")
    assert Place.parse(2, 1, "[fe80::1]:29500").host == "fe80::1"


def test_the_interface_is_the_one_on_the_way_to_node_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name has to resolve; one that is given has to exist."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "name-that-does-not-resolve")
    assert socket_interface("127.0.0.1", 29500) == "lo"
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET:
                assert socket_interface(address.address, 29500) == name
    with pytest.raises(InputError, match="no way from name-that-does-not-resolve to node 0 at `nowhere.invalid`"):
        socket_interface("nowhere.invalid", 29500)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "bond7")
    with pytest.raises(InputError, match="GLOO_SOCKET_IFNAME=bond7: name-that-does-not-resolve has no interface `bond7`, only .*lo"):
        socket_interface("127.0.0.1", 29500)
