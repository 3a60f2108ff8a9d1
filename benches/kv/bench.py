"""What all cases share: where they work, and the pairs that they make."""

import itertools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benches.case import Case
from tests.outside.binary import Binary
from tests.outside.kv import KvPair
from tests.outside.redis_server import BENCHMARK, RedisPair
from tests.outside.resp import encode

from .load import OK
from .sizes import Sizes

# What makes Redis promise what ours does: the write is durable on the replica, too.
WAIT = encode("WAIT", 1, 0)
WAITED = OK + b":1\r\n"


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    binary: Binary
    folder: Path
    sizes: Sizes
    # The folders of both sides stay.
    keeps: bool = False
    numbers = itertools.count(1)

    def pair(self, **settings: str) -> KvPair:
        """Makes a pair of ours that follows."""
        return _begun(KvPair(self.binary, self.folder / f"ours{next(self.numbers)}", settings))

    def redis_pair(self) -> RedisPair:
        return _begun(RedisPair(self.folder / f"redis{next(self.numbers)}"))

    def discard(self, pair: KvPair | RedisPair) -> None:
        pair.remove() if self.keeps else pair.discard()

    def redis_benchmark(self, port: int, test: str, *more: str) -> float:
        """Returns requests a second by Redis' own program: 64 clients, all keys the same size, at random."""
        sizes = self.sizes
        command = [BENCHMARK, "-p", port, "-c", 64, "-d", sizes.value_bytes, "-r", sizes.keys, "-n",
                   sizes.benchmark_requests, "-t", test, "--csv", *more]
        told = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=600).stdout
        # "test","rps",… ; then a line of quoted figures for the test.
        [line] = [line for line in told.splitlines() if line.lower().startswith(f'"{test}')]
        return float(line.split(",")[1].strip('"'))


class KvCase(Case):
    """A case with a pair on each side that outlives a round; each is made when it is first needed."""

    bench: Bench
    settings: dict[str, str] = {}
    _ours: KvPair | None = None
    _redis: RedisPair | None = None

    def prepare(self, port: int) -> None:
        """Fills a primary that has just been made."""

    def our_pair(self) -> KvPair:
        if self._ours is None:
            self._ours = self.bench.pair(**self.settings)
            self.prepare(self._ours.primary.kv_port)
        return self._ours

    def redis_pair(self) -> RedisPair:
        if self._redis is None:
            self._redis = self.bench.redis_pair()
            self.prepare(self._redis.primary.port)
        return self._redis

    def end(self) -> None:
        for pair in (self._ours, self._redis):
            if pair:
                self.bench.discard(pair)
        self._ours = self._redis = None


def _begun(pair):
    try:
        pair.begin()
    except BaseException:
        pair.remove()
        raise
    return pair
