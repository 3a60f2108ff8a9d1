"""A machine with understudy on it, and a pair of them that replicates Postgres."""

import http.client
import json
import signal
import subprocess
import time
from pathlib import Path

from .binary import Binary
from .pair import Failed, AdminConnection
from .postgres import DATA, PORT, SOCKETS, Machine, until
from .processes import spawn

_STATUS_PATIENCE = 10


class Node(Machine):
    """One node: its Postgres is understudy's to control."""

    def __init__(self, binary: Binary, folder: Path) -> None:
        super().__init__(folder)
        self.binary = binary
        self.daemon: subprocess.Popen | None = None

    def verb(self, name: str, *arguments: str, timeout: float = 120) -> str:
        """Runs a verb to its end; returns what it printed."""
        command = self.plug.within([self.binary.path, "--config", self.folder / "etc", name, *arguments])
        typed = f"`understudy {' '.join([name, *arguments])}` on {self.name}"
        try:
            ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as expired:
            raise Failed(f"{typed} has not ended after {timeout:.0f} s") from expired
        if ended.returncode:
            raise Failed(f"{typed}: {ended.stderr.strip() or ended.stdout.strip() or ended.returncode}")
        return ended.stdout

    def json(self, name: str, *arguments: str, timeout: float = 120):
        """Runs a verb that has to succeed; returns the JSON that it printed."""
        return json.loads(self.verb(name, *arguments, "--json", timeout=timeout))

    def status(self) -> dict:
        """Asks the daemon as `understudy status` does, without the time that it takes to start a command."""
        connection = AdminConnection(self.folder / "run/understudy.sock", _STATUS_PATIENCE)
        try:
            connection.request("GET", "/status", "null", {"Content-Type": "application/json"})
            answer = connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"the daemon of {self.name} does not answer: {error}") from error
        finally:
            connection.close()
        for line in answer.splitlines():
            told = json.loads(line)
            if "result" in told:
                return told["result"]
        raise Failed(f"the daemon of {self.name} says: {answer[:200]!r}")

    def role(self) -> str:
        return self.status()["role"]

    def init(self, section: str = "") -> None:
        """Makes the first node of a cluster; `section` has further lines of `[postgres]`."""
        self.verb("init", "--name", self.name, "--cluster", "campaign", *self._places())
        with open(self.folder / "etc/understudy.toml", "a") as file:
            file.write(f'\n[postgres]\ndata_dir = "/{DATA}"\nport = {PORT}\nuser = "postgres"\n'
                       f'socket_dir = "/{SOCKETS}"\ndatabase = "postgres"\n{section}\n')

    def invite(self, name: str) -> list[str]:
        """Returns what `join` wants to know."""
        invited = self.json("invite", name)
        return [invited["url"], "--token", invited["token"]]

    def join_arguments(self, invited: list[str]) -> list[str]:
        return [*invited, *self._places()]

    def _places(self) -> list[str]:
        return ["--address", f"{self.ip}:7400", "--monitor", f"{self.ip}:7480", "--root", str(self.root),
                "--state-dir", str(self.folder / "state"), "--run-dir", str(self.folder / "run")]

    def serve(self) -> None:
        """Starts the daemon, and does not wait."""
        self.start("serve")

    def start(self, *verb: str) -> None:
        with open(self.folder / "log", "ab") as log:
            command = self.plug.within([self.binary.path, "--config", self.folder / "etc", *verb])
            self.daemon = spawn(command, stdout=log, stderr=log)

    def assert_runs(self) -> None:
        """Raises [`Ended`] if the daemon has ended by itself."""
        if self.daemon and self.daemon.poll() is not None:
            tail = (self.folder / "log").read_text(errors="replace").strip().splitlines()[-3:]
            raise Ended(f"the daemon of {self.name} ended with {self.daemon.returncode}: " + " | ".join(tail))

    def await_role(self, role: str, patience: float = 60) -> None:
        def has_role() -> bool:
            self.assert_runs()
            return self.role() == role

        until(f"{self.name} is {role}", has_role, patience)

    def kill_daemon(self) -> None:
        """Kills the daemon alone; Postgres goes on."""
        self._end(signal.SIGKILL)

    def stop_daemon(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, with_signal: int) -> None:
        if self.daemon:
            self.daemon.send_signal(with_signal)
            self.daemon.wait(60)
            self.daemon = None

    def power_off(self, is_cut: bool = True) -> None:
        super().power_off(is_cut)
        if self.daemon:
            self.daemon.wait()
            self.daemon = None

    def remove(self) -> None:
        super().remove()
        if self.daemon:
            self.daemon.wait()


class Ended(Exception):
    """A daemon has ended by itself."""


class Pair:
    """Two nodes of one cluster; which of them is primary changes."""

    def __init__(self, binary: Binary, folder: Path, section: str = "", postgres: str = "") -> None:
        """Makes the primary alone. `section` is for understudy's `[postgres]`, `postgres` for postgresql.conf."""
        self.primary, self.standby = Node(binary, folder / "a"), Node(binary, folder / "b")
        self.primary.init_postgres(postgres)
        self.primary.init(section)
        self.primary.serve()
        self.primary.await_role("primary")
        until("the primary's store has a position", lambda: self.primary.status()["stores"][0]["position"])

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
