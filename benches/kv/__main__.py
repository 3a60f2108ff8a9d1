"""`scripts/bench kv`: runs the cases, and prints what they took."""

import os
import statistics
import sys
import time
from pathlib import Path

from benches.campaign import Campaign, Run, run_cases, say
from benches.report import Result
from tests.outside import redis_server

from . import load
from .bench import Bench
from .cases import CASES, CLIENTS
from .sizes import FULL, QUICK

# What an entry with one operation of 100 bytes is at least.
APPENDED_BYTES = 200


class KvCampaign(Campaign):
    name = "kv"
    description = "Measure the KV store beside a Redis that promises the same, in turn, in the same run."
    cases, full, quick = CASES, FULL, QUICK

    def lacks(self) -> str | None:
        if redis_server.is_there():
            return None
        return "redis-server and redis-benchmark are missing; `scripts/setup --test` installs them"

    def peers(self) -> dict[str, list]:
        return {"redis": [redis_server.SERVER, "--version"]}

    def measure(self, run: Run) -> list[Result]:
        bench = Bench(run.binary, run.folder, run.sizes, run.arguments.keep)
        run.facts["floors"] = _floors(bench)
        return run_cases(bench, CASES, run.arguments)

    def notes(self, run: Run) -> list[str]:
        floors = run.facts["floors"]
        return [f"floors: {floors['append_seconds'] * 1e6:.0f} us to append {APPENDED_BYTES} bytes and sync them, "
                f"{floors['round_trip_seconds'] * 1e6:.0f} us for a byte over the loopback and back (medians); the clients of "
                f"`writes-64` make {floors['clients_per_second']:,.0f} requests a second of a server that does nothing"]


def _floors(bench: Bench) -> dict:
    """Measures what nobody can be faster than."""
    seconds = bench.sizes.slice_seconds / 2
    told = {"append_seconds": _append(bench.folder, seconds), "round_trip_seconds": load.round_trip(seconds),
            "clients_per_second": load.ceiling(CLIENTS, seconds, bench.sizes.value_bytes)}
    say(f"floors: {told}")
    return told


def _append(folder: Path, seconds: float) -> float:
    """Returns the median time to append a little to a file and to make it durable."""
    path, told = folder / "floor", []
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    begun = time.monotonic()
    while time.monotonic() < begun + seconds:
        before = time.perf_counter()
        os.write(file, bytes(APPENDED_BYTES))
        os.fdatasync(file)
        told.append(time.perf_counter() - before)
    os.close(file)
    path.unlink()
    return statistics.median(told)


if __name__ == "__main__":
    sys.exit(KvCampaign().main())
