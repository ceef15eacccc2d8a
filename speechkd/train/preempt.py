"""Signals only set a flag; the loop agrees on it at a step boundary, so nothing is ever saved from the middle of a step."""

from __future__ import annotations

import signal
from types import FrameType

PREEMPTION_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""From a scheduler, and from somebody at the keyboard: Ctrl-C must not cost the steps since the last checkpoint"""


class PreemptionFlag:
    """True once this process got a signal to stop. Any one rank is enough: the loop sums the flags of all ranks."""

    def __init__(self) -> None:
        self.raised = False
        for number in PREEMPTION_SIGNALS:
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
