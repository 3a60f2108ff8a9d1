"""Machines' networks: a namespace each, plugged into one bridge."""

import itertools
import os
import shutil
import subprocess
import time
from pathlib import Path

from .processes import spawn

NAME = "bridge"
SUBNET = "10.78.0"
_numbers = itertools.count(1)


def build() -> None:
    """Makes the bridge in this program's own network; it goes with it."""
    _ip("link", "add", NAME, "type", "bridge")
    _ip("address", "add", f"{SUBNET}.254/24", "dev", NAME)
    _ip("link", "set", NAME, "up")


def can_slow_down() -> bool:
    """Returns whether this kernel can delay what an interface sends."""
    slow = ["tc", "qdisc", "add", "dev", NAME, "root", "netem", "delay", "0ms"]
    if not shutil.which("tc") or subprocess.run(slow, stderr=subprocess.DEVNULL).returncode:
        return False
    subprocess.run(["tc", "qdisc", "del", "dev", NAME, "root"], check=True)
    return True


class Plug:
    """A network namespace with one interface, whose other end is a port of the bridge."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.ip, self.port = f"{SUBNET}.{number}", f"port{number}"
        # It lives as long as a process is in it, and needs no name that could be left behind.
        self._holder = spawn(["unshare", "--net", "--", "sleep", "infinity"])
        self._await_namespace()
        inside = ["peer", "name", "eth0", "netns", str(self._holder.pid)]
        _ip("link", "add", self.port, "type", "veth", *inside)
        _ip("link", "set", self.port, "master", NAME)
        for line in (f"address add {self.ip}/24 dev eth0", "link set eth0 up", "link set lo up"):
            subprocess.run(self.within(["ip", *line.split()]), check=True)
        self.mend()

    @property
    def namespace(self) -> str:
        """Returns the path by which this namespace is entered."""
        return f"/proc/{self._holder.pid}/ns/net"

    def within(self, command: list) -> list:
        """Returns the command, to be run in this namespace."""
        return ["nsenter", f"--net={self.namespace}", "--", *command]

    def mac(self) -> str:
        """Returns the hardware address by which the others know this machine."""
        told = subprocess.run(self.within(["ip", "-brief", "link", "show", "eth0"]), capture_output=True, text=True,
                              check=True)
        return told.stdout.split()[2]

    def cut(self) -> None:
        """Pulls the cable: nothing leaves any more, not even the end of a connection."""
        _ip("link", "set", self.port, "down")

    def mend(self) -> None:
        _ip("link", "set", self.port, "up")

    def slow_down(self, milliseconds: int) -> None:
        """Delays what is sent to this machine, where [`can_slow_down`]."""
        slow = ["tc", "qdisc", "add", "dev", self.port, "root", "netem", "delay", f"{milliseconds}ms"]
        subprocess.run(slow, check=True)

    def speed_up(self) -> None:
        subprocess.run(["tc", "qdisc", "del", "dev", self.port, "root"], check=True)

    def processes(self) -> list[int]:
        """Returns all processes of this machine."""
        mine = os.readlink(self.namespace)
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self._holder.pid:
                try:
                    if os.readlink(entry / "ns/net") == mine:
                        found.append(int(entry.name))
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    # It has ended, or is just ending: then not even root may look.
                    pass
        return found

    @property
    def holder(self) -> int:
        """Returns the process that keeps the namespace, and is none of the machine's."""
        return self._holder.pid

    def remove(self) -> None:
        """Ends the namespace, and its port with it."""
        self._holder.kill()
        self._holder.wait()

    def _await_namespace(self) -> None:
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(self.namespace) == ours:
            time.sleep(0.001)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
