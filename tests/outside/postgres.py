"""A Postgres server on a machine, made and controlled by Postgres' own programs."""

import os
import re
import signal
import subprocess
from pathlib import Path

from . import client, waiting
from .bridge import Plug
from .pair import Failed
from .processes import descendants

PORT = 5432
DATA = "data/pg"
SOCKETS = "run/postgresql"

# What both sides of a comparison are made with. Those that understudy sets have its values, so that a bare server
# retries and answers as often.
SETTINGS = """
max_connections = 60
shared_buffers = 128MB
wal_level = replica
wal_log_hints = on
hot_standby = on
max_wal_senders = 10
wal_sender_timeout = 10s
wal_receiver_timeout = 10s
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 1s
"""
# A bare pair has no slots.
BARE_SETTINGS = "wal_keep_size = 2GB"
# Everybody on the bridge is trusted; understudy's own lines come before.
ACCESS = """
local all all trust
local replication all trust
host all all 10.78.0.0/24 trust
host replication all 10.78.0.0/24 trust
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""


def program(name: str) -> Path:
    """Returns the path of one of Postgres' programs, of the newest version there is."""
    versions = [int(found.name) for found in Path("/usr/lib/postgresql").iterdir() if found.name.isdigit()]
    return Path(f"/usr/lib/postgresql/{max(versions)}/bin/{name}")


def as_postgres(command: list) -> list:
    """Returns the command, to be run by the user who may run Postgres: root may not."""
    return ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", "--reset-env", "--", *command]


class Machine:
    """A machine: a folder and a plug, and the Postgres that is there, whoever controls it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.root = folder / "root"
        self.data, self.sockets = self.root / DATA, self.root / SOCKETS
        for place in (self.data, self.sockets):
            place.mkdir(parents=True)
            subprocess.run(["chown", "postgres:", place], check=True)
        self.data.chmod(0o700)
        self.plug = Plug()

    @property
    def ip(self) -> str:
        return self.plug.ip

    def run(self, command: list, timeout: float = 600) -> str:
        """Runs a program on this machine to its end; returns what it printed."""
        # What it leaves running must not keep a pipe open.
        with open(self.folder / "errors", "w+") as errors, open(self.folder / "output", "w+") as output:
            ended = subprocess.run(self.plug.within(command), cwd="/", stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=errors, timeout=timeout)
            errors.seek(0)
            output.seek(0)
            if ended.returncode:
                raise Failed(f"{' '.join(map(str, command))} on {self.name}: {errors.read().strip() or ended.returncode}")
            return output.read()

    def init_postgres(self, more: str = "") -> None:
        """Makes an empty cluster; nothing runs yet."""
        self.run(as_postgres([program("initdb"), "-k", "-E", "UTF8", "-D", self.data]))
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(f"{SETTINGS}port = {PORT}\n{more}\n")
        (self.data / "pg_hba.conf").write_text(ACCESS)

    def ask(self, sql: str, values: tuple = ()) -> list[tuple]:
        return client.ask(self.sockets, sql, values)

    def value(self, sql: str, values: tuple = ()):
        return self.ask(sql, values)[0][0]

    def postmaster(self) -> int | None:
        """Returns the process of the server, if there is one."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().partition("\n")[0])
        except (FileNotFoundError, ValueError):
            return None
        return pid if Path(f"/proc/{pid}").exists() else None

    def postgres_processes(self) -> list[int]:
        """Returns the server and all its children."""
        pid = self.postmaster()
        return [pid, *descendants(pid)] if pid else []

    def kill_postgres(self) -> None:
        """Kills the server and all its children at once."""
        kill(self.postgres_processes())

    def power_off(self, is_cut: bool = True) -> None:
        """Kills every process of this machine at once; nobody hears of it from here, if it is cut off first."""
        if is_cut:
            self.plug.cut()
        while left := self.plug.processes():
            kill(left)

    def source(self) -> str:
        """Returns how others connect to this server."""
        return f"host={self.ip} port={PORT} user=postgres dbname=postgres"

    def streams_to(self, other: "Machine") -> bool:
        """Returns whether this server streams to that of the other machine."""
        rows = self.ask("SELECT state FROM pg_stat_replication WHERE client_addr = %s", (other.ip,))
        return ("streaming",) in rows

    def remove(self) -> None:
        kill(self.plug.processes())
        self.plug.remove()


class Server(Machine):
    """A bare server, controlled by `pg_ctl`: the floor."""

    def ctl(self, *arguments: str) -> None:
        options = f"-c listen_addresses=* -c unix_socket_directories={self.sockets}"
        pg_ctl = [program("pg_ctl"), "-D", self.data, "-l", self.folder / "log", "-o", options]
        self.run(as_postgres([*pg_ctl, *arguments]))

    def start(self) -> None:
        log = self.folder / "log"
        log.touch()
        subprocess.run(["chown", "postgres:", log], check=True)
        self.ctl("-w", "start")

    def stop(self) -> None:
        self.ctl("-w", "-m", "fast", "stop")

    def signal_promote(self) -> None:
        """Promotes as `pg_ctl promote` does, without waiting for it: by a file and a signal."""
        (self.data / "promote").touch()
        os.kill(self.postmaster(), signal.SIGUSR1)

    def follow(self, primary: Machine) -> None:
        """Makes this cluster a standby of the other when it starts."""
        conf = self.data / "postgresql.auto.conf"
        ours = re.compile("primary_conninfo|recovery_target")
        lines = [line for line in conf.read_text().splitlines() if not ours.match(line)]
        lines += [f"primary_conninfo = '{primary.source()} application_name={self.name}'", "recovery_target_timeline = 'latest'"]
        conf.write_text("\n".join(lines) + "\n")
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        subprocess.run(["chown", "postgres:", signal_file, conf], check=True)

    def copy(self, source: str) -> None:
        """Takes a base backup, durable as `pg_basebackup` makes it by default."""
        options = ["-D", self.data, "-c", "fast", "-X", "stream", "-d", source]
        self.run(as_postgres([program("pg_basebackup"), *options]))

    def rewind(self, primary: "Server") -> None:
        options = ["-D", self.data, f"--source-server={primary.source()}"]
        self.run(as_postgres([program("pg_rewind"), *options]))


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def until(what: str, holds, patience: float = 60, interval: float = 0.005) -> float:
    """Waits as [`waiting.until`] does; a server that does not answer yet is no failure, either."""
    return waiting.until(what, holds, patience, interval, (client.Error,))
