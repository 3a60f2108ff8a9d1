"""A pair from nothing, under the history of one seed: what goes wrong, who takes over, and how the other comes back."""

import json
import random
import signal
import time
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path

from tests.outside.agent import Ended
from tests.outside.binary import Binary
from tests.outside.kv import STORE, KvNode, KvPair
from tests.outside.pair import Failed
from tests.outside.waiting import until
from tests.soak.campaign import Violation

from . import judge
from .clients import Clients, contents
from .history import Round, TakeOver

# What has not come about by then never will.
PATIENCE = 40
TROUBLE_SHARE = 0.4
TROUBLE_SECONDS_MAX = 1.8
# A promotion that has not come to its end by then is begun again.
PROMOTION_PATIENCE = 15
# An old primary that is apart and superseded goes on for so long.
APART_SECONDS_MAX = 2.0
# Half of the rounds end with a take-over; in each of those of `KILLS` a daemon is killed.
TAKE_OVERS = ("death", "death", "death", "death", "late death", "cut", "freeze", "promote", "switchover")
RESTARTS = ("primary killed", "primary killed", "standby killed", "standby killed", "both killed")
DEGRADE_AFTER = ("never", "1s")


class Break(Enum):
    """What is wrong on purpose, to see the judge report it."""

    # Clients take silence for an acknowledgement.
    SILENCE = "silence"
    # The store is asynchronous, and judged as if it were not.
    ASYNC = "async"


class Trial:
    """One seed's pair."""

    def __init__(self, binary: Binary, folder: Path, seed: int, broken: Break | None) -> None:
        rng = random.Random(f"kv {seed}")
        self._seed, self._folder, self._broken = seed, folder, broken
        # Neighbouring seeds differ, so that a short run has some of each.
        self._degrade_after = DEGRADE_AFTER[seed % 2]
        self._standby_reads = rng.random() < 0.5
        self._pair = KvPair(binary, folder, {
            "durability": "async" if broken is Break.ASYNC else "standby-first",
            "degrade_after": self._degrade_after, "write_timeout": "1s", "standby_reads": self._standby_reads,
        }, is_plugged=True)
        self._clients = Clients(self._pair.nodes, seed, self._standby_reads, broken is Break.SILENCE)
        self._seen = Round(False)
        # What was there when the rounds before had ended.
        self._past: dict[str, str] = {}

    def begin(self) -> None:
        self._pair.begin()
        self._clients.start()

    def end(self) -> None:
        self._clients.stop()
        self._pair.remove()

    def keep(self) -> None:
        told = {name: value for name, value in asdict(self._seen).items() if name != "operations"}
        told["operations"] = list(map(str, sorted(self._seen.operations, key=lambda one: one.called)))
        (self._folder / "history.json").write_text(json.dumps(told, indent=1, default=repr))

    def round(self, number: int) -> str:
        """Disturbs, changes roles, brings the other back, and judges; returns what it did in a line."""
        self._rng = random.Random(f"kv {self._seed} {number}")
        done: list[str] = [self._degrade_after, "standby reads"] if self._standby_reads else [self._degrade_after]
        try:
            return self._round(number, done)
        except (Violation, Failed, Ended) as violation:
            raise Violation(f"{violation}\nafter: {', '.join(done)}") from violation

    def _round(self, number: int, done: list[str]) -> str:
        begun = time.monotonic()
        self._seen = Round(may_degrade=self._degrade_after != "never")
        self._clients.begin(number, self._seen)
        self._sleep(0.2, 0.8)
        if self._rng.random() < TROUBLE_SHARE:
            self._disturb(done)
        is_take_over = self._rng.random() < 0.5
        kind = self._rng.choice(TAKE_OVERS if is_take_over else RESTARTS)
        done.append(kind)
        if is_take_over:
            self._take_over(kind, done)
        else:
            self._restart(kind)
        self._pair.await_following(PATIENCE)
        self._sleep(0.1, 0.4)
        lost = self._judge(number)
        writes = sum(one.is_known and one.kind is not judge.Kind.READ for one in self._seen.operations)
        unknown = sum(not one.is_known for one in self._seen.operations)
        return (f"{', '.join(done)}; {len(self._seen.operations)} operations, {writes} acknowledged writes, {lost} of "
                f"them lost as told, {unknown} unknown; {time.monotonic() - begun:.1f} s in all")

    def _sleep(self, least: float, most: float) -> None:
        time.sleep(self._rng.uniform(least, most))

    # What goes wrong.

    @contextmanager
    def _trouble(self, is_cut: bool = False):
        """Notes that the pair is not well, and with `is_cut` that the nodes do not hear each other."""
        lists = [self._seen.troubles, *([self._seen.cuts] if is_cut else [])]
        since = time.monotonic()
        for one in lists:
            one.append((since, None))
        try:
            yield
        finally:
            for one in lists:
                one[one.index((since, None))] = since, time.monotonic()

    def _disturb(self, done: list[str]) -> None:
        """Lets something go wrong for a while; it heals before anything else does."""
        node = self._rng.choice(self._pair.nodes)
        kind = self._rng.choice(["stopped", "cut", "killed"])
        done.append(f"{node.name} {kind}")
        seconds = self._rng.random() * TROUBLE_SECONDS_MAX
        with self._trouble(is_cut=True):
            if kind == "stopped":
                node.daemon.send_signal(signal.SIGSTOP)
                time.sleep(seconds)
                node.daemon.send_signal(signal.SIGCONT)
            elif kind == "cut":
                node.plug.cut()
                time.sleep(seconds)
                node.plug.mend()
            else:
                node.kill_daemon()
                time.sleep(seconds / 4)
                node.serve()
        self._sleep(0.0, 1.0)

    def _restart(self, kind: str) -> None:
        """Kills, and starts again in the same role."""
        nodes = {"primary killed": [self._pair.primary], "standby killed": [self._pair.standby],
                 "both killed": self._rng.sample(self._pair.nodes, 2)}[kind]
        with self._trouble(is_cut=True):
            for node in nodes:
                node.kill_daemon()
            self._sleep(0.0, 1.5)
            for node in self._rng.sample(nodes, len(nodes)):
                node.serve()

    # Who takes over.

    def _take_over(self, kind: str, done: list[str]) -> None:
        old = self._pair.primary
        match kind:
            case "switchover":
                self._change(kind, done, is_forced=False)
                old.await_role("standby", PATIENCE)
                return
            case "promote":
                # The old primary is asked, and hands over; before that the standby dies once.
                with self._trouble(is_cut=True):
                    self._pair.standby.kill_daemon()
                    self._pair.standby.serve()
                    self._pair.await_following(PATIENCE)
                self._change(kind, done, is_forced=False)
            case "death" | "late death":
                with self._trouble(is_cut=True):
                    if kind == "late death":
                        # The standby is away when the primary dies, and comes back alone.
                        self._pair.standby.kill_daemon()
                        self._sleep(0.0, 1.5)
                    old.kill_daemon()
                    if kind == "late death":
                        self._pair.standby.serve()
                        self._pair.standby.await_role("standby", PATIENCE)
                    self._change(kind, done, is_forced=True)
                    self._sleep(0.0, 0.5)
                    old.serve()
            case "cut":
                with self._trouble(is_cut=True):
                    old.plug.cut()
                    self._sleep(0.0, APART_SECONDS_MAX)
                    self._change(kind, done, is_forced=True)
                    self._sleep(0.0, APART_SECONDS_MAX)
                    old.plug.mend()
            case "freeze":
                with self._trouble(is_cut=True):
                    old.daemon.send_signal(signal.SIGSTOP)
                    self._change(kind, done, is_forced=True)
                    self._sleep(0.0, APART_SECONDS_MAX)
                    old.daemon.send_signal(signal.SIGCONT)
        self._rejoin(old)

    def _change(self, kind: str, done: list[str], is_forced: bool) -> None:
        """Gives the word, again if it is refused: what went wrong before may have to heal first."""
        pair, deadline = self._pair, time.monotonic() + PATIENCE
        begun = time.monotonic()
        while True:
            try:
                report = self._word(kind, is_forced)
                break
            except Failed as failed:
                # What its hint says, where the old primary has stopped and cannot hand over what it had.
                is_forced = is_forced or kind == "promote" and "promote --force" in str(failed)
                if time.monotonic() > deadline:
                    raise Violation(f"the other node does not take over: {failed}") from failed
                time.sleep(0.3)
        [lost] = [loss for loss in report["lost"] if loss["name"] == STORE]
        self._seen.change = TakeOver(pair.primary.name, pair.standby.name, begun, time.monotonic(),
                                     report["fenced"] is not None, is_forced, lost["amount"])
        done.append(f"{'forced, ' if is_forced else ''}epoch {report['epoch']['number']}.{report['epoch']['node']}")
        pair.swap()

    def _word(self, kind: str, is_forced: bool) -> dict:
        standby, primary = self._pair.standby, self._pair.primary
        if kind == "switchover":
            # Either side may be asked.
            outcome = self._rng.choice([standby, primary]).json("switchover", timeout=PROMOTION_PATIENCE)
        else:
            outcome = standby.json("promote", *(["--force"] if is_forced else []), timeout=PROMOTION_PATIENCE)
        if "promoted" in outcome:
            return outcome["promoted"]
        # It was done by an attempt that seemed to fail; then the report was kept.
        reports = sorted((standby.folder / "state/reports").glob("promotion-*.json"),
                         key=lambda path: path.stat().st_mtime)
        if not reports:
            raise Violation(f"{standby.name} says {outcome}, and has no report")
        return json.loads(reports[-1].read_text())

    def _rejoin(self, old: KvNode) -> None:
        """Makes the old primary a standby."""
        old.await_role("fenced", PATIENCE)
        # What it still serves is stopped first; until then it refuses.
        until(f"{old.name} rejoins", lambda: old.json("rejoin", timeout=PATIENCE), PATIENCE, interval=0.3)
        self._seen.change.salvaged = _salvaged(old)

    # Whether all is as it should be.

    def _judge(self, number: int) -> int:
        """Compares what was promised with what is there; returns how many writes are lost, as the report allows."""
        self._clients.pause()
        seen, prefix = self._seen, f"{number}:"
        begun = time.monotonic()
        there = contents(self._pair.primary)
        seen.ended = begun, time.monotonic()
        seen.final_standby = self._contents_of_standby()
        past = {key: value for key, value in there.items() if not key.startswith(prefix)}
        found = judge.differences("later rounds changed what earlier ones had left", self._past, past)
        seen.final = there
        found += judge.violations(seen)
        if found:
            raise Violation("\n".join(found))
        self._past = there
        change = seen.change
        lost = 0
        if change:
            lost = sum(one.is_known and one.kind is judge.Kind.WRITE and one.key not in there for one in seen.operations)
        return lost

    def _contents_of_standby(self) -> dict[str, str]:
        """Returns what the standby has; where it does not answer reads, the roles are swapped for it."""
        self._pair.await_equal(PATIENCE)
        if not self._standby_reads:
            standby = self._pair.standby
            until("the roles are swapped for a look", lambda: standby.json("switchover", timeout=PATIENCE), PATIENCE, 0.3)
            self._pair.swap()
            self._pair.await_following(PATIENCE)
            return contents(self._pair.primary)
        return contents(self._pair.standby)


def _salvaged(node: KvNode) -> bytes:
    """Returns everything that a node has kept aside of the store."""
    files = sorted(path for path in (node.folder / "state/salvage").glob("kv*/**/*") if path.is_file())
    return b"".join(path.read_bytes() for path in files)
