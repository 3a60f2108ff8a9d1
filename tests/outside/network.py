"""Namespaces of one's own, so that nothing else is counted and nobody else is cut off."""

import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ENTERED = "UNDERSTUDY_OWN_NAMESPACES"
UNSHARE = ["unshare", "--net", "--mount", "--"]
PORTS = (15000, 30000)


def enter_own_namespaces(module: str) -> bool:
    """Starts this program again in fresh namespaces of network and mounts; returns whether it is in them.

    Does not return from the first call where namespaces may be made.
    """
    if ENTERED in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return True
    may = shutil.which("ip") and subprocess.run([*UNSHARE, "true"], stderr=subprocess.DEVNULL).returncode == 0
    if not may:
        return False
    os.environ[ENTERED] = "1"
    os.execvp("unshare", [*UNSHARE, sys.executable, "-m", module, *sys.argv[1:]])


def lo_bytes(pid: int | str = "self") -> int:
    """Returns how many bytes the loopback that process `pid` sees has carried, headers and all."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise RuntimeError("there is no loopback")


def free_ports(count: int) -> list[int]:
    """Returns ports of the loopback that nobody listens on.

    From below those that the kernel gives to outgoing connections (ip_local_port_range): one of these could
    be taken again before the node that is to listen there has started.
    """
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            one = socket.socket()
            try:
                one.bind(("127.0.0.1", random.randrange(*PORTS)))
            except OSError:
                one.close()
            else:
                sockets.append(one)
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def set_loopback(up: bool) -> None:
    """Cuts off or joins everything that talks over this namespace's loopback."""
    subprocess.run(["ip", "link", "set", "lo", "up" if up else "down"], check=True)
