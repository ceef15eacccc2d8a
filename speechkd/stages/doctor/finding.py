"""What a check found: one line each, with a level, and what to do about it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]
LIMIT_S = 45.0
"""Seconds after which a check counts as hanging: a dead mount or a silent server must not hold the others up"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    text: str
    way_out: str = ""
    node: str = ""
    """host name, where it is another node's"""

    def line(self) -> str:
        """As a person reads it."""
        where = f"[{self.node}] " if self.node else ""
        return f"{self.level:<5} {self.check:<14} {where}{self.text}" + (f" -> {self.way_out}" if self.way_out else "")

    def record(self) -> dict[str, str]:
        """As `--json` prints it."""
        return asdict(self)


def bounded(name: str, check: Callable[[], list[Finding]], limit_s: float = LIMIT_S) -> list[Finding]:
    """What a check finds within `limit_s` seconds. One that hangs, or breaks, is itself a finding."""
    found: list[Finding] = []

    def run() -> None:
        try:
            found.extend(check())
        except Exception as error:  # noqa: BLE001  a check that breaks must not hide what the others find
            found.append(Finding(name, "fail", f"the check itself failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"))

    thread = threading.Thread(target=run, daemon=True)  # a thread stuck in a dead mount must not keep the process alive
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        return [Finding(name, "fail", f"no answer within {limit_s:.0f} s", "see whether the file system or server is up")]
    return found
