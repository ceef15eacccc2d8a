"""What a run has measured on held-out examples, and where it stopped by itself; light, for whoever only reads it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class History:
    """The measurements of a run so far, and where it stopped by itself."""

    values: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss), in order of steps"""
    stopped: int | None = None

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best measurement, the first of equals; None before the first."""
        return min(self.values, key=lambda value: (value[1], value[0]), default=None)

    def stale(self) -> int:
        """Measurements since the best one."""
        return 0 if self.best is None else len(self.values) - 1 - self.values.index(self.best)
