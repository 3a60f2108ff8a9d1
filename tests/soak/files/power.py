"""The standby's power is cut: what it had not written to its disk is lost.

Its disk is an image with a file system. The daemon is stopped, the image is copied as it is, and the daemon and that
file system go away with all that was only in memory. It starts again on the copy. A file system that writes by
itself only every five minutes makes sure that what is there was synced.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.outside.binary import Binary
from tests.outside.pair import Failed, Pair

from . import judge
from .mutator import Mutator
from .tagged import Ledger

DISK_BYTES = 2 << 30
PATIENCE = 90
PROBES = 40


class Violation(Exception):
    """Something that is guaranteed does not hold."""


class Disk:
    """A disk whose power can be cut, mounted in this program's mount namespace."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self.place = folder / "disk"
        self.place.mkdir(parents=True)
        with open(self._image(), "xb") as out:
            out.truncate(DISK_BYTES)
        lazy = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", lazy, self._image()], check=True)
        self._mount()

    def _image(self) -> Path:
        return self._folder / f"disk-{self._number}.image"

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop,commit=300", self._image(), self.place], check=True)

    def keep(self) -> None:
        """Keeps what is on the disk at this moment; whoever writes there has been stopped."""
        # What was being written for it when it was stopped comes to its end.
        time.sleep(0.1)
        following = self._folder / f"disk-{self._number + 1}.image"
        subprocess.run(["cp", "--sparse=always", self._image(), following], check=True)

    def lose(self) -> None:
        """Loses everything since then."""
        self.unmount()
        self._image().unlink()
        self._number += 1
        self._mount()

    def unmount(self) -> None:
        subprocess.run(["umount", self.place], check=True)


class Trial:
    """A pair from nothing, under the history of one seed, to the promotion of its standby."""

    def __init__(self, binary: Binary, folder: Path, seed: int, without: set[str]) -> None:
        self._seed, self._without = seed, without
        self._rng = random.Random(f"power {seed}")
        self._ledger = Ledger()
        self._disk = Disk(folder)
        self._pair = Pair(binary, folder, far=self._disk.place)
        self._source = os.fsencode(self._pair.source)
        (self._pair.source / "kept").touch()

    def run(self) -> str:
        self._mutator(0).has_ended()
        self._pair.start_primary(delete_guard="100%", scan="0 0 0 1 1 *")
        self._pair.join()
        self._pair.wait_equal(PATIENCE)
        mutator, cuts = self._mutator(1), 0
        while not mutator.has_ended(within=0.5 + 2 * self._rng.random()):
            self._cut()
            cuts += 1
        self._pair.wait_equal(PATIENCE)
        found = judge.differences(self._source, os.fsencode(self._pair.copy), self._without)
        if found:
            raise Violation("\n".join([f"after {cuts} cuts both agree, and they do not:", *found]))
        told = self._promote()
        return f"{mutator.changes} changes, {cuts} cuts; {told}"

    def _mutator(self, number: int) -> Mutator:
        changes = random.Random(f"change {self._seed} {number}")
        mutator = Mutator(self._source, changes, self._ledger, changes.randrange(200, 600), self._without)
        mutator.start()
        return mutator

    def _cut(self) -> None:
        standby = self._pair.b
        if standby.ended():
            raise Violation(standby.ended())
        standby.daemon.send_signal(signal.SIGSTOP)
        self._disk.keep()
        standby.stop(signal.SIGKILL)
        self._disk.lose()
        standby.start("serve")

    def _promote(self) -> str:
        """Loses the primary and the standby's power at once; what was flushed is there after a promotion."""
        flushed: list[str] = []
        waiting: list[str] = []
        for number in range(PROBES):
            name, content = f"probe-{number}", self._rng.randbytes(self._rng.choice([10, 5000, 300_000]))
            (self._pair.source / name).write_bytes(content)
            waiting.append(name)
            if self._rng.random() < 0.5:
                self._pair.ask_flushed(PATIENCE)
                flushed += waiting
                waiting.clear()
        primary, standby = self._pair.a, self._pair.b
        standby.daemon.send_signal(signal.SIGSTOP)
        self._disk.keep()
        primary.stop(signal.SIGKILL)
        standby.stop(signal.SIGKILL)
        self._disk.lose()
        standby.start("serve")
        self._until_promoted()
        for name in flushed:
            copy = self._pair.copy / name
            if not copy.exists() or copy.read_bytes() != (self._pair.source / name).read_bytes():
                raise Violation(f"{name} was flushed, and is not there after the power was cut and b was promoted")
        return f"{len(flushed)} flushed files are there after a cut and a promotion"

    def _until_promoted(self) -> None:
        until, said = time.monotonic() + PATIENCE, None
        while time.monotonic() < until:
            try:
                self._pair.b.run("promote", "--force")
                return
            except Failed as failed:
                said = failed
                time.sleep(0.2)
        raise Violation(f"b is not promoted: {said}")

    def end(self) -> None:
        self._pair.stop()
        self._disk.unmount()


def run(binary: Binary, folder: Path, arguments, say) -> tuple[int, list[int]]:
    """Runs trials, each of a seed of its own; returns how many, and the seeds of those that found a violation."""
    seeds: list[int] = []
    for number in range(arguments.rounds):
        seed = arguments.seed + number
        trial = Trial(binary, folder / f"seed-{seed}", seed, set(arguments.without))
        try:
            say(f"seed {seed}: {trial.run()}")
        except (Violation, Failed) as violation:
            seeds.append(seed)
            say(f"VIOLATION with seed {seed}: {violation}")
        finally:
            trial.end()
        if seed not in seeds:
            shutil.rmtree(folder / f"seed-{seed}")
    return arguments.rounds, seeds
