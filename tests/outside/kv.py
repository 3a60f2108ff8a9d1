"""A node of understudy with a key-value store, and a pair of them."""

import shutil
import subprocess
from pathlib import Path

from . import inside
from .agent import Agent
from .binary import Binary
from .bridge import Plug
from .network import free_ports
from .resp import Connection
from .waiting import until

STORE = "kv"
PORT = 7479


class KvNode(Agent):
    """One node, on ports of the loopback or on a machine's network of its own."""

    def __init__(self, binary: Binary, folder: Path, plug: Plug | None = None) -> None:
        self.binary, self.folder, self.name, self.plug = binary, folder, folder.name, plug
        (folder / "root").mkdir(parents=True)
        if plug:
            self.kv_port, self._peer, self._monitor = PORT, f"{plug.ip}:7400", f"{plug.ip}:7480"
        else:
            self.kv_port, peer, monitor = free_ports(3)
            self._peer, self._monitor = f"127.0.0.1:{peer}", f"127.0.0.1:{monitor}"

    def within(self, command: list) -> list:
        return self.plug.within(command) if self.plug else command

    def init(self, settings: dict[str, str | bool]) -> None:
        """Makes the first node of a cluster, with these settings of `[kv]`."""
        self.verb("init", "--name", self.name, "--cluster", "campaign", "--kv", *self._places())
        path = self.folder / "etc/understudy.toml"
        lines = [line for line in path.read_text().splitlines() if line.partition(" ")[0] not in settings]
        lines.insert(lines.index("[kv]") + 1, "\n".join(f"{name} = {_toml(value)}" for name, value in settings.items()))
        path.write_text("\n".join(lines) + "\n")

    def join(self, primary: "KvNode") -> None:
        """Makes this node a standby of the other's cluster; it does not run yet."""
        self.verb("join", *primary.invite(self.name), *self._places(), timeout=600)

    def _places(self) -> list[str]:
        return ["--address", self._peer, "--monitor", self._monitor, "--root", str(self.folder / "root"),
                "--state-dir", str(self.folder / "state"), "--run-dir", str(self.folder / "run"),
                "--kv-listen", f"127.0.0.1:{self.kv_port}"]

    def connect(self, timeout: float = 2) -> Connection:
        """Connects to the store from the node itself, even when that is cut off from the others."""
        if not self.plug:
            return Connection.to(self.kv_port, timeout)
        return Connection(inside.connect(self.plug, self.kv_port, timeout))

    def store(self) -> dict:
        """Returns what the status tells of the store beside its lag."""
        [store] = [store for store in self.status()["stores"] if store["name"] == STORE]
        return store

    def position(self) -> int | None:
        """Returns how many operations this node has made visible; `None` while it does not know yet."""
        return self.store()["position"]

    def await_position(self) -> int:
        told: list[int] = []

        def is_told() -> bool:
            position = self.position()
            told.extend([] if position is None else [position])
            return bool(told)

        until(f"{self.name} has a position", is_told)
        return told[0]

    def state_bytes(self) -> int:
        """Returns what the store takes on the disk."""
        told = subprocess.run(["du", "-s", "--block-size=1", self.folder / "state/kv"], capture_output=True, text=True)
        # Files go away while it looks; what there is it tells.
        return int(told.stdout.split()[0])

    def remove(self) -> None:
        if self.daemon:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None
        if self.plug:
            self.plug.remove()


class KvPair:
    """Two nodes of one cluster; which of them is primary changes."""

    def __init__(self, binary: Binary, folder: Path, settings: dict[str, str | bool] | None = None,
                 is_plugged: bool = False) -> None:
        """Makes a pair that follows; `is_plugged` needs a bridge."""
        self.folder = folder
        self.primary, self.standby = (KvNode(binary, folder / name, Plug() if is_plugged else None) for name in "ab")
        self._settings = {"durability": "standby-first", **(settings or {})}

    @property
    def nodes(self) -> tuple[KvNode, KvNode]:
        return self.primary, self.standby

    def begin(self) -> None:
        self.primary.init(self._settings)
        self.primary.serve()
        self.primary.await_role("primary")
        self.standby.join(self.primary)
        self.standby.serve()
        self.await_following()

    def await_following(self, patience: float = 60) -> None:
        """Waits until the primary takes writes that are durable on the standby when they are acknowledged."""

        def follows() -> bool:
            for node in self.nodes:
                node.assert_runs()
            primary, standby = self.primary.status(), self.standby.status()
            return (primary["role"] == "primary" and standby["role"] == "standby"
                    and any(one["node"] == self.standby.name and one["is_connected"] for one in primary["standbys"])
                    and (self._settings["durability"] == "async"
                         or (self.primary.store().get("durability") or {}).get("state") == "held"))

        until(f"{self.standby.name} follows {self.primary.name}", follows, patience, 0.02)

    def await_equal(self, patience: float = 60) -> None:
        """Waits until the standby has applied all that the primary has now."""
        self.primary.verb("wait", "--store", STORE, "--timeout", str(int(patience)), timeout=patience + 10)

    def swap(self) -> None:
        """Notes that the roles have changed."""
        self.primary, self.standby = self.standby, self.primary

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()

    def discard(self) -> None:
        self.remove()
        shutil.rmtree(self.folder, ignore_errors=True)


def _toml(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'
