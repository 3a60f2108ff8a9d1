"""Both nodes are well and swap their roles."""

import time

from benches.case import Measure, NotMeasurable, PairsCase, Sample
from tests.outside.node import Pair
from tests.outside.pair import Failed
from tests.outside.postgres import until
from tests.outside.writer import Writer

from . import load, patroni
from .bare import BarePair
from .patroni import PatroniPair

# The client, and the load, run for this long before the word, and the client after the first row of the new primary.
BEFORE, AFTER = 1.0, 0.5


class Switchover(PairsCase):
    name = "switchover"
    title = "a planned swap, one client that writes"
    clients = 0
    verbs = ("switchover",)
    measures = (
        Measure("window", "s", "bare script", 1.3),
        Measure("command to first write", "s", "limit", 1.0, limit=0.5),
        Measure("streams again", "s", "bare script", None),
    )

    def prepare(self, pair: Pair | BarePair) -> None:
        if self.clients:
            load.fill(pair.primary, self.bench.sizes.load_scale)

    def ours(self, number: int) -> Sample:
        pair = self.our_pair()

        def swap() -> None:
            pair.standby.json("switchover")
            pair.swap()

        return self._swapped(pair, swap)

    def against(self, number: int) -> Sample:
        pair = self.bare_pair()
        return self._swapped(pair, pair.switch_over)

    def _swapped(self, pair: Pair | BarePair | PatroniPair, swap) -> Sample:
        """Swaps once; leaves the pair streaming the other way."""
        old, new = pair.primary, pair.standby
        Writer.make_table(old)
        load.settle(old)
        with Writer([old, new]) as writer:
            with load.clients(old, self.clients):
                time.sleep(BEFORE)
                begun = time.monotonic()
                swap()
                streams = pair.await_streaming()
            until("the new primary takes a write", lambda: writer.first_on(new))
            time.sleep(AFTER)
        first, last = writer.first_on(new), writer.last_on(old)
        if first < last:
            raise Failed(f"both took writes: {new.name} first, {last - first:.3f} s before the last one of {old.name}")
        if lost := writer.lost_on(new):
            raise Failed(f"{lost} of {len(writer.acks)} acknowledged rows were lost by a planned swap")
        return {"window": first - last, "command to first write": first - begun, "streams again": streams - begun}


class LoadedSwitchover(Switchover):
    name = "switchover-load"
    title = "a planned swap under pgbench -c4"

    @property
    def clients(self) -> int:
        return self.bench.sizes.load_clients


class PeerSwitchover(Switchover):
    name = "switchover-patroni"
    title = "a planned swap, beside Patroni's"
    measures = (
        Measure("window", "s", "Patroni", 1.0),
        Measure("command to first write", "s", "Patroni", 1.0),
        Measure("streams again", "s", "Patroni", 1.0),
    )
    _peer: PatroniPair | None = None

    def against(self, number: int) -> Sample:
        if self._peer is None:
            if lacking := patroni.missing():
                raise NotMeasurable(lacking)
            self._peer = self._joined(PatroniPair(self.bench.folder("peer")))
        self._peer.await_ready()
        return self._swapped(self._peer, self._peer.switch_over)

    def end(self) -> None:
        super().end()
        self.bench.discard(self._peer)
        self._peer = None
