"""The network interface by which ranks of several nodes find each other."""

from __future__ import annotations

import os
import socket

import psutil

from speechkd.core.errors import InputError

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def socket_interface(host: str, port: int) -> str:
    """GLOO_SOCKET_IFNAME, checked; where it is not set, the interface on the way to node 0 at `host`. Needs no host name to resolve.

    gloo left to itself asks what this host's name resolves to, and falls back to loopback, where no other node can reach it.
    """
    known = sorted(psutil.net_if_addrs())
    given = os.environ.get(GLOO, "")
    for name in filter(None, given.split(",")):
        if name not in known:
            raise InputError(f"{GLOO}={given}: {socket.gethostname()} has no interface `{name}`, only {', '.join(known)}")
    return given or _on_the_way(host, port)


def _on_the_way(host: str, port: int) -> str:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: the kernel picks the route
            own = probe.getsockname()[0]
    except OSError as error:
        raise InputError(f"no way from {socket.gethostname()} to node 0 at `{host}` ({error}): give an address that it has") from None
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == own for found in addresses):
            return name
    raise InputError(f"{socket.gethostname()} has no interface with the address {own} on its way to node 0: set {GLOO}")
