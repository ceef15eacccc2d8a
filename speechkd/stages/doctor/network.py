"""The network interface that gloo and NCCL's bootstrap use."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

from speechkd.cluster.profile import ClusterProfile
from speechkd.core.errors import nearest
from speechkd.stages.doctor.finding import Finding

CHECK = "interface"


def check_interface(profile: ClusterProfile | None) -> list[Finding]:
    """Whether the profile's interface exists, is up and has an address; where none is named, what gloo would choose."""
    named = profile.socket_ifname if profile is not None else os.environ.get("GLOO_SOCKET_IFNAME")
    if named:
        return [_named(named)]
    many_nodes = profile is not None and profile.train.nodes > 1
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        text, bad = f"this host's name, `{socket.gethostname()}`, does not resolve", True
    else:
        text, bad = f"not named; this host's name resolves to {address}", ipaddress.ip_address(address).is_loopback
    if bad and many_nodes:
        return [
            Finding(CHECK, "warn", f"{text}: gloo would not reach other nodes", f"set `socket_ifname` to one of: {', '.join(usable())}")
        ]
    return [Finding(CHECK, "ok", text)]


def _named(name: str) -> Finding:
    state = psutil.net_if_stats().get(name)
    if state is None:
        near = nearest(name, psutil.net_if_stats())
        hint = f"; did you mean `{near}`?" if near else ""
        return Finding(CHECK, "fail", f"`{name}` is not on this node{hint}", f"set `socket_ifname` to one of: {', '.join(usable())}")
    found = address_of(name)
    if not state.isup or found is None:
        return Finding(CHECK, "fail", f"`{name}` {'has no address' if state.isup else 'is down'}", f"usable here: {', '.join(usable())}")
    speed = f", {state.speed / 1000:g} Gb/s" if state.speed else ""
    return Finding(CHECK, "ok", f"{name} has {found}{speed}")


def usable() -> list[str]:
    """Interfaces of this node that are up and have an address, loopback last."""
    states = psutil.net_if_stats()
    names = [name for name in psutil.net_if_addrs() if name in states and states[name].isup and address_of(name)]
    return sorted(names, key=lambda name: (name == "lo", name))


def address_of(name: str) -> str | None:
    """The first IPv4, else IPv6, address of an interface."""
    addresses = psutil.net_if_addrs().get(name, [])
    for family in (socket.AF_INET, socket.AF_INET6):
        for found in addresses:
            if found.family == family:
                return str(found.address)
    return None
