"""The cases, in the order in which they run."""

import time
from datetime import datetime

from benches.case import Case, Measure, NotMeasurable, Sample
from tests.outside.appliance import ADDRESS, INDEX
from tests.outside.arp import Prober
from tests.outside.pair import Failed
from tests.outside.postgres import until

from .visitors import TABLE, Party

# The clients are busy for so long before the word, and are watched for so long after they are served again.
BEFORE, AFTER = 1.0, 1.0
# What the whole appliance may need beside Postgres and the services.
ALLOWANCE = 0.5
PATIENCE = 120
SERVICES, CATCH_UP = "start services", f"catch up index {INDEX}"
BOUND = "Postgres alone + 0.5 s + services"


class ApplianceCase(Case):
    """A case on the one appliance."""

    def __init__(self, bench) -> None:
        super().__init__(bench)
        # What the services and the fencing took in each round of ours.
        self._allowed: dict[int, float] = {}

    def _prepare(self):
        """Returns the appliance, well and quiet, with rows that the index has yet to take up."""
        appliance = self.bench.appliance()
        appliance.await_following(PATIENCE)
        appliance.await_front(appliance.primary, PATIENCE)
        appliance.primary.ask(f"CREATE TABLE IF NOT EXISTS {TABLE} (number bigint)")
        appliance.primary.ask(f"TRUNCATE {TABLE}")
        appliance.primary.ask("UPDATE article SET title = title || ' again', changed = clock_timestamp() "
                              "WHERE id IN (SELECT id FROM article ORDER BY random() LIMIT %s)",
                              (self.bench.sizes.changed_documents,))
        appliance.primary.ask("CHECKPOINT")
        return appliance

    def against(self, number: int) -> Sample:
        alone = self.bench.postgres_window(number)
        bound = alone + ALLOWANCE + self._allowed.get(number, 0.0)
        return {"window": bound, "first write": bound, "alone": alone}


class Switchover(ApplianceCase):
    name = "switchover"
    title = "a planned swap, as clients at the address see it"
    verbs = ("switchover",)
    measures = (
        Measure("window", "s", BOUND, 1.0),
        Measure("window of Postgres", "s", "Postgres alone", None, against_key="alone"),
        Measure("window of KV", "s", "Postgres alone", None, against_key="alone"),
        Measure("window of HTTP", "s", "Postgres alone", None, against_key="alone"),
        Measure("services", "s", "Postgres alone", None, against_key="alone"),
    )

    def ours(self, number: int) -> Sample:
        appliance = self._prepare()
        with Party(self.bench.client()) as party:
            until("the clients are served", party.are_at_home, PATIENCE)
            time.sleep(BEFORE)
            old, begun, word = appliance.primary, time.monotonic(), time.time()
            report = appliance.standby.json("switchover", timeout=PATIENCE)["promoted"]
            done = time.monotonic()
            appliance.swap()
            until("the clients are served again", lambda: party.are_served(done), PATIENCE)
            time.sleep(AFTER)
            ended = time.monotonic()
            windows = {visitor.name: visitor.window(begun - BEFORE, ended) for visitor in party.all}
        assert_kept(appliance, party)
        self._allowed[number] = seconds_of(report, SERVICES) + stopping(old, word)
        return {"window": max(windows.values()), **{f"window of {name}": value for name, value in windows.items()},
                "services": self._allowed[number], **steps_of(report)}


class Promotion(ApplianceCase):
    name = "promotion"
    title = "the primary loses its power; `promote` with a fence command"
    measures = (
        Measure("first write", "s", f"{BOUND} + fencing", 1.0),
        Measure("first row", "s", "Postgres alone", None, against_key="alone"),
        Measure("first key", "s", "Postgres alone", None, against_key="alone"),
        Measure("first page", "s", "Postgres alone", None, against_key="alone"),
        Measure("fencing", "s", "Postgres alone", None, against_key="alone"),
        Measure("services", "s", "Postgres alone", None, against_key="alone"),
    )

    def ours(self, number: int) -> Sample:
        if not self.bench.abilities.has_fence:
            raise NotMeasurable("this build has no [fence]")
        appliance = self._prepare()
        old = appliance.primary
        with Party(self.bench.client()) as party:
            until("the clients are served", party.are_at_home, PATIENCE)
            time.sleep(BEFORE)
            old.power_off()
            time.sleep(BEFORE)
            begun = time.monotonic()
            report = appliance.standby.json("promote", timeout=PATIENCE)["promoted"]
            appliance.swap()
            until("the clients are served again", lambda: party.are_served(begun), PATIENCE)
            firsts = [visitor.first_sent_after(begun) - begun for visitor in party.all]
        row, key, page = firsts
        old.power_on()
        until(f"{old.name} is fenced", lambda: old.role() == "fenced", PATIENCE)
        until(f"{old.name} rejoins", lambda: old.json("rejoin", timeout=PATIENCE), PATIENCE, 0.3)
        # The old primary is asked first, and does not answer.
        fencing = report["looking_seconds"] + sum(step["seconds"] for step in report["steps"]
                                                  if step["name"].startswith(("fence ", "switch off ")))
        self._allowed[number] = seconds_of(report, SERVICES) + fencing
        return {"first write": max(firsts), "first row": row, "first key": key, "first page": page, "fencing": fencing,
                "services": seconds_of(report, SERVICES), **steps_of(report)}


class CatchUp(ApplianceCase):
    name = "index"
    title = "the index is brought up to the stores by a promotion"
    verbs = ("switchover",)
    measures = (Measure("catch-up", "s", "limit", 1.0, limit=1.0),)

    def ours(self, number: int) -> Sample:
        appliance = self._prepare()
        report = appliance.standby.json("switchover", timeout=PATIENCE)["promoted"]
        appliance.swap()
        if failure := next(step.get("failure") for step in report["steps"] if step["name"] == CATCH_UP):
            raise Failed(f"the index did not catch up: {failure}")
        count = appliance.primary.value("SELECT count(*) FROM article")
        if (found := appliance.primary.searched()) != count:
            raise Failed(f"the index has {found} of {count} documents after the promotion")
        # Each of those that changed last is found by its new title.
        return {"catch-up": seconds_of(report, CATCH_UP)}

    def against(self, number: int) -> Sample:
        return {}


class Address(ApplianceCase):
    name = "address"
    title = "the address is taken and announced"
    verbs = ("switchover",)
    measures = (
        Measure("taken and announced", "s", "limit", 1.0, limit=0.05),
        Measure("the step", "s", "limit", None, limit=0.05),
        Measure("announcement heard", "s", "limit", None, limit=0.05),
    )

    def ours(self, number: int) -> Sample:
        appliance = self._prepare()
        new = appliance.standby
        step = "take the address" if self.bench.abilities.has_address else SERVICES
        with Prober(self.bench.client(), ADDRESS) as prober:
            begun, clock = time.monotonic(), time.time() - time.monotonic()
            report = new.json("switchover", timeout=PATIENCE)["promoted"]
            appliance.swap()
            until("the address is announced", lambda: prober.first_announcement(new.mac, begun), PATIENCE)
            heard = prober.first_announcement(new.mac, begun)
        if not self.bench.abilities.has_address:
            raise NotMeasurable("this build has no [address]; a service of the campaign's moves it")
        seen = heard - (step_began(new, step) - clock)
        return {"the step": seconds_of(report, step), "announcement heard": seen,
                "taken and announced": max(seconds_of(report, step), seen)}

    def against(self, number: int) -> Sample:
        return {}


def assert_kept(appliance, party: Party) -> None:
    """Raises unless everything that a client was told to be kept is on the new primary."""
    primary = appliance.primary
    rows = {number for (number,) in primary.ask(f"SELECT number FROM {TABLE}")}
    lost = [visit for visit in party.writer.visits if visit.number not in rows]
    connection = primary.connect(10)
    try:
        answers = connection.pipeline([("EXISTS", party.setter.key(visit.number)) for visit in party.setter.visits])
    finally:
        connection.close()
    gone = [visit for visit, answer in zip(party.setter.visits, answers) if answer != 1]
    if lost or gone:
        raise Failed(f"{len(lost)} of {len(party.writer.visits)} rows and {len(gone)} of {len(party.setter.visits)} keys that "
                     "were acknowledged at the address are lost by a planned swap")


def stopping(member, since: float) -> float:
    """Returns how long the services took to stop there after that moment, by their own journal."""
    entries = [line.split() for line in (member.folder / "journal").read_text().splitlines()]
    moments = [float(entry[0]) for entry in entries if entry[1] in ("stopping", "stop") and float(entry[0]) >= since]
    return max(moments) - min(moments) if moments else 0.0


def seconds_of(report: dict, step: str) -> float:
    return sum(one["seconds"] for one in report["steps"] if one["name"] == step)


def steps_of(report: dict) -> Sample:
    """Returns every step's time, for whoever looks where it went."""
    return {f"step {one['name']}": one["seconds"] for one in report["steps"]}


def step_began(member, step: str) -> float:
    """Returns when the daemon last began the step, by the wall clock, from its log."""
    lines = [line for line in (member.folder / "log").read_text().splitlines() if f'promotion step step="{step}"' in line]
    if not lines:
        raise Failed(f"the log of {member.name} does not tell when it began to {step}")
    return datetime.fromisoformat(lines[-1].split()[0]).timestamp()


CASES: tuple[type[Case], ...] = (Switchover, Promotion, CatchUp, Address)
