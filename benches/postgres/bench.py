"""What all cases share: where they work, and the pairs that they make."""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.outside.binary import Binary
from tests.outside.isolation import WORK
from tests.outside.node import Pair

from .bare import BarePair
from .sizes import Sizes


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
