"""A tree, the pair that replicates it, and the rsync daemon that mirrors it."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.outside.binary import Binary
from tests.outside.network import lo_bytes
from tests.outside.pair import Pair
from tests.outside.processes import cpu_seconds, peak_rss, reset_peak_rss

from .compare import assert_equal
from .measured import Round, Run
from .rsync import Rsync
from .sizes import Sizes

# The tree of every scene is this folder of the store; the file beside it is there from the beginning,
# since a store whose top is empty is taken for one that is not mounted.
DATA = "data"
KEPT = "kept"


class Bench:
    """What all scenes share."""

    def __init__(self, binary: Binary, folder: Path, sizes: Sizes, seed: int, has_own_network: bool,
                 verifies_all: bool) -> None:
        self.binary, self.folder, self.sizes, self.seed = binary, folder / "near", sizes, seed
        self.far = folder / "far"
        self.has_own_network, self.verifies_all = has_own_network, verifies_all
        # Of a pair with nothing to keep: what its heartbeats cost, on both sides.
        self.idle_cpu_share = 0.0
        self.idle_bytes_per_second = 0.0

    def measure_idleness(self) -> None:
        """Learns what a pair of an empty store uses, to tell heartbeats from work."""
        pair = Pair(self.binary, self.folder / "empty")
        (pair.source / KEPT).touch()
        try:
            pair.start_primary()
            pair.join()
            pair.wait_equal(self.sizes.patience)
            cpu, wire = idle(pair, self.sizes.idle_seconds)
        finally:
            pair.remove()
        self.idle_cpu_share = cpu / self.sizes.idle_seconds
        self.idle_bytes_per_second = wire / self.sizes.idle_seconds


def idle(pair: Pair, seconds: float) -> tuple[float, int]:
    """Returns the processor time and the bytes that a pair uses in that time when nothing happens."""
    pair.settle()
    cpu, wire = sum(map(cpu_seconds, pair.pids)), lo_bytes()
    time.sleep(seconds)
    return sum(map(cpu_seconds, pair.pids)) - cpu, lo_bytes() - wire


class Scene:
    """Both sides copy the very same tree, so each change is made once and carried over twice."""

    def __init__(self, bench: Bench, name: str, make: Callable[[Path, Sizes, int], int]) -> None:
        self.bench, self.name = bench, name
        self.folder = bench.folder / name
        # Where both copies are: another machine, by rights, whose file system tells nobody here.
        self.far = bench.far / name
        self._make = make
        self._beside = self.folder / "beside"
        self.pair: Pair | None = None
        self.rsync: Rsync | None = None
        self.content_bytes = 0

    @property
    def data(self) -> Path:
        """The tree, as a part of the store."""
        return self.pair.source / DATA

    def spare(self, name: str) -> Path:
        """A place on the same file system that nobody copies."""
        return self.folder / name

    def go_live(self) -> None:
        """Sees to it that both sides have the tree and are quiet; nothing of this is timed."""
        if self.pair is None:
            self.begin(with_data=True)
            self.pair.start_primary()
            self.pair.join()
            self.pair.wait_equal(self.bench.sizes.patience)
            self.rsync.push(self.pair.source)
        self.pair.settle()

    def begin(self, with_data: bool) -> None:
        """Makes a pair that has not been started, and an empty mirror; the data is in the store, or beside."""
        self._retire()
        if not self._beside.exists():
            self._beside.mkdir(parents=True)
            self.content_bytes = self._make(self._beside, self.bench.sizes, self.bench.seed)
        self.far.mkdir(parents=True, exist_ok=True)
        self.pair = Pair(self.bench.binary, self.folder / "pair", self.far)
        (self.pair.source / KEPT).touch()
        self.rsync = Rsync(self.far / "rsync", self.bench.has_own_network)
        if with_data:
            self.bring_data()
        self.flush()

    def bring_data(self) -> None:
        os.rename(self._beside, self.data)

    def flush(self) -> None:
        """Leaves nothing for the next sync to write that is not its own."""
        for folder in (self.folder, self.far):
            subprocess.run(["sync", "-f", folder], check=True)

    def carry(self, change: Callable[[], int], wait: Callable[[], dict] | None = None) -> Round:
        """Makes a change and times ours and then rsync; both clocks start when the change is made.

        `change` returns how many bytes it touched; `wait` the moments at which they were flushed and applied.
        """
        self.pair.settle()
        self.flush()
        self.reset_meters()
        first = time.monotonic()
        content = change()
        begun = time.monotonic()
        ours = self.read_meters(begun, (wait or self._wait_both)(), since=first)
        return self.round(ours, content, begun - first)

    def round(self, ours: Run, content: int, change_seconds: float = 0.0) -> Round:
        """Lets rsync do the same, and looks whether both did it."""
        rsync = self.rsync.push(self.pair.source)
        self.verify()
        return Round(ours, rsync, content, change_seconds)

    def verify(self) -> None:
        self.verify_ours()
        self._verify(self.rsync.mirror, folder_times=False)

    def verify_ours(self) -> None:
        self._verify(self.pair.copy)

    def _verify(self, copy: Path, folder_times: bool = True) -> None:
        assert_equal(self.pair.source, copy, self.bench.seed, self.bench.verifies_all, folder_times)

    def reset_meters(self) -> None:
        """Starts to count processor time, memory and bytes."""
        for pid in self.pair.pids:
            reset_peak_rss(pid)
        self._cpu = {pid: cpu_seconds(pid) for pid in self.pair.pids}
        self._wire = lo_bytes()

    def read_meters(self, begun: float, moments: dict[str, float | None], since: float | None = None) -> Run:
        """Tells what was used, with what is done after all has been applied; heartbeats are taken off the wire."""
        self.pair.settle()
        wire = lo_bytes() - self._wire
        heartbeats = self.bench.idle_bytes_per_second * (time.monotonic() - (since or begun))
        return Run(
            seconds={name: moment and moment - begun for name, moment in moments.items()},
            cpu_seconds=sum(cpu_seconds(pid) - self._cpu.get(pid, 0) for pid in self.pair.pids),
            wire_bytes=max(0, wire - heartbeats),
            rss_bytes=[peak_rss(pid) for pid in self.pair.pids],
        )

    def _wait_both(self) -> dict[str, float | None]:
        return self.pair.wait_both(self.bench.sizes.patience)

    def _retire(self) -> None:
        """Ends the pair and the mirror, and puts the data aside for the next ones."""
        if self.pair:
            self.pair.stop()
            if self.data.exists():
                os.rename(self.data, self._beside)
            shutil.rmtree(self.pair.folder)
            shutil.rmtree(self.pair.b.folder)
            self.pair = None
        if self.rsync:
            self.rsync.stop()
            shutil.rmtree(self.far / "rsync")
            self.rsync = None

    def discard(self, keep: bool) -> None:
        """Ends everything; the next use starts from nothing."""
        if self.pair:
            self.pair.stop()
        if self.rsync:
            self.rsync.stop()
        self.pair = self.rsync = None
        for folder in (self.folder, self.far):
            if folder.exists():
                if keep:
                    os.rename(folder, folder.with_name(f"{self.name}-{time.time_ns()}"))
                else:
                    shutil.rmtree(folder)
