"""The primary's processes die; how long until the standby takes a write."""

import time
from datetime import datetime

from benches.case import Case, Measure, Sample
from tests.outside.node import Node, Pair
from tests.outside.pair import Failed
from tests.outside.postgres import Machine, until
from tests.outside.writer import Writer

from .bare import BarePair

TAKE_OVER = 'promotion step step="take over postgres"'
# The client writes for this long before, and is alone with the standby for this long.
BEFORE, DEAD = 0.5, 1.0


class Promotion(Case):
    name = "promotion"
    title = "the primary's processes are killed, the standby is promoted a second later"
    # Whether the machine's cable is pulled first: then nobody even refuses a connection.
    is_silent = False
    measures = (
        Measure("Postgres' part", "s", "promote file and signal", 1.5, "part", "first write"),
        Measure("command to first write", "s", "promote file and signal", None, "first write", "first write"),
    )

    def ours(self, number: int) -> Sample:
        pair = self.bench.pair()
        try:
            pair.join()
            return self._take_over(pair, lambda: pair.standby.json("promote", "--force"))
        finally:
            self.bench.discard(pair)

    def against(self, number: int) -> Sample:
        pair = self.bench.bare_pair()
        try:
            pair.join()
            return self._take_over(pair, pair.standby.signal_promote)
        finally:
            self.bench.discard(pair)

    def _take_over(self, pair: Pair | BarePair, promote) -> Sample:
        """Kills, promotes, and returns how long after the word the first row was acknowledged."""
        Writer.make_table(pair.primary)
        with Writer([pair.primary, pair.standby]) as writer:
            time.sleep(BEFORE)
            pair.primary.power_off(is_cut=self.is_silent)
            time.sleep(DEAD)
            begun, clock = time.monotonic(), time.time() - time.monotonic()
            promote()
            until("the standby takes a write", lambda: writer.first_on(pair.standby))
        first = writer.first_on(pair.standby)
        if lost := writer.lost_on(pair.standby):
            # Nothing lagged, and nothing was cut off: what is missing here was lost by the promotion.
            if not self.is_silent:
                raise Failed(f"{lost} acknowledged rows are not on the promoted standby")
        sample = {"first write": first - begun}
        if isinstance(pair.standby, Node):
            sample["part"] = first - (_step_began(pair.standby) - clock)
        return sample


class SilentPromotion(Promotion):
    name = "promotion-silent"
    title = "likewise, and nothing of the dead machine answers"
    is_silent = True
    once = True
    measures = (
        Measure("Postgres' part", "s", "promote file and signal", None, "part", "first write"),
        Measure("command to first write", "s", "promote file and signal", None, "first write", "first write"),
    )


def _step_began(machine: Machine) -> float:
    """Returns when the daemon began to take Postgres over, by the wall clock, from its log."""
    lines = [line for line in (machine.folder / "log").read_text().splitlines() if TAKE_OVER in line]
    if not lines:
        raise Failed("the daemon's log does not tell when it took Postgres over")
    return datetime.fromisoformat(lines[-1].split()[0]).timestamp()
