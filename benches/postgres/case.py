"""What a case is: one side after the other, over and over, and the figures that come of it."""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.outside.binary import Binary
from tests.outside.isolation import WORK
from tests.outside.node import Pair

from .bare import BarePair
from .sizes import Sizes


class NotMeasurable(Exception):
    """This build, or this machine, lacks what the case needs."""


@dataclass(frozen=True)
class Measure:
    """A figure of ours beside one that it is compared with; `at_most` bounds the ratio, `None` only tells it."""

    name: str
    unit: str
    against: str
    at_most: float | None
    # What the values are called in a side's sample, where that is not the figure's own name.
    ours_key: str = ""
    against_key: str = ""
    # A bound that takes the place of the other side.
    limit: float | None = None


Sample = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    binary: Binary
    sizes: Sizes
    numbers = itertools.count(1)

    def folder(self, name: str) -> Path:
        """Returns a new folder."""
        folder = WORK / f"{name}{next(self.numbers)}"
        folder.mkdir()
        return folder

    def pair(self, section: str = "") -> Pair:
        """Makes a pair of ours; its standby has not joined."""
        return Pair(self.binary, self.folder("ours"), section)

    def bare_pair(self) -> BarePair:
        return BarePair(self.folder("bare"))

    @staticmethod
    def discard(pair) -> None:
        """Ends and removes a pair of either side, if there is one."""
        if pair:
            pair.remove()
            shutil.rmtree(pair.primary.folder.parent)


class Case:
    """One case; what it makes it keeps from round to round."""

    name: str
    title: str
    measures: tuple[Measure, ...]
    # Verbs of ours that it needs.
    verbs: tuple[str, ...] = ()
    # One round tells enough.
    once = False
    is_default = True

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def ours(self, number: int) -> Sample:
        """Runs our side of a round."""
        raise NotImplementedError

    def against(self, number: int) -> Sample:
        """Runs the other side of a round."""
        raise NotImplementedError

    def end(self) -> None:
        """Removes what was made; is called whatever has happened."""


class PairsCase(Case):
    """A case with a pair on each side that outlives a round; each is made when it is first needed."""

    _ours: Pair | None = None
    _bare: BarePair | None = None

    def prepare(self, pair: Pair | BarePair) -> None:
        """Fills a primary that has no standby yet."""

    def our_pair(self) -> Pair:
        if self._ours is None:
            self._ours = self._joined(self.bench.pair())
        return self._ours

    def bare_pair(self) -> BarePair:
        if self._bare is None:
            self._bare = self._joined(self.bench.bare_pair())
        return self._bare

    def _joined(self, pair):
        try:
            self.prepare(pair)
            pair.join()
        except BaseException:
            self.bench.discard(pair)
            raise
        return pair

    def end(self) -> None:
        self.bench.discard(self._ours)
        self.bench.discard(self._bare)
        self._ours = self._bare = None
