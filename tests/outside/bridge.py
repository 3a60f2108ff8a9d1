"""Machines' networks: a namespace each, plugged into one bridge."""

import itertools
import os
import subprocess
import time
from pathlib import Path

from .processes import spawn

NAME = "bridge"
_SUBNET = "10.78.0"
_numbers = itertools.count(1)


def build() -> None:
    """Makes the bridge in this program's own network; it goes with it."""
    _ip("link", "add", NAME, "type", "bridge")
    _ip("address", "add", f"{_SUBNET}.254/24", "dev", NAME)
    _ip("link", "set", NAME, "up")


class Plug:
    """A network namespace with one interface, whose other end is a port of the bridge."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.ip, self.port = f"{_SUBNET}.{number}", f"port{number}"
        # It lives as long as a process is in it, and needs no name that could be left behind.
        self._holder = spawn(["unshare", "--net", "--", "sleep", "infinity"])
        self._await_namespace()
        _ip("link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", str(self._holder.pid))
        _ip("link", "set", self.port, "master", NAME)
        for line in (f"address add {self.ip}/24 dev eth0", "link set eth0 up", "link set lo up"):
            subprocess.run(self.within(["ip", *line.split()]), check=True)
        self.mend()

    def within(self, command: list) -> list:
        """Returns the command, to be run in this namespace."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--", *command]

    def cut(self) -> None:
        """Pulls the cable: nothing leaves any more, not even the end of a connection."""
        _ip("link", "set", self.port, "down")

    def mend(self) -> None:
        _ip("link", "set", self.port, "up")

    def slow_down(self, milliseconds: int) -> None:
        """Delays what is sent to this machine; nothing happens where the kernel cannot."""
        self._shape("add", "root", "netem", "delay", f"{milliseconds}ms")

    def speed_up(self) -> None:
        self._shape("del", "root")

    def _shape(self, *arguments: str) -> None:
        verb, *rest = arguments
        subprocess.run(["tc", "qdisc", verb, "dev", self.port, *rest], stderr=subprocess.DEVNULL)

    def processes(self) -> list[int]:
        """Returns all processes of this machine."""
        mine = os.readlink(f"/proc/{self._holder.pid}/ns/net")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self._holder.pid:
                try:
                    if os.readlink(entry / "ns/net") == mine:
                        found.append(int(entry.name))
                except (FileNotFoundError, ProcessLookupError):
                    pass
        return found

    def remove(self) -> None:
        """Ends the namespace, and its port with it."""
        self._holder.kill()
        self._holder.wait()

    def _await_namespace(self) -> None:
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._holder.pid}/ns/net") == ours:
            time.sleep(0.001)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
