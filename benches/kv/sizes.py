"""How large the cases are: as the targets want it, or small enough for a look in between."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    rounds: int
    # How long a slice of load is.
    slice_seconds: float
    # Over how many keys the load goes.
    keys: int
    value_bytes: int
    # How many requests redis-benchmark makes.
    benchmark_requests: int
    catch_up_operations: int
    memory_keys: int
    churn_keys: int
    churn_times: int


FULL = Sizes(rounds=5, slice_seconds=6, keys=100_000, value_bytes=100, benchmark_requests=200_000,
             catch_up_operations=1_000_000, memory_keys=1_000_000, churn_keys=100_000, churn_times=40)
QUICK = Sizes(rounds=2, slice_seconds=2, keys=100_000, value_bytes=100, benchmark_requests=40_000,
              catch_up_operations=100_000, memory_keys=100_000, churn_keys=20_000, churn_times=20)
