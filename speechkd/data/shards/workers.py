"""Writes each shard in a fresh process. A server process imports the libraries once and forks for every shard.

Sources may keep state between clips (espeak-ng does), and a decoder may crash on bad bytes; neither may affect the next shard. The server
is a separate process, so the caller's libraries and threads are not forked. Jobs and results are JSON, never pickles.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import speechkd
from speechkd.core.errors import InputError
from speechkd.data.audio.limits import limit_this_process
from speechkd.data.sources.guarded import DEATHS, NEEDS_RESAMPLER, OUT_OF_MEMORY, Watch, blame, end_hung

KEEP_FREED = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""glibc settings that let a clip reuse the memory of the previous one. Fresh pages for every array would take a fifth of the time."""

KILLS = 2
"""How often a shard is retried after its process was killed"""


def write_shards(setup: dict[str, Any], jobs: Iterable[dict[str, Any]], workers: int) -> Iterator[int]:
    """Write every job's shard, `workers` at a time; yields shard numbers as they are done.

    setup: root, card, card_dir. job: shard, items. Raises InputError and OSError if a child raised one, RuntimeError if it failed
    otherwise.
    """
    ours, theirs = Pipe()
    server = _start(theirs)
    theirs.close()
    try:
        _send(ours, setup)
        running = 0
        for job in jobs:
            if running == workers:
                yield _result(ours)
                running -= 1
            _send(ours, job)
            running += 1
        for _ in range(running):
            yield _result(ours)
    finally:
        ours.close()
        server.wait()


def _start(connection: Connection) -> subprocess.Popen[bytes]:
    """Start the server: a fresh interpreter that holds its end of the pipe."""
    path = os.pathsep.join([str(Path(speechkd.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "speechkd.data.shards.workers", str(connection.fileno())],
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **KEEP_FREED},
        start_new_session=True,  # Ctrl-C reaches only the caller, which then closes the pipe
    )


def _send(connection: Connection, value: dict[str, Any]) -> None:
    try:
        connection.send_bytes(json.dumps(value).encode("ascii"))
    except (BrokenPipeError, ConnectionResetError):
        raise RuntimeError("the shard workers' server ended") from None


def _result(connection: Connection) -> int:
    try:
        result = json.loads(connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        raise RuntimeError("the shard workers' server ended") from None
    if "wrong" in result:
        raise InputError(result["wrong"])
    if "system" in result:
        raise OSError(result["errno"] or 0, f"shard {result['shard']}: {result['system']}")
    if "failed" in result:
        raise RuntimeError(f"shard {result['shard']}: {result['failed']}")
    return int(result["shard"])


def serve(connection: Connection) -> None:
    """Run the server: fork a child per job and return its result. When the caller is gone, kill the children and exit."""
    import pyarrow as pa
    import soundfile  # noqa: F401  (imported before forking, so that children share it)

    import speechkd.data.shards.writer  # noqa: F401
    from speechkd.data.sources import SOURCES
    from speechkd.data.storage.store import load_driver

    pa.array([0])  # pyarrow imports pandas when it first sees a list
    gc.freeze()  # keep the loaded modules out of the children's garbage collection
    running: dict[Connection, Child] = {}
    try:
        setup = json.loads(connection.recv_bytes())
        load_driver(setup["root"])
        with suppress(InputError):  # a child will say what is wrong
            SOURCES.get(str(setup["card"].get("source", {}).get("kind")))
        while True:
            for ready in wait([connection, *running], timeout=1.0):
                assert isinstance(ready, Connection)
                if ready is connection:
                    _fork(setup, json.loads(connection.recv_bytes()), Ends(), connection, running)
                else:
                    child = running.pop(ready)
                    result = child.result(ready)
                    if result is None:
                        _fork(setup, child.job, child.ends, connection, running)
                    else:
                        connection.send_bytes(result)
            for child in running.values():
                child.hung = child.hung or end_hung(child.pid, child.watch)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        for child in running.values():
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)


@dataclass(slots=True)
class Ends:
    """How earlier processes of a shard ended."""

    fatal: dict[int, str] = field(default_factory=dict)
    """item -> how it ended its process"""
    kills: int = 0
    """killed from outside: by the OOM killer, or by a person"""


@dataclass(slots=True)
class Child:
    """A process that writes one shard."""

    pid: int
    job: dict[str, Any]
    watch: Watch
    ends: Ends
    hung: bool = False

    def result(self, reader: Connection) -> bytes | None:
        """The result for the caller, or None to retry the shard: without the item that ended this process, with the resampler loaded, or
        unchanged if the process was killed.
        """
        try:
            data = reader.recv_bytes()
        except EOFError:
            data = b""
        reader.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if data:
            return data
        if status == NEEDS_RESAMPLER:
            load_resampler()
            return None
        at_fault = blame(status, self.watch, self.hung)
        if at_fault and len(self.ends.fatal) < DEATHS:
            self.ends.fatal[at_fault[0]] = at_fault[1]
            return None
        if status == -signal.SIGKILL and not at_fault and self.ends.kills < KILLS:
            self.ends.kills += 1
            return None
        why = f"{DEATHS} of its items ended their decoder" if at_fault else f"its process ended with {status}"
        return json.dumps({"shard": self.job["shard"], "failed": why}).encode("ascii")


def load_resampler() -> None:
    """Import torch, on first need: it takes longer than writing a thousand clips, and most corpora need no resampling."""
    import torch
    import torchaudio  # noqa: F401

    torch.set_num_threads(1)


def _fork(setup: dict[str, Any], job: dict[str, Any], ends: Ends, ours: Connection, running: dict[Connection, Child]) -> None:
    reader, writer = Pipe(duplex=False)
    watch = Watch()
    pid = os.fork()
    if pid == 0:
        for other in [ours, reader, *running]:
            other.close()
        _child(setup, job, ends.fatal, watch, writer)
    writer.close()
    running[reader] = Child(pid, job, watch, ends)


def _child(setup: dict[str, Any], job: dict[str, Any], fatal: dict[int, str], watch: Watch, writer: Connection) -> NoReturn:
    from speechkd.data.audio.clips import NeedsResampler
    from speechkd.data.cards import Card
    from speechkd.data.shards.writer import write_shard
    from speechkd.data.sources.base import Item
    from speechkd.data.storage.store import parse_location

    result: dict[str, Any] = {"shard": job["shard"]}
    try:
        items = [Item(**item) for item in job["items"]]
        card = Card.model_validate(setup["card"])
        limit_this_process(card.audio)
        write_shard(parse_location(setup["root"]), card, Path(setup["card_dir"]), job["shard"], items, watch, fatal)
    except InputError as error:
        result["wrong"] = str(error)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except NeedsResampler:
        os._exit(NEEDS_RESAMPLER)
    except OSError as error:  # a full disk, a store that went away
        result |= {"system": error.strerror or str(error), "errno": error.errno}
    except BaseException as error:  # noqa: B036  (report everything to the parent; this process ends here)
        traceback.print_exc()
        result["failed"] = f"{type(error).__name__}: {error}"
    writer.send_bytes(json.dumps(result).encode("ascii"))
    os._exit(0)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
