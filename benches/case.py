"""What a case is: one side after the other, over and over, and the figures that come of it."""

from dataclasses import dataclass


class NotMeasurable(Exception):
    """This build, or this machine, lacks what the case needs."""


@dataclass(frozen=True)
class Measure:
    """A figure of ours beside one that it is compared with; `target` bounds the ratio, `None` only tells it."""

    name: str
    unit: str
    against: str
    target: float | None
    # What the values are called in a side's sample, where that is not the figure's own name.
    ours_key: str = ""
    against_key: str = ""
    # A bound that takes the place of the other side.
    limit: float | None = None
    # More is better: the ratio is to be at least `target`.
    is_floor: bool = False

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.target if self.is_floor else ratio <= self.target

    def target_text(self) -> str:
        return "-" if self.target is None else f"{'>=' if self.is_floor else '<='} {self.target:g}"


Sample = dict[str, float]


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

    def __init__(self, bench) -> None:
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

    _ours = None
    _bare = None

    def prepare(self, pair) -> None:
        """Fills a primary that has no standby yet."""

    def our_pair(self):
        if self._ours is None:
            self._ours = self._joined(self.bench.pair())
        return self._ours

    def bare_pair(self):
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
