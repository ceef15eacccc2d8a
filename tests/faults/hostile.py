"""A hostile corpus, one artefact at a time: each is used as its victim would use it, in a process that counts what it must not do.

Run by tests/faults/test_hostile.py as a program of its own. Every artefact gets a fork of a process that has imported the libraries; an
audit hook counts executions, unpickled classes, connections and writes outside of the output folder. One JSON line an artefact.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import speechkd.data.shards.writer  # noqa: F401
import speechkd.recipe  # noqa: F401
from speechkd.core.errors import DataError, InputError
from speechkd.data.shards.index import open_shards
from speechkd.data.sources import SOURCES
from speechkd.stages.shard import shard
from tests.data.corpus import write_card, write_echo, write_tones
from tests.faults.forked import fork_servers
from tests.faults.hostile_archives import PARQUETS, TARS, use_parquet, use_tar
from tests.faults.hostile_clips import CLIPS, NAMES, wav
from tests.faults.hostile_lists import CARDS, KALDI, LINES, use_card, use_clip, use_kaldi, use_rows
from tests.faults.hostile_shards import LATE, SHARDS, use_shards

Use = Callable[[Path], list[str]]
"""Uses an artefact below a folder; what it is told, one line each. Errors are told too."""


def artefacts(shards: Path) -> Iterator[tuple[str, Use]]:
    """(name, use) of all of them; `shards`: a good version to spoil."""

    def clip(name: str, make: Callable[[], bytes]) -> Use:
        def use(folder: Path) -> list[str]:
            return use_clip(folder, name)

        return made(use, lambda folder: (folder / "clips" / name).write_bytes(make()))

    def alone(use: Use) -> Use:
        """A function of its own for each artefact: MADE is found by it."""
        return lambda folder: use(folder)

    def made(use: Use, make: Callable[[Path], Any]) -> Use:
        MADE[use] = make
        return use

    for name, make in CLIPS.items():
        yield f"clip: {name}", clip(name, make)
    for name in NAMES:
        yield f"name: {name[:40]!r}", made(lambda folder, name=name: use_clip(folder, name), odd_files)  # type: ignore[misc]
    for name, text in LINES.items():
        yield f"list: {name}", lambda folder, text=text: use_rows(folder, text + "\n")  # type: ignore[misc]
    for name, text in CARDS.items():
        yield f"card: {name}", lambda folder, text=text: use_card(folder, text)  # type: ignore[misc]
    for name, spoil in SHARDS.items():

        def prepare(folder: Path, spoil: Callable[[Path], Any] = spoil, late: bool = name in LATE) -> None:
            shutil.copytree(shards, folder / "shards")
            if not late:
                spoil(folder / "shards")

        def use(folder: Path, spoil: Callable[[Path], Any] = spoil, late: bool = name in LATE) -> list[str]:
            if late:
                spoil(folder / "shards")
            return use_shards(folder)

        yield f"shards: {name}", made(use, prepare)
    for name, make in TARS.items() if "webdataset" in SOURCES else ():
        yield f"tar: {name}", made(alone(use_tar), lambda folder, make=make: (folder / "x.tar").write_bytes(make()))  # type: ignore[misc]
    for name, write in PARQUETS.items() if "hf_disk" in SOURCES else ():
        yield f"parquet: {name}", made(alone(use_parquet), lambda folder, write=write: write(folder / "x.parquet"))  # type: ignore[misc]
    for line in KALDI if "kaldi" in SOURCES else ():
        yield f"kaldi: {line}", lambda folder, line=line: use_kaldi(folder, line + "\n")  # type: ignore[misc]


MADE: dict[Use, Callable[[Path], Any]] = {}
"""What makes an artefact, before the process that uses it is watched"""


def odd_files(folder: Path) -> None:
    clips = folder / "clips"
    (clips / "link-out.wav").symlink_to("/etc/passwd")
    (clips / "link-loop.wav").symlink_to("link-loop.wav")
    os.mkfifo(clips / "fifo.wav")


def watched(name: str, use: Use, folder: Path) -> dict[str, Any]:
    """Use an artefact in a fork; what it did, took and said."""
    (folder / "clips").mkdir(parents=True)
    if use in MADE:
        MADE[use](folder)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        signal.alarm(120)
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
        log = folder / "events"
        hook(log, folder)
        with open("/proc/self/statm", encoding="ascii") as stream:
            before = int(stream.read().split()[1]) * resource.getpagesize()
        began = time.process_time() + children_s()
        reported: list[str] = []
        try:
            reported = use(folder)
            outcome = "used"
        except (InputError, DataError, OSError) as error:
            outcome, reported = "refused", [str(error)]
        except BaseException as error:  # noqa: B036  (any other is a finding)
            outcome, reported = "crashed", [f"{type(error).__name__}: {error}"]
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
        result = {"outcome": outcome, "told": reported[:20], "seconds": time.process_time() + children_s() - began, "grown": peak - before}
        os.write(write, json.dumps(result).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        data = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    result = json.loads(data) if data else {"outcome": f"died with {status}", "told": [], "seconds": 0.0, "grown": 0}
    events = (folder / "events").read_text().splitlines() if (folder / "events").exists() else []
    executed = [str(path) for path in [folder / "executed", Path("executed")] if path.exists()]
    return {"name": name, **result, "events": events + executed}


def children_s() -> float:
    """CPU seconds of the processes that this one has waited for: what an artefact costs, whoever else is at work here."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect", "shutil.unpack_archive")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink", "os.rmdir", "os.truncate", "os.chmod")


def hook(log: Path, folder: Path) -> None:
    """Note what must not happen in this process and its children. The log is opened here: the hook itself opens nothing."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.set_inheritable(handle, True)
    allowed = (str(folder), "/dev/null", "/tmp/speechkd-")

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        bad = event in FORBIDDEN
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            bad = isinstance(arguments[0], str | bytes) and not os.path.abspath(os.fsdecode(arguments[0])).startswith(allowed)
        elif event in CHANGES:
            bad = isinstance(arguments[0], str | bytes | os.PathLike) and not os.path.abspath(os.fsdecode(arguments[0])).startswith(allowed)
        if bad:
            try:
                os.write(handle, f"{event} {arguments!r}"[:300].replace("\n", " ").encode() + b"\n")
            except OSError:  # the workers' server closes what it does not know
                os._exit(99)

    sys.addaudithook(note)


def main(out: Path, only: str = "") -> None:
    """All artefacts, one JSON line each; first a harmless one, whose growth is the pipeline's own."""
    torch.set_num_threads(1)
    pa.array([0])
    fork_servers()
    (out / "good").mkdir(parents=True)
    good = shard(write_card(out / "good", write_tones(out / "good")), out / "good" / "out", quiet=True)
    write_echo(open_shards(good))
    assert not list(open_shards(good).verify())

    def harmless(folder: Path) -> list[str]:
        return use_clip(folder, "good.wav")

    MADE[harmless] = lambda folder: (folder / "clips" / "good.wav").write_bytes(wav())
    chosen = [pair for pair in artefacts(Path(str(good))) if pair[0].startswith(only)]
    for number, (name, use) in enumerate([("harmless", harmless), *chosen]):
        print(json.dumps(watched(name, use, out / f"a{number}")), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
