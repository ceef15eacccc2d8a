"""A hostile corpus, one artefact at a time: each is used as its victim would use it, in a process that counts what it must not do.

Run by tests/faults/test_hostile.py as a program of its own. Every artefact gets a fork of a process that has imported the libraries; an
audit hook counts executions, unpickled classes, connections and writes outside of the output folder. One JSON line an artefact.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

import speechkd.data.writer  # noqa: F401
import speechkd.recipe  # noqa: F401
from speechkd.core.errors import DataError, InputError
from speechkd.core.files import sha256_file, write_json
from speechkd.data.index import open_shards
from speechkd.data.manifest import signed
from speechkd.data.reader import Reader
from speechkd.data.sources import SOURCES
from speechkd.stages.shard import shard
from tests.data.corpus import write_card, write_echo, write_tones
from tests.faults.forked import fork_servers

Use = Callable[[Path], list[str]]
"""Uses an artefact below a folder; what it is told, one line each. Errors are told too."""


class Bomb:
    """Would leave a file if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


PICKLE = pickle.dumps(Bomb())


def wav(frames: int = 1600, rate: int = 16_000, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full((frames, channels), 0.1, np.float32), rate, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def flac(frames: int = 1600, rate: int = 16_000, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros((frames, channels), np.float32), rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def flac_says(frames: int, rate: int = 16_000, channels: int = 1) -> bytes:
    """A FLAC whose STREAMINFO lies."""
    word = (rate << 44) | ((channels - 1) << 41) | (15 << 36) | frames
    return patched(flac(), 18, word.to_bytes(8, "big"))


def nan_wav() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.array([np.nan, np.inf] * 800, np.float32), 16_000, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


CLIPS: dict[str, Callable[[], bytes]] = {
    "pickle.wav": lambda: PICKLE,
    "torch.flac": lambda: zipped("archive/data.pkl", PICKLE),
    "npz.wav": lambda: zipped("x.npy", bytes(50 << 20)),
    "gzip.flac": lambda: gzip.compress(bytes(100 << 20)),
    "empty.wav": lambda: b"",
    "magic-alone.flac": lambda: b"fLaC",
    "riff-alone.wav": lambda: b"RIFF\xff\xff\xff\xffWAVE",
    "cut.flac": lambda: flac()[:60],
    "cut.wav": lambda: wav()[:50],
    "hour-of-8-channels.flac": lambda: flac(3600 * 48_000 // 8, 48_000, 8),
    "hour.flac": lambda: flac(3600 * 16_000),
    "lies-of-2-to-the-36.flac": lambda: flac_says((1 << 36) - 1),
    "lies-of-29-seconds.flac": lambda: flac_says(29 * 16_000),
    "lies-of-no-length.flac": lambda: flac_says(0),
    "lies-of-rate-zero.flac": lambda: flac_says(1600, rate=0),
    "lies-of-655350-hertz.flac": lambda: flac_says(1600, rate=655_350),
    "wav-of-4-gigabytes.wav": lambda: patched(wav(), 40, b"\xff\xff\xff\xff"),
    "wav-of-65535-channels.wav": lambda: patched(wav(), 22, b"\xff\xff"),
    "wav-of-zero-channels.wav": lambda: patched(wav(), 22, b"\0\0"),
    "wav-of-2-gigahertz.wav": lambda: patched(wav(), 24, struct.pack("<I", 2**31)),
    "wav-of-zero-hertz.wav": lambda: patched(wav(), 24, b"\0\0\0\0"),
    "wav-of-zero-bits.wav": lambda: patched(wav(), 34, b"\0\0"),
    "wav-of-negative-chunk.wav": lambda: patched(wav(), 16, b"\xf0\xff\xff\xff"),
    "prime-rate.wav": lambda: wav(44_101, 44_101),
    "nan.wav": nan_wav,
    "noise.flac": lambda: b"fLaC" + np.random.default_rng(0).bytes(20_000),
    "noise.wav": lambda: wav()[:44] + b"LIST" + struct.pack("<I", 2**31 - 1) + np.random.default_rng(0).bytes(2000),
    "html.wav": lambda: b"<html><script>alert(1)</script></html>",
    "elf.wav": lambda: b"\x7fELF" + bytes(200),
    "too-many-padding-blocks.flac": lambda: b"fLaC" + flac()[4:42] + b"\x01\xff\xff\xff" * 4000,
}
"""Files that a list names as audio"""

NAMES = [
    "| touch executed",
    "pipe:touch executed",
    "$(touch executed).wav",
    "; touch executed",
    "../outside.wav",
    "/etc/passwd",
    "x/../../outside.wav",
    "file:///etc/passwd",
    "http://127.0.0.1:9/a.wav",
    "s3://bucket/a.wav",
    "\0.wav",
    "\ud800.wav",
    "a" * 5000,
    "/dev/zero",
    "link-out.wav",
    "link-loop.wav",
    "fifo.wav",
    ".",
]
"""Names that a list gives as audio"""

LINES = {
    "pickle": "b'" + PICKLE.hex() + "'",
    "deep": "[" * 100_000,
    "nan": '{"id": "a", "x": NaN}',
    "huge number": '{"id": "a", "x": 1' + "0" * 5000 + "}",
    "dotted key": '{"id": "a.b"}',
    "slashed key": '{"id": "../../a"}',
    "empty key": '{"id": ""}',
    "long key": '{"id": "' + "k" * 1000 + '"}',
    "same key twice": '{"id": "a"}\n{"id": "a"}',
    "no object": "[1, 2]",
    "no UTF-8": "\udcff\udcfe",
    "key of another kind": '{"id": {"a": 1}}',
    "a split that is a path": '{"id": "a", "part": "../../x"}',
}
"""Whole lists"""

CARDS = {
    "python object": "!!python/object/apply:os.system ['touch executed']",
    "python module": "name: !!python/module:os\n",
    "unknown tag": "name: !evil x\n",
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join('*' + chr(97 + n) for _ in range(9))}]\n" for n in range(9)),
    "deep": "[" * 5000,
    "key twice": "name: a\nname: b\n",
    "binary": "name: !!binary aGVsbG8=\n",
    "path as name": "name: ../../x\nversion: v1\nlicence: x\nsource: {kind: jsonl}\n",
    "path as earlier version": "name: x\nversion: v1\ngrows: ../y\nlicence: x\nsource: {kind: jsonl}\n",
    "source outside": "name: x\nversion: v1\nlicence: x\nsource: {kind: jsonl, file: ../../../etc/passwd, root: .}\n",
}
"""Whole cards"""


def use_clip(folder: Path, name: str) -> list[str]:
    return use_rows(folder, json.dumps({"id": "a", "audio": name}) + "\n")


def use_rows(folder: Path, text: str) -> list[str]:
    """Shard a corpus with a good and a hostile row; the quarantine's reasons."""
    card = write_card(folder, [], quarantine_rate=1.0, fields={})
    (folder / "rows.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    root = Path(str(shard(card, folder / "out", workers=1, quiet=True)))
    told = [json.loads(line)["reason"] for line in (root / "quarantine.jsonl").read_text().splitlines()]
    assert told or len(open_shards(root)), "neither stored nor rejected"
    return told or [f"stored {len(open_shards(root))} samples: {open_shards(root).samples()[0].seconds} s"]


def use_card(folder: Path, text: str) -> list[str]:
    (folder / "card.yaml").write_text(text, encoding="utf-8")
    shard(folder / "card.yaml", folder / "out", workers=1, quiet=True)
    return []


def use_shards(folder: Path) -> list[str]:
    """`check`, then read everything."""
    root = folder / "shards"
    shards = open_shards(root)
    told = list(shards.verify())
    reader = Reader(shards, shards.column("echo")) if "echo" in shards.column_names() else Reader(shards)
    for row in range(len(shards)):
        reader.metadata(row)
        reader.audio(row)
    if reader.column:
        for row in range(len(reader.column)):
            reader.read(row)
    return told


def resign(root: Path, change: Callable[[dict[str, Any]], None], files: bool = False) -> None:
    """Change a manifest and sign it again, as an attacker would; with the digests of the files as they are now."""
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["sha256"]
    if files:
        for name in manifest["files"]:
            manifest["files"][name] = {"sha256": sha256_file(root / name), "bytes": (root / name).stat().st_size}
    change(manifest)
    write_json(root / "manifest.json", signed(manifest))


INDEXES = ("index.parquet", "audio/000000.parquet")


def index(root: Path, column: str, value: Any) -> None:
    """Set a column of the indexes to one value; no column is bound to that."""
    for name in INDEXES:
        table = pq.read_table(root / name)
        at = table.column_names.index(column)
        new = pa.array([value] * len(table), table.schema.field(column).type)
        pq.write_table(table.set_column(at, column, new), root / name)
    spoilt(root)


def fewer_rows(root: Path) -> None:
    """A shard whose index has one row of the four that the manifest says."""
    for name in INDEXES:
        pq.write_table(pq.read_table(root / name).slice(0, 1), root / name)
    spoilt(root)


def spoilt(root: Path) -> None:
    """Make the manifest fit the files as they are now."""
    shutil.rmtree(root / "columns")
    resign(root, lambda manifest: None, files=True)


def parquet_bomb(root: Path) -> None:
    """A few kilobytes that say they are 30 million rows."""
    table = pq.read_table(root / "index.parquet").slice(0, 1)
    rows = pa.array(np.zeros(30_000_000, np.int64))
    columns = {name: rows.cast(table.schema.field(name).type) for name in ("audio_offset", "audio_bytes", "json_offset", "json_bytes")}
    for name in INDEXES:
        pq.write_table(pa.table(columns), root / name, compression="zstd")
    shutil.rmtree(root / "columns")
    resign(root, lambda manifest: manifest["totals"].update(samples=30_000_000), files=True)


def replace_member(parquet: Path, tar: Path, prefix: str, data: bytes) -> None:
    """Let the first row's member be `data`, appended to the tar, with a digest that fits."""
    table, raw = pq.read_table(parquet), tar.read_bytes()
    tar.write_bytes(raw + data)
    for name, value in ((f"{prefix}offset", len(raw)), (f"{prefix}bytes", len(data)), (f"{prefix}sha256", hashlib.sha256(data).digest())):
        new = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, new)
    pq.write_table(table, parquet)


def long_flac(root: Path) -> None:
    """A member of an hour, said to be as short as the one it replaces."""
    replace_member(root / "audio/000000.parquet", root / "audio/000000.tar", "audio_", flac(3600 * 16_000))
    spoilt(root)


def put_pickle(root: Path) -> None:
    for name in (*INDEXES, "card.yaml", "quarantine.jsonl"):
        (root / name).write_bytes(PICKLE)
    spoilt(root)


def signals_pickle(root: Path) -> None:
    """A column whose response is a pickle."""
    column = root / "columns/echo"
    replace_member(column / "000000.parquet", column / "000000.tar", "", PICKLE)
    resign(column, lambda manifest: None, files=True)


def deep_json(path: Path) -> None:
    path.write_text('{"a":' * 100_000)


SHARDS: dict[str, Callable[[Path], Any]] = {
    "files outside": lambda root: resign(root, lambda m: m["files"].update({"../../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}})),
    "an absolute file": lambda root: resign(root, lambda m: m["files"].update({"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}})),
    "a version outside": lambda root: resign(root, lambda m: m["files"]["index.parquet"].update({"in": "../.."})),
    "a digest that is a path": lambda root: resign(root, lambda m: m["files"]["index.parquet"].update({"sha256": "../" * 20})),
    "files that are a list": lambda root: resign(root, lambda m: m.update(files=["x"])),
    "a pickle as manifest": lambda root: (root / "manifest.json").write_bytes(PICKLE),
    "a deep manifest": lambda root: deep_json(root / "manifest.json"),
    "an endless manifest": lambda root: ((root / "manifest.json").unlink(), (root / "manifest.json").symlink_to("/dev/zero")),
    "pickles as files": put_pickle,
    "a pickle as response": signals_pickle,
    "a YAML object as card": lambda root: (
        (root / "card.yaml").write_text(CARDS["python object"]),
        resign(root, lambda m: None, files=True),
        open_shards(root).card,
    ),
    "offsets beyond the file": lambda root: index(root, "audio_offset", 2**62),
    "negative offsets": lambda root: index(root, "json_offset", -512),
    "a negative size": lambda root: index(root, "audio_bytes", -1),
    "fewer rows than said": fewer_rows,
    "empty cells": lambda root: index(root, "audio_offset", None),
    "a clip longer than said": long_flac,
    "a parquet bomb": parquet_bomb,
    "a tar that is a link": lambda root: ((root / "audio/000000.tar").unlink(), (root / "audio/000000.tar").symlink_to("/etc/passwd")),
    "a tar that is a fifo": lambda root: ((root / "audio/000000.tar").unlink(), os.mkfifo(root / "audio/000000.tar")),
    "a version that grows outside": lambda root: (resign(root, lambda m: m.update(grows="../../x")), write_echo(open_shards(root))),
}
"""Published versions"""


def tar_of(entries: list[tuple[tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for info, data in entries:
            info.size = len(data) or info.size
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, data


def sparse() -> bytes:
    """10 KB that a reader of GNU sparse files makes half a gigabyte of."""
    info = tarfile.TarInfo("a.wav")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.wav", "GNU.sparse.realsize": str(512 << 20)}
    return tar_of([(info, b"0\n".ljust(512, b"\0"))])


def huge_header() -> tuple[tarfile.TarInfo, bytes]:
    info, data = entry("a.wav", wav())
    info.pax_headers = {"comment": "x" * (64 << 20)}
    return info, data


TARS: dict[str, Callable[[], bytes]] = {
    "pickles": lambda: tar_of([entry("a.wav", wav()), entry("a.pyd", PICKLE), entry("a.pth", PICKLE), entry("a.pickle", PICKLE)]),
    "a path outside": lambda: tar_of([entry("../../outside.wav", wav())]),
    "an absolute path": lambda: tar_of([entry("/tmp/outside.wav", wav())]),
    "a symbolic link": lambda: tar_of([entry("a.wav", kind=tarfile.SYMTYPE, link="/etc/passwd")]),
    "a hard link": lambda: tar_of([entry("a.wav", kind=tarfile.LNKTYPE, link="/etc/passwd")]),
    "a device": lambda: tar_of([entry("a.wav", kind=tarfile.CHRTYPE)]),
    "a sparse bomb": sparse,
    "a huge header": lambda: tar_of([huge_header()]),
    "gzip": lambda: gzip.compress(tar_of([entry("a.wav", bytes(100 << 20))])),
    "a cut tar": lambda: tar_of([entry("a.wav", wav())])[:700],
    "a negative size": lambda: patched(tar_of([entry("a.wav", wav())], tarfile.USTAR_FORMAT), 124, b"\xff" * 12),
    "zeros": lambda: bytes(1 << 20),
    "the same key twice": lambda: tar_of([entry("a.wav", wav()), entry("b.wav", wav()), entry("a.wav", wav())]),
    "json that is deep": lambda: tar_of([entry("a.wav", wav()), entry("a.json", b'{"a":' * 100_000)]),
}
"""Others' webdataset tars"""


def use_tar(folder: Path) -> list[str]:
    card = write_card(folder, [], quarantine_rate=1.0, fields={}, source={"kind": "webdataset", "tars": "x.tar"})
    root = shard(card, folder / "out", workers=1, quiet=True)
    told = [json.loads(line)["reason"] for line in (root / "quarantine.jsonl").read_text().splitlines()]
    return told or [f"stored {len(open_shards(root))} samples"]


def tar_use(name: str) -> Use:
    """A use of its own for each tar."""
    return lambda folder: use_tar(folder)


def use_kaldi(folder: Path, line: str) -> list[str]:
    (folder / "wav.scp").write_text(line)
    card = write_card(folder, [], quarantine_rate=1.0, fields={}, source={"kind": "kaldi", "dir": "."})
    root = shard(card, folder / "out", workers=1, quiet=True)
    return [json.loads(line)["reason"] for line in (root / "quarantine.jsonl").read_text().splitlines()]


KALDI = ["utt touch executed |", "utt | touch executed", "utt -", "utt ../../../etc/passwd", "utt ark:/etc/passwd:10"]


def artefacts(shards: Path) -> Iterator[tuple[str, Use]]:
    """(name, use) of all of them; `shards`: a good version to spoil."""

    def clip(name: str, make: Callable[[], bytes]) -> Use:
        def use(folder: Path) -> list[str]:
            return use_clip(folder, name)

        return made(use, lambda folder: (folder / "clips" / name).write_bytes(make()))

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
        yield f"tar: {name}", made(tar_use(name), lambda folder, make=make: (folder / "x.tar").write_bytes(make()))  # type: ignore[misc]
    for line in KALDI if "kaldi" in SOURCES else ():
        yield f"kaldi: {line}", lambda folder, line=line: use_kaldi(folder, line + "\n")  # type: ignore[misc]


LATE = {"a YAML object as card", "a version that grows outside"}
"""Whose spoiling itself uses what was spoiled"""
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
        told: list[str] = []
        try:
            told = use(folder)
            outcome = "used"
        except (InputError, DataError, OSError) as error:
            outcome, told = "refused", [str(error)]
        except BaseException as error:  # noqa: B036  (any other is a finding)
            outcome, told = "crashed", [f"{type(error).__name__}: {error}"]
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
        said = {"outcome": outcome, "told": told[:20], "seconds": time.process_time() + children_s() - began, "grown": peak - before}
        os.write(write, json.dumps(said).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        data = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = json.loads(data) if data else {"outcome": f"died with {status}", "told": [], "seconds": 0.0, "grown": 0}
    events = (folder / "events").read_text().splitlines() if (folder / "events").exists() else []
    executed = [str(path) for path in [folder / "executed", Path("executed")] if path.exists()]
    return {"name": name, **said, "events": events + executed}


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
