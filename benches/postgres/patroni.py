"""Patroni with one etcd, as Debian packages them: the peer that most people run."""

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from tests.outside.pair import Failed
from tests.outside.postgres import (
    ACCESS, BARE_SETTINGS, PORT, SETTINGS, Machine, as_postgres, program, until,
)
from tests.outside.processes import spawn

PROGRAMS = ("patroni", "patronictl", "etcd")
SCOPE = "peer"
ETCD, REST = 2379, 8008
# Until a replica has been made, and until Patroni has noticed it: it looks every ten seconds.
PATIENCE = 120


def missing() -> str | None:
    """Returns what has to be installed first, if something has."""
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    if lacking:
        return (f"there is no {' and no '.join(lacking)} here "
                "(`apt-get install --no-install-recommends patroni etcd-server`)")
    return None


class Member(Machine):
    """A server that Patroni controls."""

    def start(self, etcd: str) -> None:
        settings = dict(line.split(" = ") for line in (SETTINGS + BARE_SETTINGS).split("\n") if line)
        configuration = {
            "scope": SCOPE, "name": self.name,
            "restapi": {"listen": f"{self.ip}:{REST}", "connect_address": f"{self.ip}:{REST}"},
            "etcd3": {"host": f"{etcd}:{ETCD}"},
            "bootstrap": {
                # Its defaults.
                "dcs": {"ttl": 30, "loop_wait": 10, "retry_timeout": 10, "postgresql": {
                    "use_pg_rewind": True, "use_slots": True, "parameters": settings}},
                "initdb": [{"encoding": "UTF8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"{self.ip},127.0.0.1:{PORT}", "connect_address": f"{self.ip}:{PORT}",
                "data_dir": str(self.data), "bin_dir": str(program("postgres").parent),
                "pgpass": str(self.sockets / "pgpass"),
                "authentication": {user: {"username": "postgres"} for user in ("superuser", "replication", "rewind")},
                # Without `replication` for 127.0.0.1 it cannot read its own timeline, and says so in its log only.
                "pg_hba": [line for line in ACCESS.split("\n") if line],
                "parameters": {"unix_socket_directories": str(self.sockets)},
            },
        }
        # What is JSON is YAML.
        self.configuration.write_text(json.dumps(configuration))
        with open(self.folder / "log", "ab") as log:
            self._daemon = spawn(self.plug.within(as_postgres(["patroni", self.configuration])), cwd="/", stdout=log,
                                 stderr=log)

    @property
    def configuration(self) -> Path:
        return self.folder / "patroni.yml"

    def answers(self, path: str) -> bool:
        """Asks Patroni's health check; from outside, as a load balancer does."""
        try:
            return urllib.request.urlopen(f"http://{self.ip}:{REST}/{path}", timeout=5).status == 200
        except urllib.error.HTTPError:
            return False


class PatroniPair:
    """Two members; which of them is primary changes."""

    def __init__(self, folder: Path) -> None:
        self.primary, self.standby = Member(folder / "p"), Member(folder / "q")
        self._etcd = Machine(folder / "etcd")
        url = f"http://{self._etcd.ip}:{ETCD}"
        with open(folder / "etcd/log", "ab") as log:
            spawn(self._etcd.plug.within(["etcd", "--data-dir", folder / "etcd/data", "--listen-client-urls", url,
                                          "--advertise-client-urls", url]), stdout=log, stderr=log)
        self.primary.start(self._etcd.ip)
        until("Patroni's primary serves", lambda: self.primary.answers("primary"), PATIENCE, interval=0.1)

    def join(self) -> None:
        self.standby.start(self._etcd.ip)
        self.await_ready()

    def await_ready(self) -> None:
        """Waits until both could swap their roles."""
        until("Patroni's standby is a replica", lambda: self.standby.answers("replica"), PATIENCE, interval=0.1)
        self.await_streaming(PATIENCE)

    def await_streaming(self, patience: float = 60) -> float:
        return until(f"{self.primary.name} streams to {self.standby.name}",
                     lambda: self.primary.streams_to(self.standby), patience)

    def switch_over(self) -> None:
        command = ["patronictl", "-c", self.primary.configuration, "switchover", "--master", self.primary.name,
                   "--candidate", self.standby.name, "--force", SCOPE]
        ended = subprocess.run(self.primary.plug.within(command), stdin=subprocess.DEVNULL, capture_output=True,
                               text=True)
        if ended.returncode or "Successfully switched over" not in ended.stdout:
            raise Failed(f"patronictl switchover: {ended.stdout.strip()} {ended.stderr.strip()}")
        self.swap()

    def swap(self) -> None:
        self.primary, self.standby = self.standby, self.primary

    def remove(self) -> None:
        for machine in (self.primary, self.standby, self._etcd):
            machine.remove()
