"""What doctor says of this machine's packages, disks, interfaces and shared folder when something is wrong with them."""

from __future__ import annotations

import errno
import fcntl
import sys
import time
from pathlib import Path

import pytest

from speechkd.cluster.profile import ClusterProfile
from speechkd.stages.doctor import packages
from speechkd.stages.doctor.finding import Finding, bounded
from speechkd.stages.doctor.gpus import check_gpus
from speechkd.stages.doctor.machine import check_disk
from speechkd.stages.doctor.network import check_interface
from speechkd.stages.doctor.packages import FLOORS, STOLEN, below_floor, check_packages
from speechkd.stages.doctor.shared_folder import check_shared_folder
from speechkd.stages.doctor.store import check_store
from tests.data.stores import s3_environment, s3_server


def problems(found: list[Finding]) -> str:
    return "\n".join(finding.line() for finding in found if finding.level != "ok")


def install(folder: Path, name: str, version: str) -> None:
    """A package as pip leaves it, for whoever asks which version is there."""
    facts = folder / f"{name}-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_everything_here_is_recent_enough() -> None:
    assert not problems(check_packages())


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [("torch", "2.9.1", "CVE-2026-24747"), ("transformers", "5.2.0", "CVE-2026-4372"), ("mlflow", "3.10.1", "CVE-2026-0545")],
)
def test_a_package_below_its_floor_fails_with_the_reason(
    name: str, version: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, name, version)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = problems(check_packages())
    assert f"fail  {name}" in found and reason in found and "pip install" in found


def test_floors_take_local_and_later_versions() -> None:
    assert not below_floor("torch", "2.13.0+cu130") and not below_floor("mlflow", "3.17.2") and not below_floor("torch", "2.14.0a0")
    assert all(floor.reason for floor in FLOORS.values())


def test_a_release_that_stole_credentials_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "lightning", STOLEN["lightning"][0])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "sent credentials away" in problems(check_packages())
    assert packages.installed("lightning") == "2.6.2"


def test_a_disk_without_room_and_a_folder_that_is_not_there_fail(tmp_path: Path) -> None:
    assert "0 GiB free" in problems(check_disk("shared disk", Path("/proc")))
    assert "No such file" in problems(check_disk("shared disk", tmp_path / "none"))
    assert check_disk("shared disk", tmp_path)[0].level in ("ok", "warn")


def test_the_interface_of_the_profile_must_be_here() -> None:
    assert not problems(check_interface(ClusterProfile(name="x", socket_ifname="lo")))
    found = problems(check_interface(ClusterProfile(name="x", socket_ifname="bond77")))
    assert "`bond77` is not on this node" in found and "lo" in found


def test_gpus_that_the_profile_promises_are_missed() -> None:
    found = problems(check_gpus(ClusterProfile(name="x", gpus_per_node=64)))
    assert "the profile says 64 per node" in found


def test_a_good_folder_passes_and_is_left_clean(tmp_path: Path) -> None:
    assert not problems(check_shared_folder(tmp_path)) and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    assert "cannot be written" in problems(check_shared_folder(Path("/proc")))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EBADF, errno.ENOLCK])
def test_a_mount_without_flock_is_told(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = problems(check_shared_folder(tmp_path))
    assert f"flock is refused ({errno.errorcode[number]}); locks by hard link work" in found and "-o flock" in found


def test_a_lock_that_is_granted_twice_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "granted twice" in problems(check_shared_folder(tmp_path))


@pytest.mark.parametrize(("ahead", "level"), [(10.0, "warn"), (-600.0, "fail")])
def test_a_clock_that_is_off_is_measured_against_the_folder(
    ahead: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() - ahead)
    found = problems(check_shared_folder(tmp_path))
    assert found.startswith(level) and f"its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'}" in found


def test_a_check_that_hangs_or_breaks_is_a_line_and_holds_nothing_up() -> None:
    def broken() -> list[Finding]:
        raise KeyError("x")

    assert "no answer within 0 s" in problems(bounded("mount", lambda: time.sleep(5) or [], 0.1))
    assert "the check itself failed: KeyError" in problems(bounded("mount", broken))


def test_an_object_store_is_written_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from speechkd.data.storage.store import list_folder, open_filesystem, parse_location

    with s3_server() as port:
        for name, value in s3_environment(port).items():
            monkeypatch.setenv(name, value)
        with open_filesystem("s3://bucket") as (files, _):
            files.mkdir("bucket")
        found = check_store("s3://bucket/data")
        assert not problems(found) and "refuses to replace" in found[1].text
        assert list_folder(parse_location("s3://bucket/data")) == []
        assert "cannot be written" in problems(check_store("s3://nobody/data"))


def test_a_store_that_is_no_store_is_one_line(tmp_path: Path) -> None:
    assert "not known to fsspec" in problems(check_store("s4://bucket"))
    assert not problems(check_store(str(tmp_path)))
