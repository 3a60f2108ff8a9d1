"""A pair from nothing, under the history of one seed: what goes wrong, who takes over, and how the other comes back."""

import json
import random
import re
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from tests.outside.agent import Ended
from tests.outside.binary import Binary
from tests.outside.node import Node, Pair
from tests.outside.pair import Failed
from tests.outside.postgres import until

from tests.soak.campaign import Violation

from . import faults, judge
from .clients import TABLE, Clients, is_held
from .history import History, Loss, TakeOver

# A small disk, and a Postgres that keeps little beside its data.
DISK_BYTES = 1 << 30
POSTGRES = "max_wal_size = 128MB\nmin_wal_size = 32MB\ncheckpoint_timeout = 30s"
DEGRADE_AFTER = "5s"
# What has not come about by then never will.
PATIENCE = 40
FAULTS_MAX = 2
FAULT_SECONDS_MAX = 2.5
LINGERING_SHARE = 0.4
# Then what lingers is healed, if something does.
LINGERING_PATIENCE = 8
# A promotion that has not come to its end by then is begun again.
PROMOTION_PATIENCE = 15
# An old primary that is cut off and superseded goes on for so long before the cable is plugged in again.
APART_SECONDS_MAX = 4.0
KINDS = ("switchover", "switchover", "promote", "death", "death", "cut", "cut")


class Trial:
    """One seed's pair."""

    def __init__(self, binary: Binary, folder: Path, seed: int, can_slow_down: bool) -> None:
        self._seed, self._folder = seed, folder
        self._kinds = faults.kinds(can_slow_down)
        self._history, self._changes = History(), []
        # Rows whose loss was told, and allowed.
        self._given_up: set[tuple[int, int]] = set()
        self._durability = "async"
        for name in ("a", "b"):
            _mount_disk(folder / f"{name}.image", folder / name / "root")
        self._pair = Pair(binary, folder, self._section(), POSTGRES)
        self._clients = Clients(self._pair.nodes, self._history)

    def begin(self) -> None:
        self._clients.make_table(self._pair.primary)
        self._pair.join()
        self._clients.start()

    def end(self) -> None:
        self._clients.stop()
        self._pair.remove()
        for name in ("a", "b"):
            subprocess.run(["umount", "--lazy", self._folder / name / "root"], check=True)

    def keep(self) -> None:
        """Writes down what was seen, for whoever looks into a violation."""
        told = {"acks": [asdict(ack) for ack in self._history.acks],
                "claims": [asdict(claim) for claim in self._history.claims],
                "cuts": self._history.cuts, "take_overs": [asdict(change) for change in self._changes]}
        (self._folder / "history.json").write_text(json.dumps(told))

    def round(self, number: int) -> str:
        """Disturbs, changes roles, brings the other back, and judges; returns what it did in a line."""
        self._rng = random.Random(f"postgres {self._seed} {number}")
        done: list[str] = []
        try:
            return self._round(done)
        except (Violation, Failed, Ended) as violation:
            raise Violation(f"{violation}\nafter: {', '.join(done) or 'nothing'}") from violation

    def _round(self, done: list[str]) -> str:
        begun, rows = time.monotonic(), len(self._history.acks)
        self._round_began = time.time()
        self._set_durability(self._rng.choice(["async", "sync"]))
        done.append(self._durability)
        lingering = self._disturb(done)
        kind = self._rng.choice(KINDS)
        done.append(kind)
        word = time.monotonic()
        self._change(kind, lingering, done)
        taken_over = time.monotonic()
        self._bring_back(kind)
        streams = self._pair.await_streaming(PATIENCE)
        missing = self._judge()
        return (f"{', '.join(done)}; {len(self._history.acks) - rows} rows, {missing} of them lost as told; taken over "
                f"in {taken_over - word:.1f} s, back after {streams - taken_over:.1f}, "
                f"{time.monotonic() - begun:.0f} s in all")

    # What goes wrong.

    def _disturb(self, done: list[str]) -> list[faults.Fault]:
        """Lets things go wrong one after the other; returns those that are to last."""
        lingering = []
        time.sleep(self._rng.random())
        for _ in range(self._rng.randint(0, FAULTS_MAX)):
            fault = self._rng.choice(self._kinds)(self._pair, self._history, self._rng)
            lasts = fault.may_linger and self._rng.random() < LINGERING_SHARE
            seconds = self._rng.random() * FAULT_SECONDS_MAX
            done.append(f"{fault}{', which lasts' if lasts else ''}")
            fault.begin()
            time.sleep(seconds)
            if lasts:
                lingering.append(fault)
            else:
                fault.heal()
        return lingering

    # Who takes over.

    def _change(self, kind: str, lingering: list[faults.Fault], done: list[str]) -> None:
        """Gives the word, again if it is refused: what went wrong before may have to heal first."""
        pair, deadline = self._pair, time.monotonic() + PATIENCE
        patience, is_forced = LINGERING_PATIENCE if lingering else PROMOTION_PATIENCE, kind in ("death", "cut")
        if kind == "death":
            self._history.cuts.append((time.monotonic(), None))
            pair.primary.power_off()
        if kind == "cut":
            self._history.cuts.append((time.monotonic(), None))
            pair.primary.plug.cut()
        while True:
            begun = time.monotonic()
            try:
                report = self._take_over(kind, is_forced, patience)
                break
            except Failed as failed:
                while lingering:
                    lingering.pop().heal()
                # What its hint says, where the old primary has stopped and cannot hand over what it had.
                is_forced = is_forced or kind == "promote" and "promote --force" in str(failed)
                patience = PROMOTION_PATIENCE
                if time.monotonic() > deadline:
                    raise Violation(f"the other node does not take over: {failed}") from failed
                time.sleep(0.5)
        for fault in lingering:
            fault.heal()
        [lost] = [loss for loss in report["lost"] if loss["name"] == "postgres"]
        cut = report["cut"] and report["cut"] / 1000 - (time.time() - time.monotonic())
        self._changes.append(TakeOver(pair.primary.name, pair.standby.name, begun, time.monotonic(),
                                      report["fenced"] is not None, is_forced, Loss(lost["amount"], cut)))
        done.append(f"{'forced, ' if is_forced else ''}epoch {report['epoch']['number']}.{report['epoch']['node']}")
        pair.swap()

    def _take_over(self, kind: str, is_forced: bool, patience: float) -> dict:
        standby, primary = self._pair.standby, self._pair.primary
        if kind == "switchover":
            # Either side may be asked.
            outcome = self._rng.choice([standby, primary]).json("switchover", timeout=patience)
        else:
            outcome = standby.json("promote", *(["--force"] if is_forced else []), timeout=patience)
        if "promoted" in outcome:
            return outcome["promoted"]
        # It was done by an attempt that seemed to fail; then the report was kept.
        reports = sorted((standby.folder / "state/reports").glob("promotion-*.json"),
                         key=lambda path: path.stat().st_mtime)
        if not reports:
            raise Violation(f"{standby.name} says {outcome}, and has no report")
        return json.loads(reports[-1].read_text())

    # How the other one comes back.

    def _bring_back(self, kind: str) -> None:
        """Makes the old primary a standby."""
        old = self._pair.standby
        if kind in ("death", "cut"):
            if kind == "cut":
                time.sleep(self._rng.random() * APART_SECONDS_MAX)
            old.plug.mend()
            self._history.cuts[-1] = (self._history.cuts[-1][0], time.monotonic())
        if kind == "death":
            old.serve()
        if kind == "switchover":
            old.await_role("standby", PATIENCE)
            return
        old.await_role("fenced", PATIENCE)
        # What it still serves is stopped first; until then it refuses.
        until(f"{old.name} rejoins", lambda: old.json("rejoin", timeout=PATIENCE), PATIENCE, interval=0.3)

    # Whether all is as it should be.

    def _judge(self) -> int:
        """Compares what was promised with what is there; returns how many rows are lost, as the report allows."""
        # What is acknowledged while this looks would not be in what was read.
        self._clients.pause()
        try:
            found, missing = self._found()
        finally:
            self._clients.go_on()
        if found:
            raise Violation("\n".join(found))
        return missing

    def _found(self) -> tuple[list[str], int]:
        self._await_replay()
        primary, standby = self._pair.nodes
        rows = [set(node.ask(f"SELECT client, number FROM {TABLE}")) for node in self._pair.nodes]
        digests = [node.value(f"SELECT md5(string_agg(t::text, ' ' ORDER BY client, number)) FROM {TABLE} t")
                   for node in self._pair.nodes]
        found = []
        if rows[0] != rows[1] or digests[0] != digests[1]:
            found.append(f"both stream, and {primary.name} has {len(rows[0])} rows, {standby.name} {len(rows[1])}, "
                         f"{len(rows[0] ^ rows[1])} of them on one side only; digests {digests}")
        missing, violations = judge.lost(self._history, self._changes[-1], rows[0] | self._given_up)
        self._given_up |= missing
        found += violations + judge.two_writers(self._history, self._changes)
        kept = kept_rows(standby, self._round_began)
        if kept < len(missing):
            found.append(f"{standby.name} had {len(missing)} rows that {primary.name} lacks, and kept {kept} aside")
        return found, len(missing)

    def _await_replay(self) -> None:
        primary, standby = self._pair.nodes
        position = primary.value("SELECT pg_current_wal_lsn()")
        until(f"{standby.name} has replayed all of {primary.name}",
              lambda: standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)), PATIENCE)

    # What the nodes are told.

    def _section(self) -> str:
        return f'durability = "{self._durability}"\ndegrade_after = "{DEGRADE_AFTER}"'

    def _set_durability(self, durability: str) -> None:
        """Has both nodes do so, and waits until what is to be tried is there."""
        if durability != self._durability:
            self._configure(durability)
        if durability == "sync":
            # A promise that is never made cannot be broken.
            until(f"{self._pair.primary.name} says that commits wait", lambda: is_held(self._pair.primary.status()), PATIENCE)

    def _configure(self, durability: str) -> None:
        """Changes the configuration of both nodes, and starts their daemons with it."""
        before, self._durability = self._section(), durability
        for node in self._pair.nodes:
            path = node.folder / "etc/understudy.toml"
            text = path.read_text()
            changed = re.sub(r'(?m)^durability = ".*"$', f'durability = "{durability}"', text)
            if changed == text:
                raise Failed(f"{path} does not say {before!r}")
            path.write_text(changed)
            node.kill_daemon()
            node.serve()
        self._pair.primary.await_role("primary", PATIENCE)
        self._pair.standby.await_role("standby", PATIENCE)
        self._pair.await_streaming(PATIENCE)


def kept_rows(node: Node, since: float) -> int:
    """Returns how many inserted rows the node has kept aside since that time; an attempt that failed later counts."""
    kept = 0
    for path in (node.folder / "state/salvage").glob("postgres-*/summary.json"):
        summary = json.loads(path.read_text())
        if summary["made"] / 1000 >= since and summary["is_complete"]:
            kept += sum(sum(one["inserted"].values()) for one in summary["transactions"])
    return kept


def _mount_disk(image: Path, place: Path) -> None:
    """Mounts a small disk; it goes with this program's mounts, and the image stays for who looks into a violation."""
    place.mkdir(parents=True)
    with open(image, "xb") as out:
        out.truncate(DISK_BYTES)
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", lazy, image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
