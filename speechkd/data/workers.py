"""One fresh process per block, without importing the libraries for each: a small server imports them once and forks for every job.

Sources may keep state from clip to clip (espeak-ng does), and a decoder may crash on bad bytes; neither may reach the next block. The
server is a process of its own, so whatever its user has loaded or threaded is not forked. Jobs and results are JSON, never pickles.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import speechkd
from speechkd.core.errors import InputError


def run_blocks(setup: dict[str, Any], jobs: Iterable[dict[str, Any]], workers: int) -> Iterator[int]:
    """Write every job's shard, `workers` at a time; yields shard numbers as they are done.

    setup: root, card, card_dir. job: shard, items. Raises InputError where a child met one, RuntimeError where it failed otherwise.
    """
    ours, theirs = Pipe()
    path = os.pathsep.join([str(Path(speechkd.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = subprocess.Popen(
        [sys.executable, "-m", "speechkd.data.workers", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C reaches the stage alone, which then closes the pipe
    )
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
    if "failed" in result:
        raise RuntimeError(f"shard {result['shard']}: {result['failed']}")
    return int(result["shard"])


def serve(connection: Connection) -> None:
    """The server: fork for each job, pass on what the child says; when the stage is gone, end the children and leave."""
    import pyarrow as pa
    import soundfile  # noqa: F401  (loaded here so that children find them loaded)
    import torch
    import torchaudio  # noqa: F401

    import speechkd.data.writer  # noqa: F401

    torch.set_num_threads(1)
    pa.array([0])  # pyarrow imports pandas when it first sees a list
    running: dict[Connection, tuple[int, int]] = {}
    try:
        setup = json.loads(connection.recv_bytes())
        while True:
            for ready in wait([connection, *running]):
                assert isinstance(ready, Connection)
                if ready is connection:
                    job = json.loads(connection.recv_bytes())
                    reader, pid = _fork(setup, job, [connection, *running])
                    running[reader] = pid, job["shard"]
                else:
                    connection.send_bytes(_reap(ready, *running.pop(ready)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        for pid, _ in running.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork(setup: dict[str, Any], job: dict[str, Any], inherited: list[Connection]) -> tuple[Connection, int]:
    reader, writer = Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        for other in [*inherited, reader]:
            other.close()
        _child(setup, job, writer)
    writer.close()
    return reader, pid


def _child(setup: dict[str, Any], job: dict[str, Any], writer: Connection) -> NoReturn:
    from speechkd.data.cards import Card
    from speechkd.data.sources.base import Item
    from speechkd.data.writer import write_shard

    result: dict[str, Any] = {"shard": job["shard"]}
    try:
        items = [Item(**item) for item in job["items"]]
        write_shard(Path(setup["root"]), Card.model_validate(setup["card"]), Path(setup["card_dir"]), job["shard"], items)
    except InputError as error:
        result["wrong"] = str(error)
    except BaseException as error:  # noqa: B036  (the parent must hear of everything, and this process ends here)
        traceback.print_exc()
        result["failed"] = f"{type(error).__name__}: {error}"
    writer.send_bytes(json.dumps(result).encode("ascii"))
    os._exit(0)


def _reap(reader: Connection, pid: int, shard: int) -> bytes:
    try:
        data = reader.recv_bytes()
    except EOFError:
        data = b""
    reader.close()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return data or json.dumps({"shard": shard, "failed": f"its process ended with {status}"}).encode("ascii")


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
