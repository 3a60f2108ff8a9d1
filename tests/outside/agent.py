"""A daemon of understudy in a folder, and the verbs that are typed beside it."""

import http.client
import json
import signal
import subprocess
from pathlib import Path

from .binary import Binary
from .pair import AdminConnection, Failed
from .processes import spawn
from .waiting import until

_STATUS_PATIENCE = 10


class Ended(Exception):
    """A daemon has ended by itself."""


class Agent:
    """What is the same on every node, whatever it replicates."""

    binary: Binary
    folder: Path
    name: str
    daemon: subprocess.Popen | None = None

    def within(self, command: list) -> list:
        """Returns the command, to be run on this node."""
        return command

    def verb(self, name: str, *arguments: str, timeout: float = 120) -> str:
        """Runs a verb to its end; returns what it printed."""
        command = self.within([self.binary.path, "--config", self.folder / "etc", name, *arguments])
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

    def invite(self, name: str) -> list[str]:
        """Returns what `join` wants to know."""
        invited = self.json("invite", name)
        return [invited["url"], "--token", invited["token"]]

    def serve(self) -> None:
        """Starts the daemon, and does not wait."""
        self.start("serve")

    def start(self, *verb: str) -> None:
        with open(self.folder / "log", "ab") as log:
            command = self.within([self.binary.path, "--config", self.folder / "etc", *verb])
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
        """Kills the daemon alone; what it controls goes on."""
        self._end(signal.SIGKILL)

    def stop_daemon(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, with_signal: int) -> None:
        if self.daemon:
            self.daemon.send_signal(with_signal)
            self.daemon.wait(60)
            self.daemon = None
