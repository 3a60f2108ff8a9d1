"""The cases, and what each has to reach."""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import generator, stream
from .generator import MIB
from .measured import Round, Run
from .scene import Scene, idle
from .sizes import Sizes


class NotMeasurable(Exception):
    """This build lacks what the case needs."""


@dataclass(frozen=True)
class Measure:
    """One figure of a case beside what it is compared with; `at_most` bounds the ratio of the two."""

    name: str
    unit: str
    ours: Callable[[Round], float | None]
    against_name: str
    against: Callable[[Round], float | None]
    at_most: float


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    scene: str
    run: Callable[[Scene, int], Round]
    measures: tuple[Measure, ...]
    # One round tells enough.
    once: bool = False
    is_default: bool = True


# What a figure is compared with.

def seconds(name: str, at_most: float) -> Measure:
    return Measure(name, "s", lambda r: r.ours.seconds[name], "rsync durable",
                   lambda r: r.rsync.seconds["durable"], at_most)


def wire_to_content(at_most: float) -> Measure:
    return Measure("wire", "bytes", lambda r: r.ours.wire_bytes, "changed bytes", lambda r: r.content_bytes, at_most)


def wire_to_rsync(at_most: float) -> Measure:
    return Measure("wire", "bytes", lambda r: r.ours.wire_bytes, "rsync wire", lambda r: r.rsync.wire_bytes, at_most)


def limit(name: str, unit: str, ours: Callable[[Round], float | None], value: float) -> Measure:
    """A figure that is compared with nothing but a bound."""
    return Measure(name, unit, ours, "limit", lambda _: value, 1.0)


def wire_limit(value: float) -> Measure:
    return limit("wire", "bytes", lambda r: r.ours.wire_bytes, value)


# What happens in each.

def _initial(scene: Scene, _: int) -> Round:
    """A tree that neither node knows, a primary that starts on it, a standby that joins."""
    scene.begin(with_data=True)
    scene.reset_meters()
    begun = time.monotonic()
    scene.pair.start_primary()
    scene.pair.join()
    scene.pair.wait_equal(scene.bench.sizes.patience)
    ours = scene.read_meters(begun, {"flushed": None, "applied": time.monotonic()})
    return scene.round(ours, scene.content_bytes)


def _arrival(scene: Scene, _: int) -> Round:
    """A tree that is moved into the store of a pair that runs."""
    scene.begin(with_data=False)
    scene.pair.start_primary()
    scene.pair.join()
    scene.pair.wait_equal(scene.bench.sizes.patience)

    def change() -> int:
        scene.bring_data()
        return scene.content_bytes

    return scene.carry(change)


def _idle(scene: Scene, _: int) -> Round:
    """Nothing happens, and the pair watches; beyond what an empty store costs."""
    scene.go_live()
    window = scene.bench.sizes.idle_seconds
    cpu, wire = idle(scene.pair, window)
    ours = Run(
        seconds={"flushed": None, "applied": None},
        cpu_seconds=max(0.0, cpu - scene.bench.idle_cpu_share * window),
        wire_bytes=max(0.0, wire - scene.bench.idle_bytes_per_second * window),
    )
    return scene.round(ours, 0)


def _by_scan(scene: Scene) -> Callable[[], dict]:
    if not scene.bench.binary.has_sync:
        raise NotMeasurable("this build has no `understudy sync`")

    def wait() -> dict:
        scene.pair.sync(scene.bench.sizes.patience)
        return {"flushed": None, "applied": time.monotonic()}

    return wait


def _scan(scene: Scene, _: int) -> Round:
    """Nothing has changed, and all is looked at to prove it."""
    wait = _by_scan(scene)
    scene.go_live()
    return scene.carry(lambda: 0, wait)


def _few(scene: Scene, round_number: int) -> Round:
    scene.go_live()
    return scene.carry(_rewrite_few(scene, f"few {round_number}"))


def _few_by_scan(scene: Scene, round_number: int) -> Round:
    wait = _by_scan(scene)
    scene.go_live()
    return scene.carry(_rewrite_few(scene, f"scan {round_number}"), wait)


def _rewrite_few(scene: Scene, name: str) -> Callable[[], int]:
    rng = random.Random(f"{scene.bench.seed} {name}")
    chosen = rng.sample(generator.files_beneath(scene.data), scene.bench.sizes.few)
    return lambda: generator.rewrite(chosen, rng.getrandbits(64))


def _pages(scene: Scene, round_number: int) -> Round:
    scene.go_live()
    return scene.carry(lambda: generator.overwrite_pages(scene.data / BIG, 0.01, _seed(scene, round_number)))


def _insert(scene: Scene, round_number: int) -> Round:
    """As an editor does it: a new file is written, and renamed over the old one."""
    scene.go_live()
    other = scene.spare("longer")
    inserted = generator.with_front(scene.data / BIG, other, scene.bench.sizes.inserted_bytes, _seed(scene, round_number))

    def change() -> int:
        os.rename(other, scene.data / BIG)
        return inserted

    return scene.carry(change)


def _append(scene: Scene, round_number: int) -> Round:
    scene.go_live()
    size = scene.bench.sizes.appended_bytes
    return scene.carry(lambda: generator.append([scene.data / BIG], size, _seed(scene, round_number)))


def _rename(scene: Scene, round_number: int) -> Round:
    scene.go_live()
    names = [scene.data / "moved", scene.data / "moved-away"]

    def change() -> int:
        old, new = names if names[0].exists() else reversed(names)
        os.rename(old, new)
        return 0

    return scene.carry(change)


def _logs(scene: Scene, round_number: int) -> Round:
    scene.go_live()
    files = generator.files_beneath(scene.data)
    size = scene.bench.sizes.logged_bytes
    return scene.carry(lambda: generator.append(files, size, _seed(scene, round_number)))


def _seed(scene: Scene, round_number: int) -> str:
    return f"{scene.bench.seed} {round_number}"


# The trees.

BIG = "big"


def _make_small(top: Path, sizes: Sizes, seed: int) -> int:
    return generator.small_files(top, sizes.small_files, sizes.small_mean, seed)


def _make_big(top: Path, sizes: Sizes, seed: int) -> int:
    return generator.big_file(top / BIG, sizes.big_bytes, seed)


def _make_moved(top: Path, sizes: Sizes, seed: int) -> int:
    return generator.small_files(top / "moved", sizes.moved_files, sizes.moved_mean, seed, spread=0.3)


def _make_logs(top: Path, sizes: Sizes, seed: int) -> int:
    return generator.small_files(top, sizes.logs, sizes.log_mean, seed, spread=0.2)


def _make_stream(top: Path, sizes: Sizes, seed: int) -> int:
    return generator.small_files(top, sizes.stream_files, 2000, seed)


def _make_million(top: Path, sizes: Sizes, seed: int) -> int:
    return generator.small_files(top, sizes.million, 200, seed, spread=0.3)


def _million(scene: Scene, _: int) -> Round:
    """Memory at very many files: both start, copy, and then carry a change."""
    scene.begin(with_data=True)
    scene.reset_meters()
    begun = time.monotonic()
    scene.pair.start_primary()
    scene.pair.join()
    scene.pair.wait_equal(scene.bench.sizes.patience * 4)
    applied = time.monotonic()
    _rewrite_few(scene, "million")()
    scene.pair.wait(scene.bench.sizes.patience)
    ours = scene.read_meters(begun, {"flushed": None, "applied": applied})
    return Round(ours, None, scene.content_bytes)


SCENES = {
    "small": _make_small,
    "big": _make_big,
    "moved": _make_moved,
    "logs": _make_logs,
    "stream": _make_stream,
    "million": _make_million,
}

CASES = (
    Case("initial", "small files, a standby joins", "small", _initial,
         (seconds("applied", 0.65), wire_to_content(1.05))),
    Case("arrival", "small files, moved into a running pair", "small", _arrival,
         (seconds("applied", 0.65), seconds("flushed", 0.35), wire_to_content(1.05))),
    Case("idle", "no change, watched", "small", _idle,
         (limit("cpu", "s", lambda r: r.ours.cpu_seconds, 0.005), wire_limit(1024)), once=True),
    Case("scan", "no change, a full scan", "small", _scan, (seconds("applied", 0.35), wire_limit(1024))),
    Case("few", "a few of them changed, watched", "small", _few, (seconds("applied", 0.08), wire_to_content(1.2))),
    Case("few-scan", "a few of them changed, a full scan", "small", _few_by_scan,
         (seconds("applied", 0.4), wire_to_content(1.2))),
    Case("big", "one big file, moved in", "big", _arrival, (seconds("applied", 0.65), wire_to_content(1.01))),
    Case("pages", "1 % of its pages overwritten", "big", _pages, (seconds("applied", 0.15), wire_to_rsync(0.08))),
    Case("insert", "some inserted in front", "big", _insert, (seconds("applied", 0.6), wire_limit(1.5 * MIB))),
    Case("append", "some appended", "big", _append, (seconds("flushed", 0.2), wire_to_content(1.02))),
    Case("rename", "a directory renamed", "moved", _rename, (seconds("applied", 0.01), wire_limit(4096))),
    Case("logs", "200 bytes appended to each of many files", "logs", _logs,
         (seconds("applied", 0.35), wire_limit(2 * MIB))),
    Case("stream", "1,000 small changes a second", "stream", stream.run,
         (limit("p50", "s", lambda r: r.ours.seconds["p50"], 0.015),
          limit("p99", "s", lambda r: r.ours.seconds["p99"], 0.150)), once=True),
    Case("million", "memory at very many files", "million", _million,
         (limit("rss primary", "bytes", lambda r: r.ours.rss_bytes[0], 200 * MIB),
          limit("rss standby", "bytes", lambda r: r.ours.rss_bytes[1], 200 * MIB)), once=True, is_default=False),
)
