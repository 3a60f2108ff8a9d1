"""What all cases share: where they work, the appliance, and the pair with Postgres alone."""

import itertools
import shutil
from pathlib import Path

from benches.postgres.switchover import Switchover as PostgresSwitchover
from tests.outside.appliance import Abilities, Appliance, Settings
from tests.outside.binary import Binary
from tests.outside.bridge import Plug
from tests.outside.isolation import WORK
from tests.outside.node import Pair

from .sizes import Sizes


class Bench:
    """One appliance and one pair outlive all cases: to make them takes longer than to measure."""

    def __init__(self, binary: Binary, sizes: Sizes) -> None:
        self.binary, self.sizes = binary, sizes
        self.abilities = Abilities.of(binary)
        self._numbers = itertools.count(1)
        self._appliance: Appliance | None = None
        self._client: Plug | None = None
        self._postgres: PostgresSwitchover | None = None

    def folder(self, name: str) -> Path:
        """Returns a new folder."""
        folder = WORK / f"{name}{next(self._numbers)}"
        folder.mkdir()
        return folder

    def appliance(self) -> Appliance:
        """Returns the appliance, whose standby follows."""
        if self._appliance is None:
            made = Appliance(self.binary, self.folder("all"), Settings(self.abilities, documents=self.sizes.documents))
            self._appliance = made
            made.await_front(made.primary)
            made.join()
        return self._appliance

    def client(self) -> Plug:
        """Returns the network of those who know the appliance by its address only."""
        if self._client is None:
            self._client = Plug()
        return self._client

    # For the pair with Postgres alone, whose switchover is measured as `scripts/bench postgres` does it.

    def pair(self, section: str = "") -> Pair:
        return Pair(self.binary, self.folder("postgres"), section)

    def postgres_window(self, number: int) -> float:
        """Swaps the pair with Postgres alone once; returns for how long a client could not write."""
        if self._postgres is None:
            self._postgres = PostgresSwitchover(self)
        return self._postgres.ours(number)["window"]

    @staticmethod
    def discard(pair) -> None:
        if pair:
            pair.remove()
            shutil.rmtree(pair.primary.folder.parent)

    def end(self) -> None:
        if self._postgres:
            self._postgres.end()
        if self._appliance:
            self._appliance.remove()
        if self._client:
            self._client.remove()
