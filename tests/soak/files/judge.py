"""Compares two trees, sharing no code with what replicated them."""

import hashlib
import os
import stat
from dataclasses import dataclass

DIFFERENCES_TOLD = 10
VALUE_TOLD = 60

# A copy may keep more of a sparse file than its source, by what it takes to work in larger blocks.
HOLE_GRAIN = 64 * 1024

_IGNORED = {b".understudy", b"lost+found"}


@dataclass
class Entry:
    """What a path must have in both trees."""

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime: int
    target: bytes | None
    size: int | None
    digest: str | None
    xattrs: dict[str, bytes]
    acls: dict[str, bytes]


def differences(source: bytes, copy: bytes, without: set[str]) -> list[str]:
    """Returns the first differences; none for equal trees. `without`: what is not compared."""
    ours, ours_links, ours_data = _look(source)
    theirs, theirs_links, theirs_data = _look(copy)
    found = [f"only on the primary: {path!r}" for path in sorted(ours.keys() - theirs.keys())]
    found += [f"only on the standby: {path!r}" for path in sorted(theirs.keys() - ours.keys())]
    both = sorted(ours.keys() & theirs.keys())
    for path in both:
        for name, value in vars(ours[path]).items():
            if name not in without and value != getattr(theirs[path], name):
                found.append(f"{name} of {path!r}: {_short(value)} on the primary, "
                             f"{_short(getattr(theirs[path], name))} on the standby")
    if "hardlinks" not in without:
        found += [f"names of one file on one side only: {sorted(group)!r}" for group in ours_links ^ theirs_links]
    if "holes" not in without:
        for path in both:
            allowed, kept = _rounded(ours_data.get(path, [])), sum(end - at for at, end in theirs_data.get(path, []))
            # The end of a file may lie in a hole, and is not worth one.
            if kept >= allowed + HOLE_GRAIN:
                found.append(f"holes of {path!r}: {kept} bytes are kept, and {allowed} would do")
    if len(found) > DIFFERENCES_TOLD:
        found = found[:DIFFERENCES_TOLD] + [f"and {len(found) - DIFFERENCES_TOLD} more"]
    return found


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_TOLD else text[:VALUE_TOLD] + "…"


def _look(top: bytes) -> tuple[dict[bytes, Entry], set[frozenset[bytes]], dict[bytes, list[tuple[int, int]]]]:
    """Returns all entries, the groups of names of one file, and where files have data.

    Pipes, sockets and devices are not replicated. The attributes of the top are the machine's own.
    """
    entries: dict[bytes, Entry] = {}
    names: dict[int, list[bytes]] = {}
    data: dict[bytes, list[tuple[int, int]]] = {}
    pending = [b""]
    while pending:
        folder = pending.pop()
        for found in os.scandir(os.path.join(top, folder)):
            if not folder and found.name in _IGNORED:
                continue
            path = os.path.join(folder, found.name)
            entry, inode = _entry(found.path)
            if entry is None:
                continue
            entries[path] = entry
            if entry.kind == "directory":
                pending.append(path)
            if entry.kind == "file":
                names.setdefault(inode, []).append(path)
                data[path] = _data_ranges(found.path, entry.size)
    return entries, {frozenset(group) for group in names.values() if len(group) > 1}, data


def _entry(path: bytes) -> tuple[Entry | None, int]:
    status = os.lstat(path)
    target = size = digest = None
    if stat.S_ISDIR(status.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(status.st_mode):
        kind, target = "link", os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        kind, size = "file", status.st_size
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, hashlib.blake2b).hexdigest()[:32]
    else:
        return None, 0
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False)
              for name in os.listxattr(path, follow_symlinks=False)}
    acls = {name: xattrs.pop(name) for name in list(xattrs) if name.startswith("system.posix_acl_")}
    return Entry(kind, stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid), status.st_mtime_ns,
                 target, size, digest, xattrs, acls), status.st_ino


def _data_ranges(path: bytes, size: int) -> list[tuple[int, int]]:
    ranges, at = [], 0
    file = os.open(path, os.O_RDONLY)
    try:
        while at < size:
            begin = os.lseek(file, at, os.SEEK_DATA)
            at = os.lseek(file, begin, os.SEEK_HOLE)
            ranges.append((begin, at))
    except OSError:  # ENXIO: there is no data from here on
        pass
    finally:
        os.close(file)
    return ranges


def _rounded(ranges: list[tuple[int, int]]) -> int:
    """Returns how much the ranges take in blocks of the grain."""
    total = reached = 0
    for begin, end in ranges:
        begin = max(begin // HOLE_GRAIN * HOLE_GRAIN, reached)
        reached = -(-end // HOLE_GRAIN) * HOLE_GRAIN
        total += max(0, reached - begin)
    return total
