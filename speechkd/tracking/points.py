"""Remembers which points of a journal exist, in eight bytes each."""

from __future__ import annotations

from array import array
from bisect import bisect_left


class PointIndex:
    """The set of (metric, step) pairs already written: a sorted array of steps per name, eight bytes per point."""

    def __init__(self) -> None:
        self._steps: dict[str, array[int]] = {}

    def take(self, name: str, step: int) -> bool:
        """Add (name, step); returns False if it was there already."""
        steps = self._steps.setdefault(name, array("q"))
        if not steps or step > steps[-1]:  # the usual case: steps increase
            steps.append(step)
            return True
        at = bisect_left(steps, step)
        if steps[at] == step:
            return False
        steps.insert(at, step)
        return True
