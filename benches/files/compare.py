"""Whether two trees are equal, judged by a walk that shares no code with what copied them."""

import os
import random
import stat
from itertools import zip_longest
from pathlib import Path

OWN = b".understudy"
BLOCK = 64 * 1024
SAMPLED_FILES = 300
SAMPLED_BLOCKS = 64


class Different(Exception):
    """The trees differ."""


def assert_equal(source: Path, copy: Path, seed: int, whole: bool, folder_times: bool = True) -> None:
    """Compares all names and attributes, and content: of all files, or of a seeded sample.

    The attributes of the top itself are the machine's own and not compared. Without `folder_times` the times
    of directories are not either: rsync sets them before it has deleted everything.
    """
    files = []
    for left, right in zip_longest(_walk(source, folder_times), _walk(copy, folder_times)):
        if left != right:
            raise Different(f"{source} and {copy} differ: {left} and {right}")
        path, mode, size = left[0], left[1], left[4]
        if stat.S_ISREG(mode):
            files.append((path, size))
    rng = random.Random(seed)
    chosen = files if whole or len(files) <= SAMPLED_FILES else rng.sample(files, SAMPLED_FILES)
    for path, size in chosen:
        _compare_content(os.path.join(os.fsencode(source), path), os.path.join(os.fsencode(copy), path),
                         size, rng, whole)


def _walk(top: Path, folder_times: bool):
    """Yields (path, mode, owner, group, size, mtime, link target) of all beneath, in order of the paths."""
    pending = [b""]
    top = os.fsencode(top)
    while pending:
        folder = pending.pop()
        entries = sorted(os.scandir(os.path.join(top, folder)), key=lambda entry: entry.name)
        below = []
        for entry in entries:
            if not folder and entry.name in (OWN, b"lost+found"):
                continue
            path = os.path.join(folder, entry.name)
            status = entry.stat(follow_symlinks=False)
            is_directory = stat.S_ISDIR(status.st_mode)
            if is_directory:
                below.append(path)
            target = os.readlink(entry.path) if stat.S_ISLNK(status.st_mode) else None
            yield (path, status.st_mode, status.st_uid, status.st_gid,
                   0 if is_directory else status.st_size,
                   status.st_mtime_ns if folder_times or not is_directory else None, target)
        pending += reversed(below)


def _compare_content(left: bytes, right: bytes, size: int, rng: random.Random, whole: bool) -> None:
    blocks = range(-(-size // BLOCK))
    if not whole and len(blocks) > SAMPLED_BLOCKS:
        blocks = {blocks[0], blocks[-1], *rng.sample(blocks, SAMPLED_BLOCKS)}
    with open(left, "rb") as one, open(right, "rb") as other:
        for block in blocks:
            at = block * BLOCK
            if os.pread(one.fileno(), BLOCK, at) != os.pread(other.fileno(), BLOCK, at):
                raise Different(f"the content of {left} and {right} differs at byte {at} or shortly after")
