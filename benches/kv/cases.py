"""The cases, in the order in which they run."""

import statistics
import subprocess
import threading
import time
from pathlib import Path

from benches.case import Case, Measure, Sample
from tests.outside.processes import rss
from tests.outside.waiting import until

from . import load
from .bench import WAIT, WAITED, KvCase

CLIENTS = 64
MIB = 1 << 20
# What still changes on the disk after this long stays.
SETTLE_PATIENCE = 60
SETTLED = 8


class Writes(KvCase):
    name = "writes-64"
    title = "durable on both nodes when acknowledged, 64 clients, 100 random bytes"
    measures = (
        Measure("rate", "/s", "redis SET, WAIT 1", 1.0, is_floor=True),
        Measure("redis-benchmark", "/s", "redis without WAIT", None),
    )

    def ours(self, number: int) -> Sample:
        return self._slice(self.our_pair().primary.kv_port, b"", load.OK)

    def against(self, number: int) -> Sample:
        return self._slice(self.redis_pair().primary.port, WAIT, WAITED)

    def _slice(self, port: int, suffix: bytes, answer: bytes) -> Sample:
        sizes = self.bench.sizes
        rate = load.throughput(port, CLIENTS, sizes.keys, sizes.value_bytes, sizes.slice_seconds, suffix, answer)
        return {"rate": rate, "redis-benchmark": self.bench.redis_benchmark(port, "set")}


class Latency(KvCase):
    name = "latency-1"
    title = "the same by one client"
    measures = (
        Measure("p50", "s", "redis SET, WAIT 1", 1.2),
        Measure("p99", "s", "redis SET, WAIT 1", None),
    )

    def ours(self, number: int) -> Sample:
        return self._slice(self.our_pair().primary.kv_port, b"", load.OK)

    def against(self, number: int) -> Sample:
        return self._slice(self.redis_pair().primary.port, WAIT, WAITED)

    def _slice(self, port: int, suffix: bytes, answer: bytes) -> Sample:
        sizes = self.bench.sizes
        cuts = statistics.quantiles(
            load.latencies(port, sizes.keys, sizes.value_bytes, sizes.slice_seconds, suffix, answer), n=100)
        return {"p50": cuts[49], "p99": cuts[98]}


class Reads(KvCase):
    name = "reads-64"
    title = "GET by redis-benchmark with 64 clients; also 16 at a time"
    measures = (
        Measure("rate", "/s", "redis", 0.5, is_floor=True),
        Measure("16 at a time", "/s", "redis", None),
    )

    def prepare(self, port: int) -> None:
        load.fill(port, range(self.bench.sizes.keys), self.bench.sizes.value_bytes)

    def ours(self, number: int) -> Sample:
        return self._slice(self.our_pair().primary.kv_port)

    def against(self, number: int) -> Sample:
        return self._slice(self.redis_pair().primary.port)

    def _slice(self, port: int) -> Sample:
        return {"rate": self.bench.redis_benchmark(port, "get"),
                "16 at a time": self.bench.redis_benchmark(port, "get", "-P", "16")}


class CatchUp(KvCase):
    name = "catch-up"
    title = "a standby that was away while 64 clients wrote, from the first word to the last operation applied"
    measures = (
        Measure("rate", "operations/s", "limit", 1.0, limit=200_000.0, is_floor=True),
        Measure("rate", "operations/s", "redis, from its start", None),
        Measure("whole", "s", "redis", None),
    )
    once = True
    settings = {"degrade_after": "1s"}

    def ours(self, number: int) -> Sample:
        pair, wanted = self.our_pair(), self.bench.sizes.catch_up_operations
        pair.standby.stop_daemon()
        begin = pair.primary.await_position()
        while (end := pair.primary.await_position()) - begin < wanted:
            self._write(pair.primary.kv_port)
        started = time.monotonic()
        pair.standby.serve()
        seen: list[tuple[float, int]] = []

        def has_all() -> bool:
            pair.standby.assert_runs()
            asked, position = time.monotonic(), pair.standby.position()
            if position is not None:
                seen.append((asked, position))
            return position is not None and position >= end

        until("the standby has caught up", has_all, 600, 0.01)
        ended = time.monotonic()
        first = seen[0][1]
        # The last time that it had nothing new yet.
        linked, had = max((one for one in seen if one[1] == first), key=lambda one: one[0])
        return {"rate": (end - had) / (ended - linked), "whole": ended - started}

    def against(self, number: int) -> Sample:
        pair, wanted = self.redis_pair(), self.bench.sizes.catch_up_operations
        pair.replica.stop()
        begin = _commands(pair.primary)
        while (end := _commands(pair.primary)) - begin < wanted:
            self._write(pair.primary.port)
        started = time.monotonic()
        pair.replica.start(pair.primary)
        pair.await_following()
        pair.await_equal()
        whole = time.monotonic() - started
        return {"rate": (end - begin) / whole, "whole": whole}

    def _write(self, port: int) -> None:
        sizes = self.bench.sizes
        load.throughput(port, CLIENTS, sizes.keys, sizes.value_bytes, sizes.slice_seconds)


class Memory(Case):
    name = "memory"
    title = "resident memory of each process with 1,000,000 keys of 100 random bytes"
    measures = tuple(Measure(name, unit, "redis", None) for name, unit in (
        ("primary", "MiB"), ("standby", "MiB"), ("per key", "bytes"), ("after start", "MiB")))
    once = True

    def ours(self, number: int) -> Sample:
        pair = self.bench.pair()
        try:
            self._fill(pair.primary.kv_port)
            pair.await_equal()
            filled = self._sample(pair.primary.daemon.pid, pair.standby.daemon.pid)
            pair.standby.stop_daemon()
            pair.standby.serve()
            pair.await_following()
            pair.await_equal()
            return filled | {"after start": rss(pair.standby.daemon.pid) / MIB}
        finally:
            self.bench.discard(pair)

    def against(self, number: int) -> Sample:
        pair = self.bench.redis_pair()
        try:
            self._fill(pair.primary.port)
            pair.await_equal()
            filled = self._sample(pair.primary.process.pid, pair.replica.process.pid)
            pair.replica.stop()
            pair.replica.start(pair.primary)
            pair.await_following()
            return filled | {"after start": rss(pair.replica.process.pid) / MIB}
        finally:
            self.bench.discard(pair)

    def _fill(self, port: int) -> None:
        load.fill(port, range(self.bench.sizes.memory_keys), self.bench.sizes.value_bytes)

    def _sample(self, primary: int, standby: int) -> Sample:
        return {"primary": rss(primary) / MIB, "standby": rss(standby) / MIB,
                "per key": rss(primary) / self.bench.sizes.memory_keys}


class Disk(Case):
    name = "disk"
    title = "what is on the disk after 100,000 keys were written over 40 times, to keys and values"
    measures = (
        Measure("settled", "x", "limit", 1.0, limit=3.0),
        Measure("settled", "x", "redis", None),
        Measure("standby", "x", "limit", 1.0, limit=3.0),
        Measure("peak", "x", "redis", None),
    )
    once = True

    def ours(self, number: int) -> Sample:
        pair = self.bench.pair()
        try:
            return self._churn(pair.primary.kv_port, pair.primary.state_bytes, pair.standby.state_bytes)
        finally:
            self.bench.discard(pair)

    def against(self, number: int) -> Sample:
        pair = self.bench.redis_pair()
        try:
            return self._churn(pair.primary.port, lambda: _du(pair.primary.folder), lambda: _du(pair.replica.folder))
        finally:
            self.bench.discard(pair)

    def _churn(self, port: int, primary, standby) -> Sample:
        sizes = self.bench.sizes
        peak, has_ended = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not has_ended.wait(0.25):
                peak = max(peak, primary())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for time_over in range(sizes.churn_times + 1):
                load.fill(port, range(sizes.churn_keys), sizes.value_bytes, seed=time_over)
            settled = _settled(primary), _settled(standby)
        finally:
            has_ended.set()
            watcher.join()
        live = sizes.churn_keys * (len(load.key(0)) + sizes.value_bytes)
        return {"settled": settled[0] / live, "standby": settled[1] / live, "peak": peak / live}


def _settled(size) -> int:
    """Returns what there is once it has not changed for a while."""
    deadline, last, since = time.monotonic() + SETTLE_PATIENCE, size(), time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - since < SETTLED:
        time.sleep(0.5)
        if (now := size()) != last:
            last, since = now, time.monotonic()
    return last


def _du(folder: Path) -> int:
    told = subprocess.run(["du", "-s", "--block-size=1", folder], capture_output=True, text=True).stdout
    return int(told.split()[0])


def _commands(server) -> int:
    """Returns how many writes a Redis has made since it started."""
    return int(server.info("commandstats").get("cmdstat_set", "calls=0").split(",")[0].removeprefix("calls="))


CASES: tuple[type[Case], ...] = (Writes, Latency, Reads, CatchUp, Memory, Disk)
