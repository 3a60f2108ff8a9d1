"""Each system call by which a standby keeps its copy fails once, fails for a while, or is the last that it makes.

What is to be hit is counted first: the workload is always the same, and so are the calls that it leads to, but for
which thread makes them. strace counts each thread's calls by itself.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.outside.binary import Binary
from tests.outside.pair import STORE, Failed, Node, Pair

from . import judge

# Every call that touches a file: the tree's, the log's, the ledger's. Where a kernel or a libc takes another of the
# same kind, that one is counted.
CALLS = (
    "openat", "openat2", "pread64", "preadv", "read", "lseek", "statx", "newfstatat", "fstat", "getdents64",
    "readlinkat", "pwrite64", "pwritev", "write", "writev", "copy_file_range", "sendfile", "ioctl", "fallocate",
    "ftruncate", "fsync", "fdatasync", "syncfs", "sync_file_range", "rename", "renameat", "renameat2", "link",
    "linkat", "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "chmod", "fchmod", "fchmodat",
    "fchmodat2", "chown", "fchown", "fchownat", "utimensat", "setxattr", "lsetxattr", "fsetxattr", "removexattr",
    "lremovexattr", "fremovexattr", "getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr",
    "fstatfs", "flock",
)

# By these the threads of the daemon also wake each other up and talk to the primary. They fail only where they are
# used for a file of the store.
SHARED = {"read", "write", "writev", "ioctl"}

# What a disk says, and what an operating system that lacks something says.
ERRORS = ("ENOSPC", "EIO")
# What only reads is hit more thinly, and a kill there is a kill at what is changed next.
READING = {"pread64", "preadv", "read", "lseek", "statx", "newfstatat", "fstat", "getdents64", "readlinkat", "getxattr",
           "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr", "fstatfs", "flock"}
# Refused by permission or attribute of one entry; the others go on.
REFUSED = {"renameat": "EPERM", "renameat2": "EPERM", "unlinkat": "EPERM", "linkat": "EPERM", "mkdirat": "EPERM",
           "fchmodat": "EPERM", "fchownat": "EPERM", "openat": "EACCES", "openat2": "EACCES"}

KILL = "KILL"

# While it follows; from its start on, with what there is to recover; from its start on, with nothing but an empty tree.
RUNNING, START, SEED = "", " at start", " in seeding"
PHASES = (RUNNING, START, SEED)
# Then it is looked whether the standby has come to its end; and so long it may say that all is well while its calls
# fail.
WAIT_PATIENCE = 1
PATIENCE = 90
# So long calls may go on failing.
FAULT_PATIENCE = 12
# From then on a store that has failed is tried again ever more patiently; a daemon that was just started is not.
IMPATIENCE = 1.5


class Violation(Exception):
    """Something that is guaranteed does not hold."""


@dataclass(frozen=True)
class Hit:
    """One call of each thread that goes wrong."""

    call: str
    what: str
    number: int
    phase: str = RUNNING
    is_lasting: bool = False

    def __str__(self) -> str:
        when = f"{self.number}+" if self.is_lasting else f"{self.number}"
        return f"{self.call} {self.what} {when}{self.phase}"

    def options(self, node: Node) -> list[str]:
        how = "signal=KILL" if self.what == KILL else f"error={self.what}"
        when = f"{self.number}+" if self.is_lasting else f"{self.number}"
        only = []
        if self.call in SHARED and self.what != KILL:
            only = [part for path in _files_of(node) for part in ("-P", path)]
        return ["-e", f"trace={self.call}", "-e", f"inject={self.call}:{how}:when={when}", *only]


def _files_of(node: Node) -> list[str]:
    """Returns the files of a standby that are written to by what else wakes threads up."""
    staging = node.tree / ".understudy"
    staged = [staging / "put", *(staging / f"made-{number}" for number in range(8))]
    kept = [path for path in (node.folder / "state/files").rglob("*") if path.is_file()]
    return [str(path) for path in [*staged, *kept]]


class Workload:
    """The same few changes again and again, of every kind that a standby knows."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._round = 0

    def begin(self) -> None:
        top = self._top
        (top / "kept").write_bytes(b"so that it is not empty")
        (top / "patched").write_bytes(_noise(1, 400_000))
        (top / "in place").write_bytes(_noise(2, 17 << 20))
        (top / "grows").write_bytes(b"0")
        (top / "dressed").write_bytes(b"dressed")
        (top / "twin").write_bytes(b"0")
        os.link(top / "twin", top / "other twin")
        (top / "a").write_bytes(b"a")
        (top / "b").write_bytes(b"b")
        self._make(0)

    def apply(self) -> None:
        """Replaces what the round before has made, and changes what stays."""
        self._round += 1
        number, top = self._round, self._top
        _write_at(top / "patched", number * 7919 % 390_000, b"%d" % number)
        _write_at(top / "in place", number * 1_299_709 % (16 << 20), b"%d" % number)
        with open(top / "grows", "ab") as grows:
            grows.write(b"%d" % number)
        os.chmod(top / "dressed", 0o600 + number % 8)
        os.chown(top / "dressed", number % 1000, number % 999)
        os.setxattr(top / "dressed", f"user.{number % 3}", b"%d" % number)
        for name in os.listxattr(top / "dressed"):
            if name == f"user.{(number + 1) % 3}":
                os.removexattr(top / "dressed", name)
        os.utime(top / "dressed", ns=(number, number))
        (top / "twin").write_bytes(b"%d" % number)
        _exchange(top / "a", top / "b")
        self._make(number)
        os.rename(top / f"folder {number - 1}", top / f"moved {number}")
        if number > 1:
            shutil.rmtree(top / f"moved {number - 1}")
        for kind in ("small", "large", "long", "copied", "sparse", "link", "name"):
            os.unlink(top / f"{kind} {number - 1}")
        # What was a file becomes a directory, and the other way round.
        kind = top / "kind"
        if number % 2:
            kind.unlink(missing_ok=True)
            kind.mkdir()
            (kind / "within").write_bytes(b"%d" % number)
        else:
            shutil.rmtree(kind)
            kind.write_bytes(b"%d" % number)

    def _make(self, number: int) -> None:
        top = self._top
        folder = top / f"folder {number}"
        (folder / "inner").mkdir(parents=True)
        for each in range(3):
            (folder / "inner" / f"{each}").write_bytes(b"%d of %d" % (each, number))
        (top / f"small {number}").write_bytes(_noise(number, 3000))
        (top / f"large {number}").write_bytes(_noise(number, 1_200_000))
        (top / f"long {number}").write_bytes(_noise(-number, 5 << 20))
        shutil.copyfile(top / "patched", top / f"copied {number}")
        with open(top / f"sparse {number}", "wb") as sparse:
            sparse.write(b"%d" % number)
            sparse.truncate(1 << 20)
        os.symlink(f"to {number}", top / f"link {number}")
        os.link(top / f"small {number}", top / f"name {number}")


def _thinned(most: int) -> Iterator[int]:
    """Each of the first, then ever fewer."""
    number = 1
    while number <= most:
        yield number
        number += max(1, number // 8)


def _noise(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


def _write_at(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def _exchange(a: Path, b: Path) -> None:
    beside = a.with_name("between")
    os.rename(a, beside)
    os.rename(b, a)
    os.rename(beside, b)


class Tracer:
    """strace beside a daemon that runs."""

    def __init__(self, node: Node, options: list[str], told: Path) -> None:
        command = ["strace", "-f", "-p", str(node.daemon.pid), "-o", str(told), *options]
        self._strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        # From this line on every thread is watched.
        line = self._strace.stderr.readline()
        if "attached" not in line:
            self._strace.kill()
            raise Failed(f"strace does not attach: {line.strip()}")

    def end(self) -> None:
        if self._strace.returncode is None:
            self._strace.send_signal(signal.SIGINT)
            self._strace.communicate()


class Campaign:
    """A pair whose standby goes wrong in one place after the other."""

    def __init__(self, binary: Binary, folder: Path) -> None:
        self._pair = Pair(binary, folder)
        self._told = folder / "calls"
        self._work = Workload(self._pair.source)
        self.rounds = 0
        self.injected: Counter = Counter()
        # How often the daemon came to its end, and was started again.
        self.restarts = 0
        # Nobody else can trace the daemon; it tries again ever more patiently.
        self._is_traced = self._is_impatient = False
        self._tracer: Tracer | None = None

    def begin(self) -> None:
        self._work.begin()
        self._pair.start_primary(delete_guard="100%", scan="0 0 0 1 1 *")
        self._pair.join()
        self._pair.wait_equal(PATIENCE)

    def end(self) -> None:
        self._pair.stop()

    def start_anew(self) -> None:
        """Goes on after a violation, with a standby that is whole again."""
        self._pair.b.stop(signal.SIGKILL)
        self._start()
        self._agree()

    def plan(self) -> list[Hit]:
        """Counts, and returns all that there is to hit."""
        hits = []
        for phase in PHASES:
            for call, most in sorted(self._count(phase).items()):
                errors = ["EIO"] if call in READING else list(ERRORS)
                errors += [REFUSED[call]] if call in REFUSED else []
                is_thin = call in READING or phase == SEED
                numbers = list(_thinned(most) if is_thin else range(1, most + 1))
                hits += [Hit(call, error, number, phase) for error in errors for number in numbers]
                if call not in READING:
                    hits += [Hit(call, KILL, number, phase) for number in numbers]
                if phase == RUNNING:
                    hits += [Hit(call, error, 1, is_lasting=True) for error in errors]
        return hits

    def _count(self, phase: str) -> dict[str, int]:
        """Returns how many of each call one thread makes at most."""
        options = ["-y", "-e", f"trace={','.join('?' + call for call in CALLS)}"]
        if phase == RUNNING:
            tracer = Tracer(self._pair.b, options, self._told)
            self._work.apply()
            self._agree()
            tracer.end()
        else:
            self._start_with_work(phase, options)
            self._agree()
        return self._most()

    def _start_with_work(self, phase: str, options: list[str]) -> None:
        """Starts the standby when it has something to do."""
        node = self._pair.b
        node.stop(signal.SIGKILL)
        self._work.apply()
        if phase == SEED:
            shutil.rmtree(node.folder / "state/files")
            shutil.rmtree(node.tree)
            node.tree.mkdir()
        self._is_traced = True
        node.start_under(["strace", "-D", "-f", "-qqq", "-o", str(self._told), *options, "--"])

    def _most(self) -> Counter:
        threads: Counter = Counter()
        begun = re.compile(r"^(\d+) +(\w+)\((.*)")
        places = (str(self._pair.b.tree), str(self._pair.b.folder / "state"))
        for line in self._told.read_text(errors="replace").splitlines():
            match = begun.match(line)
            if not match:
                continue
            thread, call, rest = match.groups()
            if call not in SHARED or any(f"<{place}" in rest for place in places):
                threads[thread, call] += 1
        most: Counter = Counter()
        for (_, call), count in threads.items():
            most[call] = max(most[call], count)
        return most

    def _start(self) -> None:
        self._is_traced = self._is_impatient = False
        self._pair.b.start("serve")

    def hit(self, hit: Hit) -> None:
        """Lets one thing go wrong, and compares when it is over."""
        self.rounds += 1
        try:
            if hit.phase == RUNNING:
                self._hit_running(hit)
            else:
                self._start_with_work(hit.phase, hit.options(self._pair.b))
                self._agree()
            self._count_injected(hit)
        except Failed as failed:
            raise Violation(f"{hit}: {failed}") from failed
        except Violation as violation:
            raise Violation(f"{hit}: {violation}") from violation

    def _hit_running(self, hit: Hit) -> None:
        node = self._pair.b
        if self._is_traced or self._is_impatient:
            node.stop()
            self._start()
            self._agree()
        self._tracer = Tracer(node, hit.options(node), self._told)
        try:
            self._work.apply()
            if hit.is_lasting:
                self._assert_honest()
                self._tracer.end()
            self._is_impatient = self._agree() > IMPATIENCE
        finally:
            self._tracer.end()
            self._tracer = None

    def _agree(self) -> float:
        """Waits until both are equal; returns how long. A daemon that has ended is started again, and no other."""
        begun = time.monotonic()
        while True:
            try:
                self._wait()
                break
            except Failed as failed:
                ended = self._pair.a.ended()
                if ended or time.monotonic() > begun + PATIENCE:
                    raise Violation(ended or f"not within {PATIENCE} s: {failed}") from failed
            if self._pair.b.ended():
                self.restarts += 1
                self._pair.b.stop()
                self._start()
            elif time.monotonic() > begun + FAULT_PATIENCE:
                self._let_go()
        self._assert_equal("`understudy wait` says that both agree, and they do not:")
        return time.monotonic() - begun

    def _let_go(self) -> None:
        """Lets no further call fail: a thread that begins anew counts its calls anew, and fails as the last one did."""
        if self._tracer:
            self._tracer.end()
        if not self._is_traced:
            return
        status = Path(f"/proc/{self._pair.b.daemon.pid}/status").read_text()
        [tracer] = re.findall(r"^TracerPid:\s*(\d+)$", status, re.MULTILINE)
        if int(tracer):
            # At any other signal it would wait for its child.
            os.kill(int(tracer), signal.SIGKILL)
        self._is_traced = False

    def _wait(self) -> None:
        self._pair.a.run("wait", "--timeout", str(WAIT_PATIENCE), "--store", STORE)

    def _assert_honest(self) -> None:
        """A standby that says that it has everything has it, whatever fails."""
        try:
            self._wait()
        except Failed:
            return
        self._assert_equal("a standby whose calls fail says that it has applied everything:")

    def _assert_equal(self, otherwise: str) -> None:
        found = judge.differences(os.fsencode(self._pair.source), os.fsencode(self._pair.copy), set())
        if found:
            raise Violation("\n".join([otherwise, *found]))

    def _count_injected(self, hit: Hit) -> None:
        text = self._told.read_text(errors="replace")
        count = text.count("(INJECTED)")
        if hit.what == KILL:
            count = int("killed by SIGKILL" in text)
        self.injected[hit.call, hit.what] += count
