"""Ports for servers of tests."""

from __future__ import annotations

import os
import socket
from itertools import count

_NEXT = count(10_000 + os.getpid() % 15_000)


def free_port() -> int:
    """A port that is free now, below those that outgoing connections take."""
    for port in _NEXT:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError
