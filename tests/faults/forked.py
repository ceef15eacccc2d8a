"""Real stages and workers without the seconds that a fresh interpreter costs: a process that has imported the libraries forks them."""

from __future__ import annotations

import os
from typing import Any

from speechkd.data.shards import workers

ALIVE = [-1, -1]
"""A pipe whose writing end every process of an attempt holds: it closes when the last one is gone."""


class Forked:
    """The workers' server as a fork of the stage, running the real `serve`; `wait` as a Popen has it."""

    def __init__(self, connection: Any) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            keep = {0, 1, 2, connection.fileno(), ALIVE[1]}
            for name in os.listdir("/proc/self/fd"):
                if int(name) not in keep:
                    try:
                        os.close(int(name))
                    except OSError:  # the listing's own
                        pass
            workers.serve(connection)
            os._exit(0)

    def wait(self) -> int:
        """The server's exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def fork_servers() -> None:
    """From here on this process forks its workers' servers."""
    workers._start = Forked  # type: ignore[assignment]
