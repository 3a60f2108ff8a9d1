"""An appliance from nothing, under the history of one seed: who takes over, what goes wrong, how the other comes back."""

import hashlib
import json
import os
import random
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path

from benches.files.compare import Different, assert_equal
from tests.outside.agent import Ended
from tests.outside.appliance import ADDRESS, INDEX, SETTINGS, STORES, Abilities, Appliance, Member, Settings
from tests.outside.arp import Prober
from tests.outside.binary import REPOSITORY, Binary
from tests.outside.bridge import Plug
from tests.outside.pair import Failed
from tests.outside.postgres import until
from tests.soak.campaign import Violation
from tests.soak.kv import judge as kv_judge
from tests.soak.kv.clients import Clients as KvClients
from tests.soak.kv.clients import contents
from tests.soak.kv.history import Round
from tests.soak.kv.history import TakeOver as KvTakeOver
from tests.soak.postgres import judge as postgres_judge
from tests.soak.postgres.clients import TABLE, is_held
from tests.soak.postgres.clients import Clients as PostgresClients
from tests.soak.postgres.history import History, Loss, TakeOver
from tests.soak.postgres.trial import kept_rows

from . import changes, front
from .visitor import Visitor

# What has not come about by then never will.
PATIENCE = 90
# A promotion that has not come to its end by then is begun again.
PROMOTION_PATIENCE = 60
# An old primary that is apart and superseded goes on for so long.
APART_SECONDS_MAX = 2.5
# The clients leave the nodes something of a small machine.
POSTGRES_INTERVAL, KV_INTERVAL = 0.03, 0.02
CRASH_SHARE, FAILING_SERVICE_SHARE, FAILING_FENCE_SHARE = 0.35, 0.2, 0.35
# How long after the word the daemon that promotes is killed, where it is not at the end of a step.
CRASH_SECONDS_MAX = 2.5
# A superseded primary that hears of it has this long to give up the address and to stop its services.
SILENCE_MAX = 20.0
# A standby is no further behind than this when the primary is cut off.
OVERRULED_BEFORE = 1.0
# A superseded primary that follows by itself needs no other word.
FOLLOWING_PATIENCE = 15


class Kind(Enum):
    """Who takes over from whom, and why."""

    # Both are well and swap their roles.
    SWITCHOVER = "switchover"
    # The old primary is asked, and stops.
    PROMOTE = "promote"
    # The machine is dead.
    DEATH = "death"
    # The daemon stands still, and everything else goes on: the fence command ends it.
    HANG = "hang"
    # The machine is cut off, and goes on alone.
    CUT = "cut"
    # The machine is cut off and its daemon starts again; both nodes are promoted by force.
    SPLIT = "split"
    # The whole machine stands still, and goes on later.
    PAUSE = "pause"


PLANNED = (Kind.SWITCHOVER, Kind.PROMOTE)
# The old primary and the new one are alive, and do not hear each other.
APART = (Kind.CUT, Kind.SPLIT, Kind.PAUSE)
WEIGHTS = {Kind.SWITCHOVER: 4, Kind.PROMOTE: 2, Kind.DEATH: 4, Kind.HANG: 2, Kind.CUT: 3, Kind.SPLIT: 2, Kind.PAUSE: 2}


class Break(Enum):
    """What is wrong on purpose, to see the judge report it."""

    # Whatever was sent or begun is taken for acknowledged.
    SILENCE = "silence"
    # The standby has the address as well.
    HOLDER = "holder"
    # A service runs on the standby.
    SERVICE = "service"


class Trial:
    """One seed's appliance."""

    def __init__(self, binary: Binary, folder: Path, seed: int, abilities: Abilities, only: Kind | None = None,
                 broken: Break | None = None, count: int | None = None) -> None:
        rng = random.Random(f"promotion {seed}")
        self._seed, self._folder, self._only, self._broken = seed, folder, only, broken
        # Neighbouring seeds differ, so that a short run has some of each.
        self._degrade_after = ["1s", "never"][seed % 2]
        self._durability = ["async", "sync"][seed // 2 % 2]
        self._abilities = abilities
        drawn = 3 if rng.random() < 0.25 and not only else 2
        self._pair = Appliance(binary, folder, Settings(abilities, self._durability, self._degrade_after), count or drawn)
        self._settings = self._pair.settings
        client = Plug()
        self._prober, self._visitor = Prober(client, ADDRESS), Visitor(client)
        self._client = client
        self._names = {member.mac: member.name for member in self._pair.members}
        self._rows, self._take_overs = History(), []
        self._postgres = PostgresClients(tuple(self._pair.members), self._rows, POSTGRES_INTERVAL)
        self._kv = KvClients(tuple(self._pair.members), seed, True, broken is Break.SILENCE, KV_INTERVAL)
        self._seen = Round(False)
        # What earlier rounds left, and what they were allowed to lose.
        self._past: dict[str, str] = {}
        self._lost_rows: set[tuple[int, int]] = set()
        self._lost_changes: set[tuple[str, str]] = set()
        self._had_split = False

    def begin(self) -> None:
        self._postgres.make_table(self._pair.primary)
        self._pair.await_front(self._pair.primary, PATIENCE)
        self._pair.join()
        self._prober.start()
        self._visitor.start()
        self._postgres.start()
        self._kv.start()

    def end(self) -> None:
        self._kv.stop()
        self._postgres.stop()
        self._visitor.stop()
        self._prober.stop()
        self._pair.remove()
        self._client.remove()

    def keep(self) -> None:
        """Writes down what was seen, for whoever looks into a violation."""
        told = {"rows": [asdict(ack) for ack in self._rows.acks], "cuts": self._rows.cuts,
                "take_overs": [asdict(change) for change in self._take_overs],
                "holders": [asdict(answer) for answer in self._prober.answers],
                "announcements": [asdict(one) for one in self._prober.announcements],
                "pages": [asdict(page) for page in self._visitor.pages],
                "kv": list(map(str, sorted(self._seen.operations, key=lambda one: one.called))),
                "wall_clock_ahead": time.time() - time.monotonic()}
        (self._folder / "history.json").write_text(json.dumps(told, indent=1, default=repr))

    def round(self, number: int) -> str:
        """Changes roles while things go wrong, brings the other back, and judges; returns what it did in a line."""
        self._rng = random.Random(f"promotion {self._seed} {number}")
        done = [f"{self._durability}, {self._degrade_after}{', three nodes' if self._pair.members[2:] else ''}"]
        try:
            return self._round(number, done)
        except (Violation, Failed, Ended) as violation:
            raise Violation(f"{violation}\nafter: {', '.join(done)}") from violation

    def _round(self, number: int, done: list[str]) -> str:
        self._begun, self._begun_wall = time.monotonic(), time.time()
        self._apart_since = self._begun
        self._seen = Round(may_degrade=self._degrade_after != "never", contact=SILENCE_MAX)
        self._pardoned: list[front.Span] = []
        self._kv.begin(number, self._seen)
        if self._durability == "sync":
            # A promise that is never made cannot be broken.
            until("commits wait for the standby", lambda: is_held(self._pair.primary.status()), PATIENCE)
        self._pair.primary.ask("INSERT INTO article SELECT max(id) + 1, 'round', %s FROM article", (f"round{number}",))
        rows = len(self._rows.acks)
        self._sleep(0.3, 1.2)
        self._break()
        kind = self._only or self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind is Kind.HANG and not self._abilities.has_fence:
            kind = Kind.DEATH
        done.append(kind.value)
        word = time.monotonic()
        old, new = self._pair.nodes
        report = self._change(kind, done)
        taken_over = time.monotonic()
        self._pair.await_following(PATIENCE)
        self._pair.await_front(self._pair.primary, PATIENCE)
        followed = time.monotonic()
        until("the client sees the new primary", lambda: self._visitor.first(self._pair.primary.name, taken_over), PATIENCE)
        self._sleep(0.1, 0.4)
        lost = self._judge(number, kind, old, new, report)
        return (f"{', '.join(done)}; {len(self._rows.acks) - rows} rows, {len(self._seen.operations)} operations; lost as "
                f"told: {lost}; the longest silence {self._silence():.1f} s; taken over in {taken_over - word:.1f} s, "
                f"follows after {followed - taken_over:.1f}, {time.monotonic() - self._begun:.0f} s in all")

    def _sleep(self, least: float, most: float) -> None:
        time.sleep(self._rng.uniform(least, most))

    def _silence(self) -> float:
        heard = [page.heard for page in self._visitor.pages if page.heard >= self._begun]
        return max((later - earlier for earlier, later in zip(heard, heard[1:])), default=float("inf"))

    def _break(self) -> None:
        """Does what the judge has to find."""
        standby = self._pair.standby
        if self._broken is Break.HOLDER:
            standby.run(["ip", "address", "add", f"{ADDRESS}/24", "dev", "eth0"])
        if self._broken is Break.SERVICE:
            environment = ["env", f"UNDERSTUDY_ROOT={standby.root}", f"UNDERSTUDY_NODE={standby.name}"]
            script = REPOSITORY / "tests/outside/appliance_service.py"
            standby.run([*environment, "python3", "-S", "-E", script, "start", "worker"])

    # Who takes over.

    @contextmanager
    def _apart(self):
        """Notes that the nodes do not hear each other, or that one is not well."""
        lists = [self._seen.troubles, self._seen.cuts, self._rows.cuts]
        since = self._apart_since = time.monotonic()
        for one in lists:
            one.append((since, None))
        try:
            yield
        finally:
            for one in lists:
                one[one.index((since, None))] = since, time.monotonic()

    def _change(self, kind: Kind, done: list[str]) -> dict:
        """Gives the new node what the old one had, whatever it takes; returns the report."""
        old, new = self._pair.nodes
        crash = self._arm(kind, done)
        if kind in PLANNED:
            report = self._take_over(kind, False, crash, done)
            self._bring_back(kind, old)
            return report
        with self._apart():
            if kind is Kind.DEATH:
                old.power_off()
            elif kind is Kind.HANG:
                old.daemon.send_signal(signal.SIGSTOP)
            else:
                old.plug.cut()
            if kind is Kind.PAUSE:
                self._signal(old, signal.SIGSTOP)
            self._sleep(0.0, 1.0)
            is_forced = kind in APART or not self._abilities.has_fence
            report = self._take_over(kind, is_forced, crash, done)
            if kind is Kind.SPLIT:
                self._promote_the_other(old, done)
            self._sleep(0.0, APART_SECONDS_MAX)
            if kind in (Kind.DEATH, Kind.HANG):
                old.power_on()
            if kind is Kind.PAUSE:
                self._signal(old, signal.SIGCONT)
            mended = time.monotonic()
            old.plug.mend()
        if kind is Kind.SPLIT:
            # Whoever opened the lesser epoch.
            old, new = sorted((old, new), key=lambda one: one.epoch())
            self._pair.primary, self._pair.standby = new, old
            done.append(f"{new.name} wins")
        if kind in APART:
            # Until it has heard of the other and has stopped all, it is a second one.
            silent = until(f"{old.name} is fenced and has stopped all", lambda: old.role() in ("fenced", "standby")
                           and not old.has_address() and not old.running_services(), PATIENCE)
            if silent > mended + SILENCE_MAX:
                raise Violation(f"{old.name} could hear that it is superseded, and went on for {silent - mended:.1f} s")
            self._pardoned.append((mended, silent))
            done.append(f"silent {silent - mended:.1f} s after it could hear")
        self._bring_back(kind, old)
        return report

    def _signal(self, member: Member, what: int) -> None:
        for pid in member.plug.processes():
            try:
                os.kill(pid, what)
            except ProcessLookupError:
                pass

    def _promote_the_other(self, old: Member, done: list[str]) -> None:
        """The machine that was cut off starts again, knows nobody, and is told by force to go on."""
        old.kill_daemon()
        old.serve()
        until(f"{old.name} waits for a word", lambda: old.role() in ("returning", "primary"), PATIENCE)
        until(f"{old.name} is promoted, too", lambda: self._is_promoted_apart(old), PATIENCE, 0.3)
        done.append(f"both, {old.name} as {'.'.join(map(str, old.epoch()))}")

    @staticmethod
    def _is_promoted_apart(old: Member) -> bool:
        """Promotes a node that is cut off: it cannot take the address while its cable has no other end, and says so."""
        try:
            old.json("promote", "--force", timeout=PROMOTION_PATIENCE)
        except Failed as failure:
            if "has no carrier" not in str(failure):
                raise
        return old.role() == "primary"

    # What goes wrong in the middle.

    def _arm(self, kind: Kind, done: list[str]) -> float | None:
        """Lets something go wrong once in the promotion; returns when its daemon is to be killed, in seconds."""
        new = self._pair.standby
        if self._rng.random() < FAILING_SERVICE_SHARE:
            name = self._rng.choice(["worker", "web"])
            (new.root / "run" / f"fails-{name}").touch()
            done.append(f"{name} fails to start once")
        if kind in (Kind.DEATH, Kind.HANG) and self._rng.random() < FAILING_FENCE_SHARE:
            (self._folder / "machines/fails").touch()
            done.append("the fence command fails once")
        if self._rng.random() >= CRASH_SHARE:
            return None
        if self._rng.random() < 0.4:
            seconds = self._rng.uniform(0.0, CRASH_SECONDS_MAX)
            done.append(f"the daemon is killed after {seconds:.2f} s")
            return seconds
        step = self._rng.choice(self._steps(kind))
        done.append(f"the daemon crashes after `{step}`")
        new.kill_daemon()
        new.serve(UNDERSTUDY_CRASH_AFTER=step)
        self._pair.await_following(PATIENCE)
        return None

    def _steps(self, kind: Kind) -> list[str]:
        """Returns the steps after which the daemon may crash, as reports name them."""
        old, new = self._pair.nodes
        number = self._pair.primary.epoch()[0] + 1
        first = {Kind.SWITCHOVER: [f"prepare {old.name}", f"fence {old.name}", "drain"],
                 Kind.PROMOTE: [f"fence {old.name}", "drain"], Kind.DEATH: [f"switch off {old.name}"],
                 Kind.HANG: [f"switch off {old.name}"]}.get(kind, [])
        if not self._abilities.has_fence and kind is Kind.DEATH:
            first = []
        last = ["take the address"] if self._abilities.has_address else []
        return [*first, f"open epoch {number}.{new.name}", *(f"take over {store}" for store in STORES.values()),
                f"catch up index {INDEX}", "serve", "start services", *last]

    def _take_over(self, kind: Kind, is_forced: bool, crash: float | None, done: list[str]) -> dict:
        """Gives the word, and again until it is done."""
        old, new = self._pair.nodes
        begun, deadline, attempts = time.monotonic(), time.monotonic() + PATIENCE, 0
        first = new.daemon
        killer = threading.Timer(crash, first.kill) if crash is not None else None
        if killer:
            killer.start()
        while True:
            attempts += 1
            try:
                report = self._word(kind, is_forced, attempts)
                break
            except (Failed, OSError) as failed:
                if new.daemon.poll() is not None:
                    # It was killed, or has crashed as it was told.
                    new.daemon = None
                    new.serve()
                    until(f"the daemon of {new.name} answers", new.role, PATIENCE)
                    continue
                # What its hint says, where the old primary has stopped and cannot hand over what it had.
                is_forced = is_forced or kind in PLANNED and attempts > 3 and "promote --force" in str(failed)
                # And where a third node has more, and this one is to be primary all the same.
                is_forced = is_forced or "lose what only it has with `--force`" in str(failed)
                if time.monotonic() > deadline:
                    raise Violation(f"{new.name} does not take over: {failed}") from failed
                time.sleep(0.3)
        if killer:
            killer.join()
            if new.daemon is first:
                # It is on its way out, though it may not have gone yet.
                first.wait(PATIENCE)
            if new.daemon.poll() is not None:
                # It was killed after its last step.
                new.daemon = None
                new.serve()
                until(f"the daemon of {new.name} answers", new.role, PATIENCE)
                until(f"{new.name} is primary again", lambda: new.json("promote", *(["--force"] if is_forced else []),
                                                                      timeout=PROMOTION_PATIENCE), PATIENCE, 0.3)
        ended = time.monotonic()
        # Whoever is forced again after a crash opens another epoch, and what was lost was told in the first.
        reports = new.reports(self._begun_wall)
        report = next((one for one in reports if one["lost"]), report)
        amounts = {loss["name"]: loss["amount"] for loss in report["lost"]}
        is_fenced = report["fenced"] is not None and not report.get("switched_off")
        cut = report["cut"] and report["cut"] / 1000 - (time.time() - time.monotonic())
        self._take_overs.append(TakeOver(old.name, new.name, begun, ended, is_fenced, is_forced,
                                         Loss(amounts["postgres"], cut)))
        self._seen.change = KvTakeOver(old.name, new.name, begun, ended, is_fenced, is_forced, amounts["kv"])
        words = ["forced"] if is_forced else []
        words += ["switched off"] if report.get("switched_off") else []
        words += [f"{attempts} attempts"] if attempts > 1 else []
        # Before that it finds out whether the old primary answers.
        words.append(f"begun after {report['looking_seconds']:.1f} s")
        done.append(", ".join([*words, f"epoch {report['epoch']['number']}.{report['epoch']['node']}"]))
        self._pair.swap()
        return report

    def _word(self, kind: Kind, is_forced: bool, attempts: int) -> dict:
        old, new = self._pair.nodes
        if kind is Kind.SWITCHOVER and not is_forced and attempts <= 3:
            # Either side may be asked; the old primary only while it is one.
            at = self._rng.choice([new, old]) if attempts == 1 else new
            outcome = at.json("switchover", timeout=PROMOTION_PATIENCE)
        else:
            outcome = new.json("promote", *(["--force"] if is_forced else []), timeout=PROMOTION_PATIENCE)
        if "promoted" in outcome:
            return outcome["promoted"]
        # It was done by an attempt that seemed to fail; then the report was kept.
        reports = new.reports()
        if not reports:
            raise Violation(f"{new.name} says {outcome}, and has no report")
        return reports[-1]

    # How the other one comes back.

    def _bring_back(self, kind: Kind, old: Member) -> None:
        """Makes the old primary a standby, and the third node follow."""
        begun = time.monotonic()

        def is_back() -> bool:
            old.assert_runs()
            role = old.role()
            if role == "fenced" and (kind is not Kind.SWITCHOVER or time.monotonic() - begun > FOLLOWING_PATIENCE):
                # What it still serves is stopped first; until then it refuses.
                old.json("rejoin", timeout=PATIENCE)
            return old.role() == "standby"

        until(f"{old.name} is a standby", is_back, PATIENCE, 0.3)

    # Whether all is as it should be.

    def _judge(self, number: int, kind: Kind, old: Member, new: Member, report: dict) -> str:
        """Compares what was promised with what is there; returns what is lost, as the report allows."""
        self._kv.pause()
        # What is acknowledged while this looks would not be in what was read.
        self._postgres.pause()
        paused = self._folder / "paused"
        paused.touch()
        try:
            return self._judged(number, kind, old, new, report)
        finally:
            paused.unlink()
            self._postgres.go_on()

    def _judged(self, number: int, kind: Kind, old: Member, new: Member, report: dict) -> str:
        primary = self._pair.primary
        loser = old if primary is new else new
        idle = primary.root / "run/worker.idle"
        pid = primary.root / "run/worker.pid"
        until("the application rests", lambda: idle.exists() and idle.read_text() == pid.read_text(), PATIENCE)
        self._pair.await_following(PATIENCE)
        for take_over in (self._take_overs[-1], self._seen.change):
            if kind is Kind.SPLIT:
                self._had_split = True
                # What the report of one side says is nothing about what the other one took.
                take_over.is_fenced, take_over.is_forced = False, True
                take_over.overruled = self._apart_since
                if take_over.old != loser.name:
                    take_over.old, take_over.new, take_over.begun = loser.name, primary.name, self._begun
        if kind is Kind.SPLIT:
            self._take_overs[-1].loss, self._seen.change.lost = Loss(None, None), None
        if any("has more of store kv" in condition["what"] for condition in report["overridden"]):
            # The operator was told that a third node has what the new primary lacks, and gave it up: what that one had
            # acknowledged a moment before they were apart is among it.
            self._seen.change.overruled = self._apart_since - OVERRULED_BEFORE
        found = self._roles()
        rows = self._judge_rows(found, loser)
        files = self._judge_changes(found, kind, loser, report)
        operations = self._judge_operations(found, number, loser)
        found += self._judge_front(kind, old, new)
        self._judge_index(found)
        self._compare(found)
        if found:
            raise Violation("\n".join(found))
        return f"{rows} rows, {operations} operations, {files} changes"

    def _roles(self) -> list[str]:
        roles = {member.name: (member.role(), member.epoch()) for member in self._pair.members}
        primaries = [name for name, (role, _) in roles.items() if role == "primary"]
        if primaries != [self._pair.primary.name] or len({epoch for _, epoch in roles.values()}) > 1:
            return [f"the roles are {roles}"]
        return []

    def _judge_rows(self, found: list[str], loser: Member) -> int:
        primary = self._pair.primary
        position = primary.value("SELECT pg_current_wal_lsn()")
        rows, digests = [], []
        for member in self._pair.members:
            if member is not primary:
                until(f"{member.name} has replayed all of {primary.name}",
                      lambda: member.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)), PATIENCE)
            rows.append(set(member.ask(f"SELECT client, number FROM {TABLE}")))
            digests.append(member.value(f"SELECT md5(string_agg(t::text, ' ' ORDER BY client, number)) FROM {TABLE} t"))
        if len(set(digests)) > 1:
            found.append(f"all stream, and the rows differ: {list(map(len, rows))}, {digests}")
        there = rows[self._pair.members.index(primary)]
        missing, violations = postgres_judge.lost(self._rows, self._take_overs[-1], there | self._lost_rows)
        self._lost_rows |= missing
        found += violations
        found += [one for one in postgres_judge.two_writers(self._rows, self._take_overs, SILENCE_MAX)
                  # Two nodes that are promoted by force open the same timeline.
                  if not (self._had_split and one.startswith("timeline"))]
        kept = kept_rows(loser, self._begun_wall)
        if kept < len(missing):
            found.append(f"{loser.name} had {len(missing)} rows that {primary.name} lacks, and kept {kept} aside")
        return len(missing)

    def _judge_changes(self, found: list[str], kind: Kind, loser: Member, report: dict) -> int:
        primary = self._pair.primary
        made = [one for member in self._pair.members for one in changes.read(member.folder, member.name)
                if (one.node, one.key) not in self._lost_changes]
        there = _digests(primary.tree)
        there[changes.SETTINGS] = _digest(primary.root / SETTINGS)
        amounts = {loss["kind"]: loss["amount"] for loss in report["lost"]}
        cut = report["cut"] and report["cut"] / 1000
        if kind is Kind.SPLIT:
            amounts, cut = {}, None
        loss, violations = changes.judge(made, there, None if kind in PLANNED else loser.name, cut, amounts,
                                         self._broken is Break.SILENCE)
        found += violations
        self._lost_changes |= {(one.node, one.key) for one in loss.changes}
        kept = set(_digests(loser.tree / ".understudy/kept").values()) | set(_digests(loser.folder / "state/salvage").values())
        unkept = [path for path, contents in loss.to_keep.items() if path != changes.SETTINGS and not contents & kept]
        if unkept:
            found.append(f"{loser.name} had {len(unkept)} files that {primary.name} lacks, and did not keep them aside: "
                         f"{unkept[:3]}")
        return len(loss.changes)

    def _judge_operations(self, found: list[str], number: int, loser: Member) -> int:
        seen, prefix = self._seen, f"{number}:"
        seen.change.salvaged = _everything(loser.folder / "state/salvage")
        begun = time.monotonic()
        there = contents(self._pair.primary)
        seen.ended = begun, time.monotonic()
        seen.final = there
        for member in self._pair.others:
            seen.final_standby = contents(member)
            found += kv_judge.differences(f"all is quiet, and {member.name} has something else", there, seen.final_standby)
        past = {key: value for key, value in there.items() if not key.startswith(prefix)}
        found += kv_judge.differences("this round changed what earlier ones had left", self._past, past)
        found += kv_judge.violations(seen)
        self._past = there
        return sum(one.is_known and one.kind is kv_judge.Kind.WRITE and one.key not in there for one in seen.operations)

    def _judge_front(self, kind: Kind, old: Member, new: Member) -> list[str]:
        answers = [answer for answer in list(self._prober.answers) if answer.asked >= self._begun]
        pages = [page for page in list(self._visitor.pages) if page.asked >= self._begun]
        found = front.holders(answers, self._names, [old.name, new.name], self._pardoned)
        found += front.pages(pages, self._pardoned)
        primary = self._pair.primary
        journal = [entry for member in self._pair.members
                   for entry in front.read((member.folder / "journal").read_text() if (member.folder / "journal").exists()
                                           else "", member.name)]
        found += front.services(journal, self._settings.services, old.name, new.name, self._begun_wall, kind in APART)
        holders = [member.name for member in self._pair.members if member.has_address()]
        if holders != [primary.name]:
            found.append(f"the address is on {holders or 'no node'} in the end, and {primary.name} is primary")
        for member in self._pair.members:
            running = member.running_services()
            if running != ({"worker", "web"} if member is primary else set()):
                found.append(f"on {member.name}, which is {member.role()}, there run {running or 'no services'}")
        return found

    def _judge_index(self, found: list[str]) -> None:
        primary = self._pair.primary
        expected = primary.value("SELECT count(*) FROM article")
        try:
            until("the index has all articles", lambda: primary.searched() == expected, PATIENCE, 0.05)
        except Failed:
            found.append(f"there are {expected} articles, and the index has {primary.searched()}")

    def _compare(self, found: list[str]) -> None:
        """Compares the nodes by walks of our own, and has them compare themselves."""
        primary = self._pair.primary
        for path in (path for member in self._pair.members for path in member.tree.glob("d*/.*.tmp")):
            # What the application was writing when it was killed; it is nobody's copy of anything.
            path.unlink()
        for member in self._pair.others:
            try:
                # What is excluded comes and goes on one node, and changes the time of its folder there.
                assert_equal(primary.tree, member.tree, self._seed, whole=True, folder_times=False)
            except (Different, OSError) as different:
                found.append(f"{different}")
            if (primary.root / SETTINGS).read_bytes() != (member.root / SETTINGS).read_bytes():
                found.append(f"the settings of {primary.name} and {member.name} differ")
        try:
            primary.verb("verify", timeout=PATIENCE)
        except Failed as failed:
            found.append(f"{failed}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """Returns the digest of every file, but of what is understudy's own or half written."""
    if not folder.exists():
        return {}
    return {str(path.relative_to(folder)): _digest(path) for path in folder.rglob("*")
            if path.is_file() and ".understudy" not in path.relative_to(folder).parts and path.suffix != ".tmp"}


def _everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("kv*/**/*")) if path.is_file())
