"""Trees and changes that depend on nothing but a seed.

Content is random, so that neither compression nor finding content again helps anybody.
"""

import math
import os
import random
from pathlib import Path

FILES_PER_DIRECTORY = 200
PAGE = 4096
MIB = 1 << 20

# Small files are of very different sizes, as in real trees: log-normal, between these bounds.
SPREAD = 1.0
SMALLEST, LARGEST = 64, 256 * 1024


def small_files(top: Path, count: int, mean: int, seed: int, spread: float = SPREAD) -> int:
    """Makes `count` files of `mean` bytes on average, two levels deep; returns the bytes of all."""
    rng = random.Random(seed)
    directories = math.ceil(count / FILES_PER_DIRECTORY)
    per_level = math.ceil(math.sqrt(directories))
    location = math.log(mean) - spread * spread / 2
    total = 0
    for number in range(directories):
        folder = top / f"d{number // per_level:03}" / f"d{number % per_level:03}"
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_DIRECTORY)
        for file in range(min(FILES_PER_DIRECTORY, count - number * FILES_PER_DIRECTORY)):
            size = round(min(max(rng.lognormvariate(location, spread), SMALLEST), LARGEST))
            out = os.open(f"f{file:03}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=handle)
            os.write(out, rng.randbytes(size))
            os.close(out)
            total += size
        os.close(handle)
    return total


def big_file(path: Path, size: int, seed: int) -> int:
    rng = random.Random(seed)
    with open(path, "xb", buffering=0) as out:
        for _ in range(size // MIB):
            out.write(rng.randbytes(MIB))
    return size


def files_beneath(top: Path) -> list[Path]:
    """Returns all files, in an order that is the same everywhere."""
    return sorted(Path(folder) / name for folder, _, names in os.walk(top) for name in names)


def rewrite(files: list[Path], seed: int) -> int:
    """Gives files new content of the same size, in place."""
    rng = random.Random(seed)
    total = 0
    for path in files:
        size = path.stat().st_size
        with open(path, "r+b", buffering=0) as out:
            out.write(rng.randbytes(size))
        total += size
    return total


def overwrite_pages(path: Path, share: float, seed: int) -> int:
    """Overwrites that share of the pages, here and there, in place."""
    rng = random.Random(seed)
    pages = path.stat().st_size // PAGE
    chosen = rng.sample(range(pages), round(pages * share))
    contents = rng.randbytes(PAGE * len(chosen))
    out = os.open(path, os.O_WRONLY)
    for at, page in enumerate(chosen):
        os.pwrite(out, contents[at * PAGE : (at + 1) * PAGE], page * PAGE)
    os.close(out)
    return len(contents)


def with_front(path: Path, other: Path, size: int, seed: int) -> int:
    """Makes `other`: what `path` holds, after `size` bytes more."""
    with open(other, "xb", buffering=0) as out, open(path, "rb") as source:
        out.write(random.Random(seed).randbytes(size))
        left = path.stat().st_size
        while left:
            left -= os.copy_file_range(source.fileno(), out.fileno(), min(left, 1 << 30))
    return size


def append(files: list[Path], size: int, seed: int) -> int:
    rng = random.Random(seed)
    for path in files:
        with open(path, "ab", buffering=0) as out:
            out.write(rng.randbytes(size))
    return size * len(files)
