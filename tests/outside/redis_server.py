"""Redis from Debian: a primary and a replica that make each write durable before they answer."""

import shutil
import subprocess
import time
from pathlib import Path

from .network import free_ports
from .processes import spawn
from .resp import Closed, Connection
from .waiting import until

SERVER, BENCHMARK, CLI = "redis-server", "redis-benchmark", "redis-cli"
# What it would otherwise write besides, and the space for a replica that is away.
SETTINGS = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--bind", "127.0.0.1",
            "--repl-backlog-size", "1gb", "--client-output-buffer-limit", "replica 0 0 0", "--repl-diskless-sync-delay", "0"]


def is_there() -> bool:
    return all(map(shutil.which, (SERVER, BENCHMARK, CLI)))


class Redis:
    """One server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        [self.port] = free_ports(1)
        self.process: subprocess.Popen | None = None

    def start(self, primary: "Redis | None" = None, *more: str) -> None:
        of = ["--replicaof", f"127.0.0.1 {primary.port}"] if primary else []
        with open(self.folder / "log", "ab") as log:
            command = [SERVER, "--port", str(self.port), "--dir", self.folder, *SETTINGS, *of, *more]
            self.process = spawn(command, stdout=log, stderr=log)
        until("redis answers", lambda: self.info("persistence")["loading"] == "0", failures=(Closed,))

    def connect(self, timeout: float = 10) -> Connection:
        return Connection.to(self.port, timeout)

    def info(self, section: str) -> dict[str, str]:
        connection = self.connect()
        try:
            lines = connection.call("INFO", section).decode().splitlines()
        finally:
            connection.close()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def stop(self, patience: float = 30) -> None:
        if self.process is None:
            return
        deadline = time.monotonic() + patience
        while self.process.poll() is None and time.monotonic() < deadline:
            # It does not stop while it rewrites what it just copied, and has to be told again.
            self.process.terminate()
            try:
                self.process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        self.process.kill()
        self.process.wait()
        self.process = None


class RedisPair:
    """A primary and its replica."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.primary, self.replica = Redis(folder / "primary"), Redis(folder / "replica")

    def begin(self, *more: str) -> None:
        """Starts both, with further words of the command line."""
        self.primary.start(None, *more)
        self.replica.start(self.primary, *more)
        self.await_following()

    def await_following(self, patience: float = 60) -> None:
        until("the replica follows", lambda: self.replica.info("replication")["master_link_status"] == "up", patience)

    def is_equal(self) -> bool:
        return (self.replica.info("replication")["slave_repl_offset"]
                == self.primary.info("replication")["master_repl_offset"])

    def await_equal(self, patience: float = 120) -> None:
        until("the replica has everything", self.is_equal, patience)

    def remove(self) -> None:
        for server in (self.replica, self.primary):
            server.stop()

    def discard(self) -> None:
        self.remove()
        shutil.rmtree(self.folder, ignore_errors=True)
