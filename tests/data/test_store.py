"""Shards behind URLs: the same samples, a cache that is bounded, shared and checked, and one-line answers where a store is away."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechkd.core.errors import DataError, InputError
from speechkd.core.files import sha256_bytes
from speechkd.data.reader import Reader
from speechkd.data.shards.index import open_shards
from speechkd.data.storage import cache as caches
from speechkd.data.storage.cache import Cache, CacheFull, cache_folder, shared_cache, working_folder
from speechkd.data.storage.store import UrlPath, create, list_folder, open_filesystem, parse_location
from speechkd.stages.shard import shard
from tests.data.corpus import write_card, write_echo, write_tones
from tests.data.stores import FileServer, file_server, s3_environment, s3_server

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test has a cache of its own."""
    monkeypatch.setenv("SPEECHKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPEECHKD_CACHE_GIB", "1")
    shared_cache.cache_clear()
    yield tmp_path / "cache"
    shared_cache.cache_clear()


@pytest.fixture
def served(copied: Path) -> Iterator[FileServer]:
    with file_server(copied) as server:
        yield server


def test_an_http_folder_gives_the_same_samples_and_fetches_each_file_once(served: FileServer, copied: Path, own_cache: Path) -> None:
    here, remote = open_shards(copied), open_shards(served.url)
    assert remote.digest == here.digest and remote.column_names() == ["echo"] and remote.card == here.card
    for reader in (Reader(remote, remote.column("echo")), Reader(open_shards(served.url), open_shards(served.url).column("echo"))):
        ours = Reader(here, here.column("echo"))
        for row in range(len(here.column("echo"))):
            assert repr(reader.read(row)) == repr(ours.read(row))
    assert {name: count for name, count in served.gets.items() if name.endswith((".tar", ".parquet")) and count > 2} == {}
    assert served.gets["000001.tar"] == 2, "one of the base, one of the column"
    assert list(remote.verify()) == []
    for tar, suffix in (("audio/000002.tar", "flac"), ("columns/echo/000001.tar", "response.json")):
        with tarfile.open(copied / tar) as members:
            spot = next(member for member in members if member.name.endswith(suffix))
        data = bytearray((copied / tar).read_bytes())
        data[spot.offset_data] ^= 1
        (copied / tar).write_bytes(data)
        wrong = "bytes differ from their sha256"
        assert [line for line in open_shards(served.url).verify() if line.startswith(tar)] == [
            f"{tar}: {wrong}",
            f"{tar}: member `{spot.name}` {wrong}",
        ]
    with pytest.raises(InputError, match="read-only"):
        create(remote.root / "x", b"")


def test_what_arrives_broken_is_fetched_again_and_never_used(served: FileServer, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches.time, "sleep", lambda seconds: None)
    broken: list[bytes] = []

    def spoil(name: str, data: bytes) -> bytes:
        if name != "000000.tar" or len(broken) >= 2:
            return data
        broken.append(data)
        return data[:700] if len(broken) == 1 else data[:600] + bytes([data[600] ^ 4]) + data[601:]

    served.spoil = spoil
    audio = Reader(open_shards(served.url)).audio(0)
    assert audio is not None and len(broken) == 2 and np.array_equal(audio, Reader(open_shards(copied)).audio(0))  # type: ignore[arg-type]
    served.spoil = lambda name, data: bytes(len(data)) if name == "000001.tar" else data
    with pytest.raises(DataError, match="000001.tar: bytes differ from their sha256"):
        Reader(open_shards(served.url)).audio(5)
    assert not [path for path in Path(shared_cache().folder).rglob("*.part")]


def test_a_copy_that_rots_is_fetched_again(served: FileServer, own_cache: Path) -> None:
    shards = open_shards(served.url)
    wanted = Reader(shards).audio(0)
    copy = own_cache / shards.manifest["files"]["audio/000000.tar"]["sha256"][:2] / shards.manifest["files"]["audio/000000.tar"]["sha256"]
    data = bytearray(copy.read_bytes())
    data[600] ^= 1
    copy.write_bytes(data)
    again = Reader(open_shards(served.url)).audio(0)
    assert np.array_equal(again, wanted) and served.gets["000000.tar"] == 2  # type: ignore[arg-type]


def blobs(folder: Path, count: int, size: int = 1000) -> list[tuple[str, str]]:
    """Files of `size` bytes; (name, sha256)."""
    folder.mkdir()
    out = []
    for number in range(count):
        data = bytes([number]) * size
        (folder / f"b{number}").write_bytes(data)
        out.append((f"b{number}", sha256_bytes(data)))
    return out


def test_the_cache_is_bounded_and_removes_what_was_used_longest_ago_but_never_what_is_open(tmp_path: Path) -> None:
    made = blobs(tmp_path / "served", 8)
    cache = Cache(tmp_path / "small", 3500)
    cache.folder.mkdir()
    with file_server(tmp_path / "served") as server:

        def get(number: int) -> bytes:
            with cache.open(UrlPath(f"{server.url}/{made[number][0]}"), made[number][1], 1000) as stream:
                return stream.read()

        for number in range(3):
            assert get(number) == bytes([number]) * 1000
            time.sleep(0.01)
        get(0)  # used again: 1 is the oldest now
        get(3)
        assert cache.used() == 3000
        get(0)
        assert server.gets == {"b0": 1, "b1": 1, "b2": 1, "b3": 1}
        get(1)
        assert server.gets["b1"] == 2, "was removed"
        held = [cache.open(UrlPath(f"{server.url}/b{n}"), made[n][1], 1000) for n in (4, 5, 6)]
        with pytest.raises(CacheFull):
            get(7)
        assert [stream.read(1) for stream in held] == [bytes([n]) for n in (4, 5, 6)] and cache.used() == 3000
        held[1].close()
        get(7)
        assert cache.used() == 3000 and get(4) == bytes([4]) * 1000 and server.gets["b4"] == 1
        with pytest.raises(InputError, match="has 9999 bytes, the cache 3500: raise SPEECHKD_CACHE_GIB"):
            cache.open(UrlPath(f"{server.url}/b0"), made[0][1], 9999)


def test_the_cache_works_where_only_a_file_open_for_writing_can_be_locked_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFSv4 answers EBADF otherwise; one without locks is refused, with a way out."""
    flock = fcntl.flock

    def as_nfs(stream: Any, operation: int) -> None:
        mode = fcntl.fcntl(stream, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(stream, operation)

    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    made = blobs(tmp_path / "served", 3)
    cache = Cache(tmp_path / "small", 1500)
    cache.folder.mkdir()
    with file_server(tmp_path / "served") as server:
        monkeypatch.setattr(fcntl, "flock", as_nfs)
        for name, sha256 in made:
            cache.open(UrlPath(f"{server.url}/{name}"), sha256, 1000).close()
        assert cache.used() == 1000 and len(server.gets) == 3
        monkeypatch.setattr(fcntl, "flock", refused)
        with pytest.raises(
            InputError, match=r"on a file system without locks .*: set SPEECHKD_SCRATCH \(or SPEECHKD_CACHE\) to a folder on"
        ):
            cache.open(UrlPath(f"{server.url}/{made[0][0]}"), made[0][1], 1000)


def test_the_cache_lies_on_the_nodes_own_disk_but_unfinished_work_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHKD_SCRATCH", str(tmp_path / "scratch"))
    assert cache_folder() == tmp_path / "cache"  # SPEECHKD_CACHE says so
    monkeypatch.delenv("SPEECHKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "scratch" / f"speechkd-{os.getuid()}"
    assert working_folder(UrlPath("s3://bucket/data")).is_relative_to(tmp_path / "home" / "speechkd" / "work")
    monkeypatch.delenv("SPEECHKD_SCRATCH")
    assert cache_folder() == tmp_path / "home" / "speechkd"


READ = """
import sys
from pathlib import Path
from speechkd.data.storage.cache import Cache
from speechkd.data.storage.store import UrlPath
cache = Cache(Path(sys.argv[1]), 1 << 20)
for name, sha256 in zip(sys.argv[3::2], sys.argv[4::2]):
    with cache.open(UrlPath(f"{sys.argv[2]}/{name}"), sha256, 1000) as stream:
        assert len(stream.read()) == 1000
"""


def test_several_ranks_share_one_download_and_a_killed_one_leaves_no_hole(tmp_path: Path) -> None:
    made = blobs(tmp_path / "served", 3)
    (tmp_path / "shared").mkdir()
    with file_server(tmp_path / "served") as server:
        slow = [True]
        server.spoil = lambda name, data: (time.sleep(30), data)[1] if name == "b2" and slow[0] else data
        words = [word for pair in made[:2] for word in pair]
        command = [sys.executable, "-c", READ, str(tmp_path / "shared"), server.url]
        ranks = [subprocess.Popen([*command, *words], cwd=ROOT) for _ in range(4)]
        assert [rank.wait(120) for rank in ranks] == [0] * 4
        assert server.gets == {"b0": 1, "b1": 1}
        killed = subprocess.Popen([*command, *made[2]], cwd=ROOT)
        end = time.monotonic() + 60
        while not server.gets["b2"] and time.monotonic() < end:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert list((tmp_path / "shared").rglob("*.part"))
        slow[0] = False
        subprocess.run([*command, *made[2]], cwd=ROOT, check=True, timeout=60)
        assert not list((tmp_path / "shared").rglob("*.part")) and Cache(tmp_path / "shared", 1).used() == 3000


@pytest.mark.parametrize(
    "url, text",
    [
        ("s3x://bucket/data", "`s3x://` is not known to fsspec"),
        ("http://127.0.0.1:9/data/v1", "cannot reach `http://127.0.0.1:9/data/v1"),
        ("s3://key:secret@bucket/data", "credentials come from the environment"),
        ("zip://x::http://127.0.0.1/a.zip", "chained URLs are not supported"),
        ("http://127.0.0.1/data?token=1", "must not have a query"),
        ("memory://nothing/here", "no such folder `memory://nothing/here`"),
        ("file:///nothing/here", "no such folder `/nothing/here`"),
    ],
)
def test_a_store_that_is_away_or_wrong_is_one_line(url: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        open_shards(url)
    assert text in str(caught.value) and "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_memory_is_a_store_that_creates_once() -> None:
    folder = parse_location("memory://shelf")
    create(folder / "a", b"1")
    with pytest.raises(FileExistsError):
        create(folder / "a", b"2")
    assert (folder / "a").read_bytes() == b"1" and list_folder(folder) == ["a"]


@pytest.mark.system
def test_s3_from_shard_to_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole life of a version on a real S3 server: written by partitions, continued, published once, grown, read by another process."""
    with s3_server() as port:
        for name, value in s3_environment(port).items():
            monkeypatch.setenv(name, value)
        with open_filesystem("s3://bucket") as (files, _):
            files.mkdir("bucket")
        rows = write_tones(tmp_path)
        card = write_card(tmp_path, rows)
        local = shard(card, tmp_path / "local", quiet=True)
        for part in (1, 0):
            root = shard(card, "s3://bucket/data", partition=(part, 2), quiet=True)
        assert str(root) == "s3://bucket/data/tones/v1"
        for path in [path for path in Path(str(local)).rglob("*") if path.is_file()]:
            assert (root / str(path.relative_to(str(local)))).read_bytes() == path.read_bytes(), "the same bytes as in a folder"
        shards = open_shards(str(root))
        column = write_echo(shards)
        here = open_shards(local)
        ours = Reader(here, write_echo(here))
        theirs = Reader(shards, column)
        assert [repr(theirs.read(row)) for row in range(len(column))] == [repr(ours.read(row)) for row in range(len(column))]
        with pytest.raises(FileExistsError):
            create(root / "manifest.json", b"another")
        other = write_card(tmp_path, rows, description="other")
        with pytest.raises(InputError, match="published from another card"):
            shard(other, "s3://bucket/data", quiet=True)
        grown = shard(write_card(tmp_path, [*rows, {"id": "z"}], version="v2", grows="v1"), "s3://bucket/data", quiet=True)
        assert list_folder(grown / "audio") == ["000003.parquet", "000003.tar"] and list(open_shards(grown).verify()) == []
        code = "import sys; from speechkd.cli import main; sys.argv = ['speechkd', *sys.argv[1:]]; main()"
        done = subprocess.run([sys.executable, "-c", code, "check", str(grown)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "11 samples in 4 shards, columns: none: 0 problems" in done.stdout, done.stderr
    began = time.monotonic()
    with pytest.raises(InputError, match="cannot reach `s3://bucket/data/tones/v2/manifest.json`"):
        open_shards("s3://bucket/data/tones/v2")
    assert time.monotonic() - began < 60


def _tmpfs(folder: Path, size: str) -> bool:
    folder.mkdir()
    return (
        os.geteuid() == 0
        and not subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True).returncode
    )


def test_a_full_disk_publishes_nothing_by_halves(tmp_path: Path) -> None:
    rows = write_tones(tmp_path, 40)
    card = write_card(tmp_path, rows)
    small = tmp_path / "small"
    if not _tmpfs(small, "400k"):
        pytest.skip("only root can mount a small disk")
    try:
        with pytest.raises(InputError, match="no space left for .*: nothing unfinished is visible there; make room and run") as caught:
            shard(card, small, quiet=True)
        assert "\n" not in str(caught.value)
        root = small / "tones/v1"
        assert not (root / "manifest.json").exists()
        for receipt in (root / "receipts").glob("0*.json"):
            files = json.loads(receipt.read_text())["files"]
            assert all(sha256_bytes((root / name).read_bytes()) == entry["sha256"] for name, entry in files.items())
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        assert list(open_shards(shard(card, small, quiet=True)).verify()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("given", "one"),
    [
        ("S3://Bucket/Data/", "s3://Bucket/Data"),
        ("HTTP://Example.ORG:80/A/b//", "http://example.org/A/b"),
        ("https://example.org:443/a", "https://example.org/a"),
        ("https://example.org:8443/a", "https://example.org:8443/a"),
        ("File://localhost/a/b/", "/a/b"),
        ("file:///a/b", "/a/b"),
    ],
)
def test_one_place_has_one_name(given: str, one: str) -> None:
    assert str(parse_location(given)) == one and parse_location(given) == parse_location(one)
