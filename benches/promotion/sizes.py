"""How large the cases are: as the targets want it, or small enough for a look in between."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    rounds: int
    # How many rows the index has.
    documents: int
    # How many of them change before the roles do, in each round.
    changed_documents: int


FULL = Sizes(rounds=5, documents=100_000, changed_documents=500)
QUICK = Sizes(rounds=2, documents=5_000, changed_documents=100)
