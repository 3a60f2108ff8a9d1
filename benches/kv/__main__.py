"""`scripts/bench kv`: runs the cases, and prints what they took."""

import os
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

from benches import campaign
from tests.outside import redis_server
from tests.outside.binary import Binary

from . import load
from .bench import Bench
from .cases import CASES, CLIENTS
from .sizes import FULL, QUICK

# What an entry with one operation of 100 bytes is at least.
APPENDED_BYTES = 200


def main() -> int:
    arguments = campaign.parse(campaign.parser(
        "kv", "Measure the KV store beside a Redis that promises the same, in turn, in the same run.", CASES))
    if not redis_server.is_there():
        print("scripts/bench kv: redis-server and redis-benchmark are missing; `scripts/setup --test` installs them",
              file=sys.stderr)
        return 2
    # A terminated run cleans up as one that ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    binary = Binary()
    started = time.strftime("%Y%m%d-%H%M%S")
    folder = arguments.dir / f"kv-{started}"
    folder.mkdir(parents=True)
    bench = Bench(binary, folder, QUICK if arguments.quick else FULL, arguments.keep)
    facts = {"machine": campaign.machine(folder, binary, redis=[redis_server.SERVER, "--version"]), "quick": arguments.quick}
    try:
        facts["floors"] = _floors(bench)
        results = campaign.run_cases(bench, CASES, arguments)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    floors = facts["floors"]
    notes = [f"floors: {floors['append_seconds'] * 1e6:.0f} us to append {APPENDED_BYTES} bytes and sync them, "
             f"{floors['round_trip_seconds'] * 1e6:.0f} us for a byte over the loopback and back (medians); the clients of "
             f"`writes-64` make {floors['clients_per_second']:,.0f} requests a second of a server that does nothing"]
    return campaign.tell(results, facts, arguments.dir / f"kv-{started}.json", arguments, notes)


def _floors(bench: Bench) -> dict:
    """Measures what nobody can be faster than."""
    seconds = bench.sizes.slice_seconds / 2
    told = {"append_seconds": _append(bench.folder, seconds), "round_trip_seconds": load.round_trip(seconds),
            "clients_per_second": load.ceiling(CLIENTS, seconds, bench.sizes.value_bytes)}
    campaign.say(f"floors: {told}")
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
    sys.exit(main())
