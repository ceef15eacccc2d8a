"""Launchers of one training on several nodes: they share how preparing went, that they live, and how it ended.

Node 0 hosts a TCPStore at the rendezvous and judges; every other node writes its own record there and reads node 0's, once a second:

    node/<i>    JSON: beat (a number that grows), host, ready, left, ended [code, reason]; of node 0 also plan and verdict [code, reason]

torchrun's own rendezvous is its static one, not c10d: c10d numbers the nodes itself, but global rank 0, which writes the journal, has to be
on node 0, where the run was prepared and where the sender runs. torchrun does not tell nodes of each other's failures; the verdict does.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any, NamedTuple

from torch.distributed import PrefixStore, Store, TCPStore

from speechkd.core.errors import EXIT_FAILED, EXIT_INPUT, InputError

POLL_S, JOIN_S, SILENT_S = 1.0, 600.0, 30.0
HELLO_S, SETTLE_S, LEAVE_S = 10.0, 2.0, 15.0
_ENDPOINT = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})$")


class Ended(NamedTuple):
    """How ranks, a node or a whole training ended."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One launcher of a training on `nodes` nodes, and where node 0 listens."""

    nodes: int
    node_rank: int
    host: str
    port: int

    @classmethod
    def parse(cls, nodes: int, node_rank: int, rendezvous: str | None) -> Place:
        """From the command line. Raises InputError."""
        if not 0 <= node_rank < nodes:
            raise InputError(f"--node-rank {node_rank} must be from 0 to {nodes - 1} (--nodes {nodes})")
        found = _ENDPOINT.match(rendezvous or "")
        if not found or not 1024 <= int(found.group(2)) <= 65000:
            raise InputError(f"--rendezvous `{rendezvous}` must be HOST:PORT of node 0, with a port from 1024 to 65000")
        return cls(nodes=nodes, node_rank=node_rank, host=found.group(1).strip("[]"), port=int(found.group(2)))


class Team:
    """This launcher among the others, `with Team(place, token) as team`. `token` tells trainings apart that meet at one port."""

    def __init__(self, place: Place, token: str) -> None:
        self.place, self.limit_s = place, SILENT_S
        self._began = time.monotonic()
        self._own: dict[str, Any] = {"host": socket.gethostname(), "beat": 0}
        self._others: dict[int, dict[str, Any]] = {}
        self._beats: dict[int, float] = {}
        self._polled = time.monotonic()
        self._lost = ""
        self._lock, self._wake, self._stop = Lock(), Event(), Event()
        self._store = self._open(token)
        self._thread = Thread(target=self._watch, name="nodes", daemon=True)

    @property
    def leads(self) -> bool:
        """Whether this is node 0."""
        return self.place.node_rank == 0

    def __enter__(self) -> Team:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            ended = Ended(EXIT_INPUT if isinstance(error, InputError) else EXIT_FAILED, _one_line(error))
            if not self.leads:
                self._own.setdefault("ended", ended)
            elif "verdict" not in self._own:
                self.dismiss(ended if ended.code == EXIT_INPUT else self._own_words(ended))
        self._tell("left", True)
        self._stop.set()
        self._wake.set()
        self._thread.join(2 * POLL_S)

    def ready(self) -> None:
        """This node can start its ranks."""
        self._tell("ready", True)

    def lead(self, plan: dict[str, Any]) -> Ended | None:
        """On node 0: tell the others to go on with `plan`, and wait until all can start. Returns why not, if they cannot."""
        self._tell("plan", plan)
        return self._until(lambda: all(self._others.get(i, {}).get("ready") for i in self._numbers())) or None

    def follow(self) -> dict[str, Any] | Ended:
        """On another node: wait for node 0's plan; returns it, or how preparing it ended."""
        return self._until(lambda: "plan" in self._others.get(0, {})) or dict(self._others[0]["plan"])

    def trouble(self) -> Ended | None:
        """What makes it pointless for this node's ranks to go on."""
        with self._lock:
            return self._judge() if self.leads else self._verdict()

    def conclude(self, own: Ended) -> Ended:
        """Tell how this node's ranks ended; returns how the training ended, the same on every node."""
        return self._conclude_all(own) if self.leads else self._await_verdict(own)

    def dismiss(self, verdict: Ended) -> None:
        """On node 0: tell the others how the training ended, and wait until they know: the store ends with this process.

        One that has not come yet is waited for, too: it would find nobody here.
        """
        self._tell("verdict", verdict)
        end = time.monotonic() + LEAVE_S
        while time.monotonic() < end and not all(self._others.get(i, {}).get("left") or self._silent(i) for i in self._numbers()):
            time.sleep(0.1)

    def _conclude_all(self, own: Ended) -> Ended:
        verdict = own
        if own.code == EXIT_FAILED or self.trouble():  # whoever failed last is not the cause: what the others say may come a moment later
            time.sleep(SETTLE_S)
            with self._lock:
                verdict = _cause([*([self._own_words(own)] if own.code else []), *self._failures()])
        elif own.code != EXIT_INPUT:
            verdict = self._until(lambda: all("ended" in self._others.get(i, {}) for i in self._numbers())) or own
        self.dismiss(verdict)
        return verdict

    def _await_verdict(self, own: Ended) -> Ended:
        self._tell("ended", own)
        verdict = self._until(lambda: False)
        assert verdict is not None
        return own if own.code and "verdict" not in self._others.get(0, {}) else verdict

    def _own_words(self, own: Ended) -> Ended:
        return Ended(own.code, f"node 0 ({self._own['host']}): {own.reason}")

    def _until(self, what: Callable[[], bool]) -> Ended | None:
        """Wait until `what` holds, or there is trouble, which is returned."""
        while True:
            found = self.trouble()
            with self._lock:
                if found or what():
                    return found
            time.sleep(0.1)

    def _numbers(self) -> range:
        return range(1, self.place.nodes)

    def _judge(self) -> Ended | None:
        """On node 0: the first failure among the others."""
        return _cause(found) if (found := self._failures()) else None

    def _failures(self) -> list[Ended]:
        found = []
        for i in self._numbers():
            record = self._others.get(i)
            if record is None:
                if time.monotonic() - self._began > JOIN_S:
                    found.append(Ended(EXIT_FAILED, f"node {i} did not come within {JOIN_S:g} s"))
                continue
            name = f"node {i} ({_plain(record.get('host'))})"
            ended = record.get("ended")
            if ended is not None and ended[0]:
                found.append(Ended(int(ended[0]), _plain(ended[1]) if ended[0] == EXIT_INPUT else f"{name}: {_plain(ended[1])}"))
            elif ended is None and self._silent(i):
                found.append(
                    Ended(EXIT_FAILED, f"{name} has been silent for more than {self.limit_s:g} s: its launcher is gone or stopped")
                )
        return found

    def _verdict(self) -> Ended | None:
        """On another node: what node 0 says, or that it says nothing any more."""
        record = self._others.get(0, {})
        name = f"node 0 ({_plain(record.get('host', self.place.host))})"
        if "verdict" in record:
            code, reason = record["verdict"]
            return Ended(int(code), _plain(reason))
        if self._lost:
            return Ended(EXIT_FAILED, f"{name} is gone: {self._lost}")
        if self._silent(0) or time.monotonic() - self._polled > self.limit_s:
            return Ended(EXIT_FAILED, f"{name} has been silent for more than {self.limit_s:g} s: its launcher is gone or stopped")
        return None

    def _silent(self, i: int) -> bool:
        return time.monotonic() - self._beats.get(i, time.monotonic()) > self.limit_s

    def _tell(self, key: str, value: Any) -> None:
        with self._lock:
            self._own[key] = value
        self._wake.set()

    def _open(self, token: str) -> Store:
        place = self.place
        where = f"{place.host}:{place.port}"
        try:
            wait = timedelta(seconds=JOIN_S)
            store: Store = TCPStore(place.host, place.port, None, self.leads, wait, wait_for_workers=False)
        except Exception as error:  # noqa: BLE001  (torch has several types for it)
            if self.leads:
                raise InputError(
                    f"node 0 cannot listen at --rendezvous {where} ({_one_line(error)}): it must be this host's address and a free port"
                ) from None
            raise InputError(f"node 0 does not answer at --rendezvous {where} ({_one_line(error)})") from None
        store = PrefixStore(token, store)
        if self.leads:
            for i in reversed(range(place.nodes)):
                store.set(f"node/{i}", json.dumps(self._own if i == 0 else None))
            return store
        with contextlib.suppress(Exception):
            store.wait(["node/0"], timedelta(seconds=HELLO_S))
            return store
        raise InputError(
            f"at --rendezvous {where} another training answers: every node needs the same recipe, --set, --ranks, --nodes and job"
        )

    def _watch(self) -> None:
        """The one thread that talks to the store: a call of it can hang where a network does."""
        while not self._stop.is_set():
            try:
                self._exchange()
            except Exception as error:  # noqa: BLE001  (torch has several types for a connection that is gone)
                self._lost = f"its store at {self.place.host}:{self.place.port} does not answer ({_one_line(error)})"
                return
            self._wake.wait(POLL_S)
            self._wake.clear()
        with contextlib.suppress(Exception):
            self._exchange()

    def _exchange(self) -> None:
        with self._lock:
            self._own["beat"] += 1
            own = json.dumps(self._own)
        self._store.set(f"node/{self.place.node_rank}", own)
        numbers = list(self._numbers()) if self.leads else [0]
        values = self._store.multi_get([f"node/{i}" for i in numbers]) if numbers else []
        now = time.monotonic()
        with self._lock:
            self._polled = now
            for i, value in zip(numbers, values, strict=True):
                record = json.loads(value)
                if isinstance(record, dict) and record.get("beat") != self._others.get(i, {}).get("beat"):
                    self._beats[i] = now
                    self._others[i] = record


def _cause(ended: list[Ended]) -> Ended:
    """The likeliest cause among failures: refused input, then a death by a signal or silence, then the first."""
    refused = [each for each in ended if each.code == EXIT_INPUT]
    struck = [each for each in ended if " with SIG" in each.reason or "silent" in each.reason]
    return [*refused, *struck, *ended][0]


def _plain(text: Any) -> str:
    """One printable line of bounded length: it came over the network."""
    return "".join(c for c in str(text) if c.isprintable())[:1000]


def _one_line(error: BaseException) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text.split(" Exception raised from ")[0][:1000]
