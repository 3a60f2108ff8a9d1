"""The appliance of the campaigns that move all of it: stores of every kind, an index, services, and an address.

Nodes are network namespaces on a bridge, and so is the client, who sees the appliance only at its address.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import inside
from .binary import REPOSITORY, Binary
from .bridge import SUBNET
from .node import Node
from .pair import Failed
from .postgres import DATA, PORT, SOCKETS, kill, until
from .processes import spawn
from .resp import Connection

ADDRESS = f"{SUBNET}.199"
# That of the web service is said in `appliance_service.py`, too.
KV_PORT, WEB_PORT = 7479, 8080
PASSWORD = "open sesame"
TREE, SETTINGS, INDEX = "tree", "etc/app/app.conf", "search"
# The names of the stores, as reports have them.
STORES = {"postgres": "postgres", "files": TREE, "kv": "kv", "settings": "settings"}
_OUTSIDE = REPOSITORY / "tests/outside"
_TEXT = "md5(n::text) || ' ' || md5((n * 7)::text) || ' turtle ' || md5((n * 13)::text)"


@dataclass(frozen=True)
class Abilities:
    """What this build does by itself; the campaign does the rest."""

    has_address: bool
    has_fence: bool
    has_watermark: bool

    @classmethod
    def of(cls, binary: Binary) -> "Abilities":
        return cls(accepts(binary, f'[address]\nip = "{ADDRESS}/24"\ninterface = "eth0"\n'),
                   accepts(binary, '[fence]\ncommand = ["true"]\n'),
                   accepts(binary, '[postgres]\ndata_dir = "/pg"\n[[index]]\nname = "x"\nengine = "tantivy"\n'
                                   'source = "SELECT id, changed FROM t"\nwatermark = "changed"\n'))


def accepts(binary: Binary, section: str) -> bool:
    """Returns whether this build takes a configuration with that section."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "node.toml").write_text('name = "a"\n')
        (Path(folder) / "understudy.toml").write_text(
            f'[cluster]\nname = "x"\n[[node]]\nname = "a"\naddress = "10.0.0.1:7400"\n{section}')
        checked = subprocess.run([binary.path, "--config", folder, "config", "check"], capture_output=True)
        return checked.returncode == 0


@dataclass(frozen=True)
class Settings:
    """What a campaign may choose."""

    abilities: Abilities
    durability: str = "async"
    degrade_after: str = "5s"
    documents: int = 2000

    @property
    def services(self) -> list[str]:
        return ["worker", "web", *([] if self.abilities.has_address else ["address"])]


class Member(Node):
    """One node of the appliance."""

    def __init__(self, binary: Binary, folder: Path, settings: Settings) -> None:
        super().__init__(binary, folder)
        self._settings = settings
        for place in (self.root / TREE, (self.root / SETTINGS).parent, self.root / "run"):
            place.mkdir(parents=True, exist_ok=True)
        secret = self.root / "etc/kv-password"
        secret.write_text(PASSWORD)
        secret.chmod(0o600)
        self.mac = self.plug.mac()
        machines = folder.parent / "machines"
        machines.mkdir(exist_ok=True)
        (machines / self.name).write_text(f"{self.plug.holder} {os.getpid()} {self.plug.port} {ADDRESS}/24")

    @property
    def tree(self) -> Path:
        return self.root / TREE

    def found(self) -> None:
        """Makes the first node of the cluster."""
        self.verb("init", "--name", self.name, "--cluster", "campaign", *self._places())
        path = self.folder / "etc/understudy.toml"
        node = f'[[node]]\nname = "{self.name}"\naddress = "{self.ip}:7400"\n'
        path.write_text('[cluster]\nname = "campaign"\npromotion = "manual"\nrejoin = "manual"\n\n' + node + self._sections())
        self._listen()

    def join(self, primary: "Member") -> None:
        """Makes a standby of a new machine; it does not run yet."""
        self.verb("join", *self.join_arguments(primary.invite(self.name)), timeout=600)
        self._listen()

    def _listen(self) -> None:
        """Lets the key-value store be reached at the address, too."""
        path = self.folder / "etc/node.toml"
        lines = path.read_text().splitlines()
        at = [number for number, line in enumerate(lines) if line == "[kv]"]
        if at:
            lines[at[0]:at[0] + 2] = []
        path.write_text("\n".join([*lines, "[kv]", f'listen = "0.0.0.0:{KV_PORT}"']) + "\n")

    def _sections(self) -> str:
        """Returns the appliance as an operator would write it."""
        chosen = self._settings
        python = [sys.executable, "-S", "-E"]
        command = lambda *words: json.dumps([*python, *map(str, words)])
        service = lambda name, *more: "\n".join(
            [f'\n[[service]]\nname = "{name}"'] +
            [f"{verb} = {command(_OUTSIDE / 'appliance_service.py', verb, name, *more)}" for verb in ("start", "stop", "status")])
        # No transaction here takes as long; a minute would have every refresh of a young index compare all of it.
        watermark = '\nwatermark = "changed"\noverlap = "2s"' if chosen.abilities.has_watermark else ""
        told = f"""
[postgres]
data_dir = "/{DATA}"
port = {PORT}
user = "postgres"
socket_dir = "/{SOCKETS}"
database = "postgres"
durability = "{chosen.durability}"
degrade_after = "5s"

[[files]]
name = "{TREE}"
path = "/{TREE}"
exclude = ["*.tmp"]
delete_guard = "100%"

[kv]
durability = "standby-first"
degrade_after = "{chosen.degrade_after}"
write_timeout = "1s"
standby_reads = true
password_file = "/etc/kv-password"

[settings]
schedule = "*/2 * * * * *"
paths = ["/etc/app"]
exclude = ["*.new"]
validate = ["grep", "-q", "^generation = ", "{{dir}}/{SETTINGS}"]

[[index]]
name = "{INDEX}"
engine = "tantivy"
source = "SELECT id, title, body, changed FROM article"{watermark}
{service("worker")}
{service("web")}
"""
        if chosen.abilities.has_address:
            told += f'\n[address]\nip = "{ADDRESS}/24"\ninterface = "eth0"\n'
        else:
            told += service("address", f"{ADDRESS}/24") + "\n"
        if chosen.abilities.has_fence:
            told += f"\n[fence]\ncommand = {command(_OUTSIDE / 'fence_machine.py', self.folder.parent / 'machines')}\n"
        return told

    def fill(self) -> None:
        """Makes the rows that are searched, and the first settings."""
        (self.root / SETTINGS).write_text("generation = 0\n")
        self.ask("CREATE TABLE article (id bigint PRIMARY KEY, title text, body text, "
                 "changed timestamptz NOT NULL DEFAULT clock_timestamp())")
        self.ask("CREATE INDEX ON article (changed)")
        self.ask(f"INSERT INTO article SELECT n, 'title ' || n, {_TEXT} FROM generate_series(1, %s) n",
                 (self._settings.documents,))

    def serve(self, **environment: str) -> None:
        """Starts the daemon, and does not wait."""
        with open(self.folder / "log", "ab") as log:
            command = self.within([self.binary.path, "--config", self.folder / "etc", "serve"])
            self.daemon = spawn(command, stdout=log, stderr=log, env={**os.environ, **environment})

    def connect(self, timeout: float = 2) -> Connection:
        """Connects to the key-value store from the node itself, even when that is cut off from the others."""
        connection = Connection(inside.connect(self.plug, KV_PORT, timeout))
        connection.call("AUTH", PASSWORD)
        return connection

    # A machine that fails.

    def power_off(self, is_cut: bool = True) -> None:
        super().power_off(True)
        self.forget_address()
        self.journal("off")

    def power_on(self) -> None:
        """Boots: the cable is in, and the daemon starts; whoever switched it off has also killed what we started."""
        if self.daemon:
            kill([self.daemon.pid])
            self.daemon.wait()
            self.daemon = None
        self.plug.mend()
        self.serve()

    def forget_address(self) -> None:
        """Takes the address from the kernel: one without power answers for none."""
        # It may not have it.
        subprocess.run(self.within(["ip", "-4", "address", "del", f"{ADDRESS}/24", "dev", "eth0"]), capture_output=True)

    def has_address(self) -> bool:
        told = subprocess.run(self.within(["ip", "-brief", "address", "show", "eth0"]), capture_output=True, text=True)
        return f" {ADDRESS}/" in told.stdout

    # What it says of itself.

    def epoch(self) -> tuple[int, str]:
        epoch = self.status()["epoch"]
        return epoch["number"], epoch["node"]

    def running_services(self) -> set[str]:
        """Returns the services that have a process on this machine, whatever anybody says of them."""
        running = set()
        for pid in self.plug.processes():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(word.endswith(b"appliance_service.py") for word in words) and b"start" in words:
                running.add(words[-2].decode())
        return running

    def journal(self, *words: str) -> None:
        with open(self.folder / "journal", "a") as journal:
            journal.write(" ".join([f"{time.time():.6f}", *words]) + "\n")

    def reports(self, since: float = 0.0) -> list[dict]:
        """Returns the reports of promotions here that began after `since` (by the wall clock), the oldest first."""
        told = [json.loads(path.read_text()) for path in (self.folder / "state/reports").glob("promotion-*.json")]
        return sorted((one for one in told if one["started"] / 1000 >= since - 0.001), key=lambda one: one["started"])

    def searched(self) -> int | None:
        """Returns how many documents the index has; `None` while it cannot be searched."""
        [index] = [index for index in self.status()["indexes"] if index["name"] == INDEX]
        return index["documents"] if index["state"] == "ready" else None


class Appliance:
    """A primary and its standbys; which of them is primary changes."""

    def __init__(self, binary: Binary, folder: Path, settings: Settings, count: int = 2) -> None:
        """Makes the primary alone."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings = folder, settings
        self.members = [Member(binary, folder / name, settings) for name in "abc"[:count]]
        self.primary, self.standby = self.members[:2]
        # Clients come to the address, which is on no node when its server starts.
        self.primary.init_postgres("listen_addresses = '*'")
        self.primary.found()
        self.primary.serve()
        self.primary.await_role("primary")
        until("Postgres of the primary answers", lambda: self.primary.ask("SELECT 1"))
        self.primary.fill()

    @property
    def nodes(self) -> tuple[Member, Member]:
        return self.primary, self.standby

    @property
    def others(self) -> list[Member]:
        """Returns everybody but the primary."""
        return [member for member in self.members if member is not self.primary]

    def join(self) -> None:
        """Makes the other nodes standbys that follow."""
        for member in self.others:
            member.join(self.primary)
        for member in self.others:
            # Who joined first does not know who came later: the file is the same on every node.
            shutil.copy(self.primary.folder / "etc/understudy.toml", member.folder / "etc/understudy.toml")
            member.serve()
        self.await_following()

    def await_streaming(self, patience: float = 60) -> float:
        """Waits until the primary streams to the standby, and returns the moment."""
        return until(f"{self.primary.name} streams to {self.standby.name}",
                     lambda: self.primary.streams_to(self.standby), patience)

    def await_following(self, patience: float = 60) -> None:
        """Waits until every store follows on every standby, and nothing is missing there."""

        def follows() -> bool:
            for member in self.members:
                member.assert_runs()
            status = self.primary.status()
            if status["role"] != "primary":
                raise Failed(f"{self.primary.name} is {status['role']}")
            lacking = [member.name for member in self.others
                       if member.role() != "standby" or not self.primary.streams_to(member)
                       or not any(one["node"] == member.name and one["is_connected"] for one in status["standbys"])]
            if lacking:
                raise Failed(f"{', '.join(lacking)} does not follow")
            [kv] = [store for store in status["stores"] if store["name"] == STORES["kv"]]
            if (kv.get("durability") or {}).get("state") != "held":
                raise Failed(f"the key-value store is {kv.get('durability')}")
            return True

        until("the standbys follow in every store", follows, patience, 0.02)
        self.primary.verb("wait", "--timeout", str(int(patience)), timeout=patience + 10)

    def await_front(self, member: Member, patience: float = 60) -> None:
        """Waits until that node has its services and the address."""

        def is_up() -> bool:
            states = {one["name"]: one["state"] for one in member.status()["services"]}
            if set(states.values()) != {"online"}:
                raise Failed(f"the services of {member.name} are {states}")
            return member.has_address()

        until(f"{member.name} has its services and the address", is_up, patience, 0.02)

    def swap(self) -> None:
        """Notes that the roles have changed."""
        self.primary, self.standby = self.standby, self.primary

    def remove(self) -> None:
        for member in self.members:
            member.remove()
