"""How large the cases are: as the targets want it, or small enough for a look in between."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    rounds: int
    # pgbench's scale: about 15 MB each.
    large_scale: int
    load_scale: int
    load_clients: int
    # How long a slice of the latencies is.
    slice_seconds: int
    # Rows that only the old primary has.
    diverged_rows: int


FULL = Sizes(rounds=5, large_scale=135, load_scale=10, load_clients=4, slice_seconds=6, diverged_rows=500)
QUICK = Sizes(rounds=2, large_scale=15, load_scale=2, load_clients=4, slice_seconds=2, diverged_rows=500)
