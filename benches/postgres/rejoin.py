"""The primary died with rows that the new one lacks; how long until it streams as a standby again."""

import time

from benches.case import Measure, PairsCase, Sample
from tests.outside.node import Pair
from tests.outside.pair import Failed
from tests.outside.writer import TABLE, Writer

from . import load
from .bare import BarePair


class Rejoin(PairsCase):
    name = "rejoin"
    title = "a crashed former primary with diverged rows, small database"
    verbs = ("rejoin",)
    scale = 0
    measures = (
        Measure("to streaming", "s", "checkpoint, pg_rewind, start", 1.2),
    )

    def prepare(self, pair: Pair | BarePair) -> None:
        if self.scale:
            load.fill(pair.primary, self.scale)
        Writer.make_table(pair.primary)

    def ours(self, number: int) -> Sample:
        pair = self.our_pair()

        def promote() -> None:
            pair.standby.json("promote", "--force")
            pair.swap()

        def plug_in() -> None:
            pair.standby.plug.mend()
            pair.standby.serve()
            pair.standby.await_role("fenced")

        return self._rejoined(pair, promote, plug_in, lambda: pair.standby.json("rejoin", timeout=600))

    def against(self, number: int) -> Sample:
        pair = self.bare_pair()

        def promote() -> None:
            pair.standby.ctl("promote")
            pair.swap()

        return self._rejoined(pair, promote, lambda: pair.standby.plug.mend(), pair.rejoin)

    def _rejoined(self, pair: Pair | BarePair, promote, plug_in, rejoin) -> Sample:
        """Loses the primary and gets it back; leaves the pair streaming the other way."""
        pair.primary.ask(f"TRUNCATE {TABLE}")
        load.settle(pair.primary)
        pair.primary.plug.cut()
        # Acknowledged, and on the old primary only.
        self._insert(pair, 0, "diverged")
        pair.primary.power_off()
        promote()
        # Neither number nor content tells them apart: which rows are there, their node does.
        self._insert(pair, self.bench.sizes.diverged_rows // 2, "kept")
        plug_in()
        time.sleep(0.5)
        begun = time.monotonic()
        told = rejoin()
        streaming = pair.await_streaming()
        self._assert_equal(pair)
        methods = {store["method"] for store in told["stores"]} if told else {"rewound"}
        if methods != {"rewound"}:
            raise Failed(f"the old primary was not rewound, but {' and '.join(methods)}: another thing was measured")
        return {"to streaming": streaming - begun}

    def _insert(self, pair: Pair | BarePair, first: int, word: str) -> None:
        last = first + self.bench.sizes.diverged_rows - 1
        pair.primary.ask(f"INSERT INTO {TABLE} SELECT n, %s FROM generate_series(%s, %s) n", (word, first, last))

    def _assert_equal(self, pair: Pair | BarePair) -> None:
        """Waits until the standby has replayed all, and compares."""
        position = pair.primary.value("SELECT pg_current_wal_lsn()")
        deadline = time.monotonic() + 30
        while not pair.standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)):
            if time.monotonic() > deadline:
                raise Failed(f"{pair.standby.name} streams and does not replay")
            time.sleep(0.01)
        rows = [machine.ask(f"SELECT node, count(*) FROM {TABLE} GROUP BY 1")
                for machine in (pair.primary, pair.standby)]
        if rows != [[("kept", self.bench.sizes.diverged_rows)]] * 2:
            raise Failed(f"after the rejoin the rows of both are {rows}")


class LargeRejoin(Rejoin):
    name = "rejoin-large"
    title = "likewise, a database of 2 GB"

    @property
    def scale(self) -> int:
        return self.bench.sizes.large_scale
