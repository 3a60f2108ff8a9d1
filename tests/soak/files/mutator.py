"""A random history of a tree, the same for the same seed.

The operations are those that have broken other mirrors: chains and swaps of renames, a directory moved
beneath its own former child, names of any bytes, times set back, files replaced by directories, …
"""

import ctypes
import errno
import os
import random
import shutil
import stat
import struct
import threading
import time

from .tagged import PREFIX as TAGGED, Ledger

CAPABILITIES = ("hardlinks", "xattrs", "acls", "holes")

ENTRIES_MAX = 1200
DEPTH_MAX = 8
PATH_BYTES_MAX = 2500
MIB = 1 << 20
BLOCK = 4096

LOOSE, FOLDER, LINK = b"l", b"d", b"s"

# What happens to a random history without anything being wrong: what it wants to make is there already,
# or the two it picked are one within the other.
_HARMLESS = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR,
             errno.EISDIR, errno.EMLINK}

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_PUNCH_HOLE_KEEP_SIZE = 0x3


class Mutator:
    """Changes the tree at `top` for a number of operations, with pauses."""

    def __init__(self, top: bytes, rng: random.Random, ledger: Ledger, operations: int, without: set[str]) -> None:
        self._top, self._rng, self._ledger, self._left = top, rng, ledger, operations
        self._operations, self._weights = zip(*(
            (operation, weight) for operation, weight, needs in _OPERATIONS if needs not in without))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None
        self.changes = 0

    def start(self) -> None:
        self._thread.start()

    def has_ended(self, within: float | None = None) -> bool:
        """Waits so long for the last operation; raises what went wrong."""
        self._thread.join(within)
        if self._error:
            raise self._error
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for _ in range(self._left):
                self._one()
        except Exception as error:  # told by whoever waits
            self._error = error

    def _one(self) -> None:
        [operation] = self._rng.choices(self._operations, self._weights)
        if self._count() > ENTRIES_MAX:
            operation = Mutator.remove_tree
        try:
            operation(self)
        except OSError as error:
            if error.errno not in _HARMLESS:
                raise
        self.changes += 1
        if self._rng.random() < 0.15:
            time.sleep(self._rng.random() * 0.1)

    # Choosing. Directories are listed in order, so that the same seed chooses the same.

    def _count(self) -> int:
        return sum(len(folders) + len(names) for _, folders, names in os.walk(self._top))

    def _folder(self) -> bytes:
        folder = self._top
        for _ in range(self._rng.randrange(DEPTH_MAX)):
            below = self._listed(folder, stat.S_ISDIR)
            if not below:
                break
            folder = self._rng.choice(below)
        return folder

    def _listed(self, folder: bytes, is_kind) -> list[bytes]:
        paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        return [path for path in paths if is_kind(os.lstat(path).st_mode) and os.path.basename(path) != b"kept"]

    def _any(self, is_kind, prefix: bytes = b"") -> bytes:
        """Returns a random entry of a kind."""
        for _ in range(10):
            found = [path for path in self._listed(self._folder(), is_kind)
                     if os.path.basename(path).startswith(prefix)]
            if found:
                return self._rng.choice(found)
        raise FileNotFoundError(errno.ENOENT, "there is none")

    def _loose(self) -> bytes:
        return self._any(stat.S_ISREG, LOOSE)

    def _tagged(self) -> bytes:
        return self._any(stat.S_ISREG, TAGGED)

    def _below_top(self) -> bytes:
        return self._any(stat.S_ISDIR, FOLDER)

    def _name(self, prefix: bytes) -> bytes:
        """Returns a name that is not taken, of any bytes that a name may have."""
        rng = self._rng
        number = b"%x" % rng.getrandbits(32)
        return prefix + rng.choice([
            number,
            b"-" + number,
            b" \t" + number + b" ",
            b"line\nline" + number,
            b"\xff\xfe" + number + b"\x80",
            "é".encode() + number,
            "e\u0301".encode() + number,
            b"*?[" + number + b"]\\'\"$`",
            number.ljust(254, b"n"),
        ])

    def _new(self, prefix: bytes, folder: bytes | None = None) -> bytes:
        path = os.path.join(folder or self._folder(), self._name(prefix))
        if len(path) - len(self._top) > PATH_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, "deep enough")
        return path

    def _move(self, old: bytes, new: bytes) -> None:
        """Renames, unless paths would become too long for anybody to look at."""
        if stat.S_ISDIR(os.lstat(old).st_mode):
            longest = max(len(os.path.join(folder, name)) - len(old)
                          for folder, folders, names in os.walk(old) for name in [b"", *folders, *names])
            if len(new) - len(self._top) + longest > PATH_BYTES_MAX:
                raise OSError(errno.ENAMETOOLONG, "deep enough")
        os.rename(old, new)

    def _bytes(self, at_most: int) -> bytes:
        return self._rng.randbytes(self._rng.randrange(at_most + 1))

    def _write(self, path: bytes, flags: int, content: bytes, at: int | None = None) -> None:
        out = os.open(path, flags, 0o600 | self._rng.choice([0, 0o44, 0o77]))
        try:
            if at is None:
                os.write(out, content)
            else:
                os.pwrite(out, content, at)
        finally:
            os.close(out)

    # Tagged files: each operation leaves them empty or whole at every moment.

    def make_tagged(self) -> None:
        self._write(self._new(TAGGED), os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._ledger.content(self._rng))

    def rewrite_tagged(self) -> None:
        # Emptied first: a reader may find it so, and that is a version too.
        self._write(self._tagged(), os.O_WRONLY | os.O_TRUNC, self._ledger.content(self._rng))

    def replace_tagged(self) -> None:
        path = self._tagged()
        beside = self._new(TAGGED, os.path.dirname(path))
        self._write(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._ledger.content(self._rng))
        os.rename(beside, path)

    # Loose files: anything goes.

    def make_loose(self) -> None:
        self._write(self._new(LOOSE), os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._bytes(9000))

    def make_big(self) -> None:
        path = self._new(LOOSE)
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        for _ in range(self._rng.randrange(1, 6)):
            os.write(out, self._rng.randbytes(MIB + self._rng.randrange(5000)))
        os.close(out)

    def append(self) -> None:
        self._write(self._loose(), os.O_WRONLY | os.O_APPEND, self._bytes(5000))

    def write_within(self) -> None:
        path = self._loose()
        self._write(path, os.O_WRONLY, self._bytes(5000), self._rng.randrange(os.path.getsize(path) + 1))

    def write_and_set_time_back(self) -> None:
        """Same size, same time, other content: only the change time tells."""
        path = self._loose()
        status = os.stat(path)
        self._write(path, os.O_WRONLY, self._rng.randbytes(min(status.st_size, 300)), 0)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def truncate(self) -> None:
        path = self._loose()
        os.truncate(path, self._rng.randrange(os.path.getsize(path) + 1))

    def rotate(self) -> None:
        path = self._loose()
        old = path[: len(path) - len(os.path.basename(path))] + os.path.basename(path)[:250] + b".1"
        os.rename(path, old)
        self._write(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, b"after rotation\n")
        self._write(path, os.O_WRONLY | os.O_APPEND, self._bytes(200))

    def copy_and_truncate(self) -> None:
        path = self._loose()
        shutil.copyfile(path, self._new(LOOSE, os.path.dirname(path)))
        os.truncate(path, 0)
        self._write(path, os.O_WRONLY | os.O_APPEND, self._bytes(200))

    def replace_loose(self) -> None:
        path = self._loose()
        beside = self._new(LOOSE, os.path.dirname(path))
        self._write(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._bytes(20_000))
        os.rename(beside, path)

    def map_and_write(self) -> None:
        """Writes through a descriptor that stays open while the name goes elsewhere."""
        path = self._loose()
        out = os.open(path, os.O_WRONLY)
        try:
            os.rename(path, self._new(LOOSE))
            os.write(out, self._bytes(3000))
        finally:
            os.close(out)

    def remove_file(self) -> None:
        os.unlink(self._any(lambda mode: not stat.S_ISDIR(mode)))

    # Directories.

    def make_folder(self) -> None:
        folder = self._new(FOLDER)
        os.mkdir(folder)
        for _ in range(self._rng.randrange(5)):
            self._write(os.path.join(folder, self._name(TAGGED)), os.O_WRONLY | os.O_CREAT, self._ledger.content(self._rng))

    def make_deep_folder(self) -> None:
        os.makedirs(os.path.join(self._new(FOLDER), *(self._name(FOLDER)[:40] for _ in range(3))))

    def remove_tree(self) -> None:
        shutil.rmtree(self._below_top())

    def file_to_folder_and_back(self) -> None:
        path = self._loose()
        os.unlink(path)
        os.mkdir(path)
        self._write(os.path.join(path, self._name(LOOSE)), os.O_WRONLY | os.O_CREAT, self._bytes(100))
        if self._rng.random() < 0.5:
            shutil.rmtree(path)
            self._write(path, os.O_WRONLY | os.O_CREAT, self._bytes(100))

    def link_to_folder(self) -> None:
        """A directory is replaced by a link to another one: what is written next must not go through it."""
        folder = self._below_top()
        away = self._new(FOLDER)
        self._move(folder, away)
        os.symlink(os.path.relpath(away, os.path.dirname(folder)), folder)

    # Renames.

    def rename_file(self) -> None:
        path = self._any(stat.S_ISREG)
        self._move(path, self._new(os.path.basename(path)[:1]))

    def rename_folder(self) -> None:
        self._move(self._below_top(), self._new(FOLDER))

    def rename_over_file(self) -> None:
        path = self._any(stat.S_ISREG)
        self._move(path, self._any(stat.S_ISREG, os.path.basename(path)[:1]))

    def rename_over_folder(self) -> None:
        empty = self._new(FOLDER)
        os.mkdir(empty)
        self._move(self._below_top(), empty)

    def chain(self) -> None:
        """A to B, then C to A."""
        kind, prefix = self._rng.choice([(stat.S_ISREG, TAGGED), (stat.S_ISREG, LOOSE), (stat.S_ISDIR, FOLDER)])
        first, third = self._any(kind, prefix), self._any(kind, prefix)
        self._move(first, self._new(prefix, os.path.dirname(first)))
        self._move(third, first)

    def swap(self) -> None:
        kind, prefix = self._rng.choice([(stat.S_ISREG, TAGGED), (stat.S_ISREG, LOOSE), (stat.S_ISDIR, FOLDER)])
        first, second = self._any(kind, prefix), self._any(kind, prefix)
        if max(len(first), len(second)) - len(self._top) > PATH_BYTES_MAX // 4:
            return
        if _libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def beneath_former_child(self) -> None:
        """A directory moves beneath the one that was its child."""
        child = self._below_top()
        parent = os.path.dirname(child)
        if parent == self._top:
            return
        freed = self._new(FOLDER, self._top)
        self._move(child, freed)
        self._move(parent, os.path.join(freed, self._name(FOLDER)))

    # Links and attributes.

    def make_link(self) -> None:
        link = self._new(LINK)
        inside = os.path.relpath(self._any(stat.S_ISREG), os.path.dirname(link))
        os.symlink(self._rng.choice([b"nowhere", b"../..", b"/etc/passwd", b"\xff\n", inside]), link)

    def replace_link(self) -> None:
        beside = self._new(LINK)
        os.symlink(b"elsewhere", beside)
        os.rename(beside, self._any(stat.S_ISLNK))

    def make_pipe(self) -> None:
        """It is not replicated, and nobody may wait at its end."""
        os.mkfifo(self._new(b"p"))

    def change_mode(self) -> None:
        path = self._any(lambda mode: not stat.S_ISLNK(mode))
        os.chmod(path, self._rng.choice([0o600, 0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o400, 0o700]))

    def change_owner(self) -> None:
        path = self._any(lambda mode: True)
        os.chown(path, self._rng.randrange(3000), self._rng.randrange(3000), follow_symlinks=False)

    def set_time_back(self) -> None:
        moment = self._rng.randrange(10**18, 17 * 10**17)
        os.utime(self._any(lambda mode: True), ns=(moment, moment), follow_symlinks=False)

    def hard_link(self) -> None:
        path = self._any(stat.S_ISREG)
        os.link(path, self._new(os.path.basename(path)[:1]))

    def break_hard_link(self) -> None:
        for _ in range(10):
            path = self._any(stat.S_ISREG)
            if os.lstat(path).st_nlink > 1:
                beside = self._new(os.path.basename(path)[:1])
                shutil.copyfile(path, beside)
                os.rename(beside, path)
                return

    def set_xattr(self) -> None:
        path = self._any(_takes_user_xattrs)
        os.setxattr(path, b"user.%d" % self._rng.randrange(4), self._bytes(200))

    def set_acl(self) -> None:
        """Lets a further user in, in the kernel's own form (linux/posix_acl_xattr.h)."""
        tags = [(0x01, 6, -1), (0x02, self._rng.randrange(8), self._rng.randrange(3000)), (0x04, 4, -1), (0x10, 7, -1),
                (0x20, 4, -1)]
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *tag) for tag in tags)
        os.setxattr(self._any(lambda mode: not stat.S_ISLNK(mode)), b"system.posix_acl_access", acl)

    def remove_xattr(self) -> None:
        path = self._any(_takes_user_xattrs)
        for name in os.listxattr(path):
            if name.startswith("user."):
                os.removexattr(path, name)

    def make_sparse(self) -> None:
        path = self._new(LOOSE)
        self._write(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._bytes(3000), self._rng.randrange(8 * MIB))
        if self._rng.random() < 0.5:
            os.truncate(path, self._rng.randrange(16 * MIB))

    def punch_hole(self) -> None:
        """Only where no block is all zeroes: such a block holds the same as a hole, and becoming one is no change
        of the file that would have to be copied."""
        path = self._loose()
        size = os.path.getsize(path)
        begin = self._rng.randrange(size + 1)
        length = self._rng.randrange(1, MIB)
        out = os.open(path, os.O_RDWR)
        try:
            first, end = begin // BLOCK * BLOCK, min(begin + length, size)
            if all(any(os.pread(out, BLOCK, at)) for at in range(first, end, BLOCK)):
                _libc.fallocate(out, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(begin), ctypes.c_long(length))
        finally:
            os.close(out)


def _takes_user_xattrs(mode: int) -> bool:
    """The kernel refuses `user.` attributes of links, pipes and devices with EPERM (xattr(7))."""
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


# (operation, how often, the capability that it needs)
_OPERATIONS = (
    (Mutator.make_tagged, 12, None),
    (Mutator.rewrite_tagged, 8, None),
    (Mutator.replace_tagged, 8, None),
    (Mutator.make_loose, 8, None),
    (Mutator.make_big, 1, None),
    (Mutator.append, 8, None),
    (Mutator.write_within, 6, None),
    (Mutator.write_and_set_time_back, 3, None),
    (Mutator.truncate, 3, None),
    (Mutator.rotate, 2, None),
    (Mutator.copy_and_truncate, 2, None),
    (Mutator.replace_loose, 4, None),
    (Mutator.map_and_write, 2, None),
    (Mutator.remove_file, 6, None),
    (Mutator.make_folder, 7, None),
    (Mutator.make_deep_folder, 2, None),
    (Mutator.remove_tree, 2, None),
    (Mutator.file_to_folder_and_back, 2, None),
    (Mutator.link_to_folder, 2, None),
    (Mutator.rename_file, 4, None),
    (Mutator.rename_folder, 4, None),
    (Mutator.rename_over_file, 3, None),
    (Mutator.rename_over_folder, 2, None),
    (Mutator.chain, 3, None),
    (Mutator.swap, 3, None),
    (Mutator.beneath_former_child, 2, None),
    (Mutator.make_link, 3, None),
    (Mutator.replace_link, 2, None),
    (Mutator.make_pipe, 1, None),
    (Mutator.change_mode, 4, None),
    (Mutator.change_owner, 3, None),
    (Mutator.set_time_back, 4, None),
    (Mutator.hard_link, 4, "hardlinks"),
    (Mutator.break_hard_link, 2, "hardlinks"),
    (Mutator.set_xattr, 4, "xattrs"),
    (Mutator.remove_xattr, 2, "xattrs"),
    (Mutator.set_acl, 2, "acls"),
    (Mutator.make_sparse, 3, "holes"),
    (Mutator.punch_hole, 3, "holes"),
)
