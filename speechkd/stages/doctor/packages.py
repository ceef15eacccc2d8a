"""Versions of packages against the lowest that are safe to use, with the reason for each, and releases that stole credentials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from speechkd.stages.doctor.finding import Finding

INSTALL = "pip install --constraint constraints.txt"


@dataclass(frozen=True, slots=True)
class Floor:
    """Which versions of a package are good, and why no others."""

    versions: str
    reason: str


FLOORS: dict[str, Floor] = {
    "torch": Floor(">=2.10", "CVE-2026-24747: a crafted file corrupts memory even with weights_only, up to 2.9.1"),
    "transformers": Floor(">=5.3", "CVE-2026-4372: a field of config.json runs code although trust_remote_code is off, 4.56 to 5.2"),
    "mlflow": Floor(
        ">3.10.1", "CVE-2026-2614 reads the server's files, CVE-2026-2652 and CVE-2026-0545 pass its password by, up to 3.10.1"
    ),
    "deepspeed": Floor(">=0.19.8", "before it, recomputing activations of frozen parameters failed (pull request 8148)"),
    "PyYAML": Floor(">=5.4", "CVE-2020-14343: the full loader runs code"),
    "Jinja2": Floor(">=3.1.6", "CVE-2025-27516: a template leaves the sandbox"),
}
"""Beside what setup.cfg asks for; those are tested, these are also safe"""
STOLEN = {"lightning": ("2.6.2", "2.6.3")}
"""Releases that sent credentials away when they were imported; speechkd needs none of them, but they may stand in the same environment"""


def installed(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_packages() -> list[Finding]:
    """One line for each floor with a reason, one for each requirement that is not met, one for all that are."""
    return [*_floors(), *_requirements(), *_stolen()]


def below_floor(name: str, found: str) -> str:
    """Why `found` is too old a version of a package that has a floor; empty if it is not."""
    floor = FLOORS[name]
    return "" if SpecifierSet(floor.versions).contains(found, prereleases=True) else f"{floor.versions}: {floor.reason}"


def _floors() -> Iterator[Finding]:
    for name, floor in FLOORS.items():
        found = installed(name)
        if found is None:
            yield Finding(name, "fail", "is not installed", f"{INSTALL} {name}")
        elif reason := below_floor(name, found):
            yield Finding(name, "fail", f"{found} must be {reason}", f"{INSTALL} '{name}{floor.versions}'")
        else:
            yield Finding(name, "ok", f"{found} ({floor.versions}: {floor.reason})")


def _requirements() -> Iterator[Finding]:
    met = 0
    for text in requires("speechkd") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue  # for another platform, or for an optional extra
        found = installed(requirement.name)
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            met += 1
        else:
            text = f"{found or 'missing'}, needs {requirement.specifier}"
            yield Finding(requirement.name, "fail", text, f"{INSTALL} '{requirement.name}{requirement.specifier}'")
    yield Finding("packages", "ok", f"{met} of speechkd's requirements are met")


def _stolen() -> Iterator[Finding]:
    for name, releases in STOLEN.items():
        if (found := installed(name)) in releases:
            yield Finding(
                name, "fail", f"{found} sent credentials away when imported", f"pip uninstall {name}, and change every secret here"
            )
