"""A primary and a standby of one files store, on this machine's loopback."""

import http.client
import json
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .binary import Binary
from .network import free_ports
from .processes import cpu_seconds, spawn

STORE = "files"
TREE = "tree"

# The exit status of a command that was not understood.
USAGE = 2

STOP_PATIENCE = 30
# Then the daemons are looked at, and it is waited for again.
WAIT_PATIENCE = 20
# A daemon that does nothing but send its heartbeats stays below this share of a processor.
QUIET_SHARE = 0.04
QUIET_WINDOW = 0.25


class Failed(Exception):
    """A command of understudy failed, or the pair did not get where it should."""


class Misused(Exception):
    """understudy does not take the command as it was given; trying again would not help."""


class Node:
    """One node: its folders, and the daemon while it runs."""

    def __init__(self, binary: Binary, folder: Path) -> None:
        self.binary, self.folder = binary, folder
        self.root = folder / "root"
        self.tree = self.root / TREE
        self.tree.mkdir(parents=True)
        self.daemon: subprocess.Popen | None = None
        self.peer_port, self.monitor_port = free_ports(2)

    def command(self, verb: str, *arguments: str) -> list:
        return [self.binary.path, "--config", self.folder / "etc", verb, *arguments]

    def run(self, verb: str, *arguments: str, timeout: float = 120) -> str:
        """Runs a verb to its end; returns what it printed."""
        ended = subprocess.run(self.command(verb, *arguments), capture_output=True, text=True, timeout=timeout)
        if ended.returncode:
            kind = Misused if ended.returncode == USAGE else Failed
            raise kind(f"`understudy {verb}` on {self.folder.name}: {ended.stderr.strip() or ended.returncode}")
        return ended.stdout

    def start(self, verb: str, *arguments: str) -> None:
        """Starts the daemon with the verb that leads to it; its output goes to the folder's `log`."""
        self._spawn(self.command(verb, *arguments))

    def start_under(self, wrapper: list[str]) -> None:
        """Starts the daemon within another program that becomes it."""
        self._spawn([*wrapper, *self.command("serve")])

    def _spawn(self, command: list) -> None:
        with open(self.folder / "log", "ab") as log:
            self.daemon = spawn(command, stdout=log, stderr=log)

    def start_anew(self, verb: str, *arguments: str) -> None:
        """Starts a node that has no configuration yet."""
        self.start(verb, *arguments, *self._places(), "--serve")

    def make(self, verb: str, *arguments: str) -> None:
        """Makes the configuration of a node, and starts nothing."""
        self.run(verb, *arguments, *self._places())

    def _places(self) -> list[str]:
        return [
            "--address", f"127.0.0.1:{self.peer_port}", "--monitor", f"127.0.0.1:{self.monitor_port}",
            "--root", str(self.root), "--state-dir", str(self.folder / "state"),
            "--run-dir", str(self.folder / "run"),
        ]

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        if self.daemon is None:
            return
        self.daemon.send_signal(with_signal)
        try:
            self.daemon.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
        self.daemon = None

    def assert_socket(self) -> None:
        if not (self.folder / "run/understudy.sock").exists():
            raise Failed(f"{self.folder.name} has no admin socket")

    def ended(self) -> str | None:
        """Returns how the daemon ended by itself; `None` while it runs or when it was stopped."""
        if self.daemon is None or self.daemon.poll() is None:
            return None
        tail = (self.folder / "log").read_text(errors="replace").strip().splitlines()[-3:]
        return f"the daemon of {self.folder.name} ended with {self.daemon.returncode}: " + " | ".join(tail)


class AdminConnection(http.client.HTTPConnection):
    """HTTP to a daemon's admin socket."""

    def __init__(self, socket_path: Path, timeout: float) -> None:
        super().__init__("understudy", timeout=timeout)
        self._path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def send(self, data) -> None:
        """Sends; a daemon that has no need of the rest may have answered and hung up already, and its answer counts."""
        try:
            super().send(data)
        except BrokenPipeError:
            pass


class Pair:
    """Node `a` ships the tree, node `b` keeps its copy."""

    def __init__(self, binary: Binary, folder: Path, far: Path | None = None) -> None:
        """`far` is where the standby lives, if not beside the primary."""
        self.binary, self.folder = binary, folder
        self.a, self.b = Node(binary, folder / "a"), Node(binary, (far or folder) / "b")

    @property
    def source(self) -> Path:
        return self.a.tree

    @property
    def copy(self) -> Path:
        return self.b.tree

    @property
    def pids(self) -> list[int]:
        return [node.daemon.pid for node in (self.a, self.b) if node.daemon]

    def start_primary(self, **settings: str) -> None:
        """`settings` of the store are set to something else than what a new configuration has."""
        init = ["init", "--name", "a", "--files", f"{STORE}=/{TREE}"]
        if settings:
            self.a.make(*init)
            self._configure(settings)
            self.a.start("serve")
        else:
            self.a.start_anew(*init)
        self._until("the primary serves", self.a.assert_socket)
        self._until("the primary answers", lambda: self.a.run("status", "--json"))

    def _configure(self, settings: dict[str, str]) -> None:
        path = self.a.folder / "etc/understudy.toml"
        lines = path.read_text().splitlines()
        for name, value in settings.items():
            [number] = [number for number, line in enumerate(lines) if line.startswith(f"{name} =")]
            lines[number] = f'{name} = "{value}"'
        path.write_text("\n".join(lines) + "\n")

    def join(self) -> None:
        """Starts the standby; it seeds before it streams."""
        invited = json.loads(self.a.run("invite", "b", "--json"))
        self.b.start_anew("join", invited["url"], "--token", invited["token"])

    def wait_equal(self, patience: float) -> None:
        """Waits until the standby has applied everything; both may be about to start."""
        # A look at a file costs nothing, and seeding is timed.
        self._until("the standby serves", self.b.assert_socket, patience, interval=0.005)
        self.wait(patience)

    def wait(self, patience: float, until: str = "applied") -> None:
        """Waits until all that the primary has now is `flushed` or `applied` on the standby.

        A primary that is busy or has just started may be unable to tell what it has; it is asked again.
        """
        arguments = ["--timeout", str(int(min(patience, WAIT_PATIENCE)))]
        if self.binary.has_store:
            arguments += ["--store", STORE]
        if self.binary.has_flushed:
            arguments += [f"--{until}"]
        elif until != "applied":
            raise Misused(f"this build cannot wait for {until}")
        self._until(f"everything is {until} on the standby", lambda: self.a.run("wait", *arguments), patience)

    def ask_flushed(self, patience: float) -> None:
        """Waits as `understudy wait --flushed` does, without the time that it takes to start a command."""
        order = {"stores": [STORE], "level": "flushed", "patience": {"secs": int(patience), "nanos": 0}}
        connection = AdminConnection(self.a.folder / "run/understudy.sock", patience)
        try:
            connection.request("POST", "/wait", json.dumps(order), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise Failed(f"waiting for flushed: {answer.status} {body[:200]!r}")
        finally:
            connection.close()

    def wait_both(self, patience: float) -> dict[str, float | None]:
        """Waits for flushed and for applied at once; returns the moments (`time.monotonic`) of each."""

        def moment(until: str) -> float | None:
            if until == "flushed" and not self.binary.has_flushed:
                return None
            self.wait(patience, until)
            return time.monotonic()

        with ThreadPoolExecutor(2) as threads:
            return dict(zip(("flushed", "applied"), threads.map(moment, ("flushed", "applied"))))

    def sync(self, patience: float) -> None:
        """Forces a full scan, and waits until what it found is applied."""
        self.a.run("sync", STORE, timeout=patience)

    def settle(self, patience: float = 60) -> None:
        """Waits until both daemons have nothing more to do than their heartbeats."""
        deadline = time.monotonic() + patience
        while True:
            before = [cpu_seconds(pid) for pid in self.pids]
            time.sleep(QUIET_WINDOW)
            used = [cpu_seconds(pid) - was for pid, was in zip(self.pids, before)]
            if max(used) < QUIET_SHARE * QUIET_WINDOW:
                return
            if time.monotonic() > deadline:
                shares = ", ".join(f"{seconds / QUIET_WINDOW:.0%}" for seconds in used)
                raise Failed(f"the daemons are not quiet after {patience} s, they use {shares} of a processor")

    def stop(self) -> None:
        for node in (self.b, self.a):
            node.stop()

    def remove(self) -> None:
        """Stops both and removes all that they had."""
        self.stop()
        for folder in (self.folder, self.b.folder):
            shutil.rmtree(folder, ignore_errors=folder is self.b.folder)

    def _until(self, what: str, attempt, patience: float = 60, interval: float = 0.02) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                attempt()
                return
            except Failed as failed:
                for ended in (self.a.ended(), self.b.ended()):
                    if ended:
                        raise Failed(ended) from failed
                if time.monotonic() > deadline:
                    raise Failed(f"not within {patience:.0f} s: {what}; {failed}") from failed
            time.sleep(interval)
