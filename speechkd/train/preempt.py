"""Signals only set a flag; the loop agrees on it at a step boundary, so nothing is ever saved from the middle of a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Thread
from types import FrameType

from speechkd.core.log import say

PREEMPTION_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""From a scheduler, and from somebody at the keyboard: Ctrl-C must not cost the steps since the last checkpoint"""


class PreemptionFlag:
    """True once this process got a signal to stop. Any one rank is enough: the loop sums the flags of all ranks.

    With `tells`, the first signal is acknowledged at once, with the step after which training will stop. A thread does it: Python runs
    handlers only between two calls, and one call of a step can take minutes.
    """

    def __init__(self, tells: bool = False) -> None:
        self.raised = False
        self.last_step: Callable[[], int | None] = lambda: None
        """the step after which training would stop; None before the first begins"""
        if tells:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            Thread(target=self._tell, args=(reader,), name="preemption", daemon=True).start()
        for number in PREEMPTION_SIGNALS:
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True

    def _tell(self, reader: int) -> None:
        """Wait for the first signal that stops training, and say what will happen."""
        while not (heard := [number for number in os.read(reader, 64) if number in PREEMPTION_SIGNALS]):
            pass
        step = self.last_step()
        after = "the first step" if step is None else f"step {step}"
        again = "; Ctrl-C again ends at once" if heard[0] == signal.SIGINT else f" ({signal.Signals(heard[0]).name})"
        say(f"train: stopping after {after}, with a checkpoint{again}")
