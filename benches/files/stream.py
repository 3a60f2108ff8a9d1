"""A steady stream of small changes, and how long each takes to the standby.

*Visible*: for every change, the moment at which the standby's tree shows it, told by inotify there. What
is visible has been flushed before, so this bounds *flushed* from above.

*Flushed*: where the build can wait for it, now and then what `wait --flushed` asks the daemon for, right
after a change; asking takes a while, too, which a quiet pair is measured for as well.

What the monitor shows cannot serve here: a position tells how far a side is, not which change that was.
"""

import ctypes
import multiprocessing
import os
import random
import statistics
import struct
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .generator import files_beneath
from .measured import Round, Run

PROBE_INTERVAL = 0.2
PROBES_QUIET = 10
CHANGED_BYTES = 200

_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_CREATE, _IN_Q_OVERFLOW = 0x8, 0x80, 0x100, 0x4000
_EVENT = struct.Struct("iIII")


class Unseen(Exception):
    """Changes that the standby never showed."""


def run(scene, _: int) -> Round:
    scene.go_live()
    sizes = scene.bench.sizes
    observer = _Observer(scene.pair.copy)
    quiet_probe = [_probe(scene, PROBES_QUIET + number) for number in range(PROBES_QUIET)]
    scene.reset_meters()
    begun = time.monotonic()
    with _Probes(scene) as probes:
        changes = _make_changes(scene, sizes.stream_seconds, sizes.changes_per_second)
    made = time.monotonic() - begun
    scene.pair.wait(sizes.patience)
    ours = scene.read_meters(begun, {})
    visible = _latencies(changes, observer.end())
    ours.seconds = _percentiles("visible", visible) | _percentiles("flushed", probes.seconds())
    ours.seconds["flushed probe when quiet"] = None if None in quiet_probe else statistics.median(quiet_probe)
    # Either bounds from above how long it took to flushed.
    for share in ("p50", "p99"):
        bounds = [ours.seconds[f"{kind} {share}"] for kind in ("visible", "flushed")]
        ours.seconds[share] = min(bound for bound in bounds if bound is not None)
    ours.seconds["per change"] = made / len(changes)
    scene.verify_ours()
    return Round(ours, None, len(changes) * CHANGED_BYTES, made)


def _make_changes(scene, seconds: int, rate: int) -> list[tuple[bytes, int, float]]:
    """Makes changes at that rate; returns the path, the file's time and the moment of each.

    In turn a part of a file is overwritten, a file is replaced by renaming, and one is made.
    """
    rng = random.Random(scene.bench.seed)
    top = scene.pair.source
    files = files_beneath(scene.data)
    made = []
    begun = time.monotonic()
    for number in range(seconds * rate):
        pause = begun + number / rate - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        path = files[number % len(files)]
        content = rng.randbytes(CHANGED_BYTES)
        if number % 3 == 0:
            out = os.open(path, os.O_WRONLY)
        elif number % 3 == 1:
            beside = scene.spare("replacement")
            out = os.open(beside, os.O_WRONLY | os.O_CREAT, 0o644)
        else:
            path = path.with_name(f"new-{number}")
            out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(out, content)
        changed_at = os.fstat(out).st_mtime_ns
        os.close(out)
        if number % 3 == 1:
            os.rename(beside, path)
        made.append((os.fsencode(path.relative_to(top)), changed_at, time.monotonic()))
    return made


def _latencies(changes: list[tuple[bytes, int, float]], seen: list[tuple[bytes, int, float]]) -> list[float]:
    """Matches what was seen with what was made: a version shows its own change and all earlier ones."""
    pending: dict[bytes, list[tuple[int, float]]] = {}
    for path, changed_at, moment in changes:
        pending.setdefault(path, []).append((changed_at, moment))
    latencies = []
    for path, changed_at, moment in seen:
        waiting = pending.get(path, [])
        while waiting and waiting[0][0] <= changed_at:
            latencies.append(moment - waiting.pop(0)[1])
    unseen = sum(map(len, pending.values()))
    if unseen:
        raise Unseen(f"{unseen} of {len(changes)} changes were never seen on the standby")
    return latencies


def _percentiles(kind: str, seconds: list[float]) -> dict[str, float | None]:
    if len(seconds) < 2:
        return {f"{kind} p50": None, f"{kind} p99": None}
    cuts = statistics.quantiles(seconds, n=100)
    return {f"{kind} p50": cuts[49], f"{kind} p99": cuts[98]}


def _probe(scene, number: int) -> float | None:
    """Makes a change and waits until it is flushed; returns how long that took."""
    if not scene.bench.binary.has_flushed:
        return None
    (scene.pair.source / "probe").write_text(str(number))
    begun = time.monotonic()
    scene.pair.ask_flushed(scene.bench.sizes.patience)
    return time.monotonic() - begun


class _Probes:
    """Probes at fixed moments while the changes go on.

    Each begins when it is due, however long those before it take: one after the other, they would look
    mostly when all is well.
    """

    def __init__(self, scene) -> None:
        self._scene = scene
        self._ended = threading.Event()
        self._pace = threading.Thread(target=self._begin_each)
        self._waiting: list[Future] = []
        self._threads = ThreadPoolExecutor(scene.bench.sizes.stream_seconds * round(1 / PROBE_INTERVAL))

    def __enter__(self):
        self._pace.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._pace.join()

    def seconds(self) -> list[float]:
        """Waits for all of them; returns how long each took, none where this build cannot tell."""
        with self._threads:
            taken = [probe.result() for probe in self._waiting]
        return [seconds for seconds in taken if seconds is not None]

    def _begin_each(self) -> None:
        while not self._ended.wait(PROBE_INTERVAL):
            self._waiting.append(self._threads.submit(_probe, self._scene, len(self._waiting)))


class _Observer:
    """Notes, in a process of its own, which version of which file the standby shows when."""

    def __init__(self, top: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_observe, args=(os.fsencode(top), theirs), daemon=True)
        self._process.start()
        self._ours.recv()

    def end(self) -> list[tuple[bytes, int, float]]:
        self._ours.send(None)
        seen = self._ours.recv()
        self._process.join()
        if isinstance(seen, Exception):
            raise seen
        return seen


def _observe(top: bytes, parent) -> None:
    """Watches every directory beneath `top` until the parent says so."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    folders = {}
    for folder, names, _ in os.walk(top):
        if folder == top and b".understudy" in names:
            names.remove(b".understudy")
        watch = libc.inotify_add_watch(queue, folder, _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE)
        folders[watch] = folder
    parent.send("ready")
    seen = []
    poll_interval = 0.001
    while not parent.poll():
        try:
            events = os.read(queue, 1 << 16)
        except BlockingIOError:
            time.sleep(poll_interval)
            continue
        moment = time.monotonic()
        for watch, mask, name in _events(events):
            if mask & _IN_Q_OVERFLOW:
                parent.recv()
                parent.send(Unseen("the observer was too slow for the events of the standby's tree"))
                return
            path = os.path.join(folders[watch], name)
            try:
                changed_at = os.lstat(path).st_mtime_ns
            except FileNotFoundError:
                continue
            seen.append((os.path.relpath(path, top), changed_at, moment))
    parent.send(seen)


def _events(data: bytes):
    at = 0
    while at < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        yield watch, mask, data[at : at + length].rstrip(b"\0")
        at += length
