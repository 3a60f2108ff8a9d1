"""A machine with understudy on it, and a pair of them that replicates Postgres."""

from pathlib import Path

from .agent import Agent
from .binary import Binary
from .postgres import DATA, PORT, SOCKETS, Machine, until


class Node(Agent, Machine):
    """One node: its Postgres is understudy's to control."""

    def __init__(self, binary: Binary, folder: Path) -> None:
        super().__init__(folder)
        self.binary = binary

    def within(self, command: list) -> list:
        return self.plug.within(command)

    def init(self, section: str = "") -> None:
        """Makes the first node of a cluster; `section` has further lines of `[postgres]`."""
        self.verb("init", "--name", self.name, "--cluster", "campaign", *self._places())
        with open(self.folder / "etc/understudy.toml", "a") as file:
            file.write(f'\n[postgres]\ndata_dir = "/{DATA}"\nport = {PORT}\nuser = "postgres"\n'
                       f'socket_dir = "/{SOCKETS}"\ndatabase = "postgres"\n{section}\n')

    def join_arguments(self, invited: list[str]) -> list[str]:
        return [*invited, *self._places()]

    def _places(self) -> list[str]:
        return ["--address", f"{self.ip}:7400", "--monitor", f"{self.ip}:7480", "--root", str(self.root),
                "--state-dir", str(self.folder / "state"), "--run-dir", str(self.folder / "run")]

    def power_off(self, is_cut: bool = True) -> None:
        super().power_off(is_cut)
        if self.daemon:
            self.daemon.wait()
            self.daemon = None

    def remove(self) -> None:
        super().remove()
        if self.daemon:
            self.daemon.wait()


class Pair:
    """Two nodes of one cluster; which of them is primary changes."""

    def __init__(self, binary: Binary, folder: Path, section: str = "", postgres: str = "") -> None:
        """Makes the primary alone. `section` is for understudy's `[postgres]`, `postgres` for postgresql.conf."""
        self.primary, self.standby = Node(binary, folder / "a"), Node(binary, folder / "b")
        self.primary.init_postgres(postgres)
        self.primary.init(section)
        self.primary.serve()
        self.primary.await_role("primary")
        until("the primary's store has a position",
              lambda: any(store["position"] for store in self.primary.status()["stores"]))

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.primary, self.standby

    def join(self) -> None:
        """Makes the other node a standby that streams."""
        invited = self.primary.invite(self.standby.name)
        self.standby.verb("join", *self.standby.join_arguments(invited), timeout=600)
        self.standby.serve()
        self.await_streaming()

    def await_streaming(self, patience: float = 60) -> float:
        """Waits until the primary streams to the standby, and returns the moment."""
        return until(f"{self.primary.name} streams to {self.standby.name}",
                     lambda: self.primary.streams_to(self.standby), patience)

    def swap(self) -> None:
        """Notes that the roles have changed."""
        self.primary, self.standby = self.standby, self.primary

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()
