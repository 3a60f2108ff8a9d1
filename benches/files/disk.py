"""A file system of its own: fresh, with a journal, and used by nobody else.

What was deleted before makes a used one slower for minutes (ext4 without a journal looks for inodes that
were not freed lately), and other writers take part in every sync.
"""

import os
import subprocess
from pathlib import Path


def mount_own(folder: Path, size: int) -> None:
    """Mounts a new ext4 of `size` bytes at `folder`, from an image beside it that takes what is used.

    The mount ends with this program's mount namespace, and the image, which has no name any more, with it.
    """
    image = folder.with_name(f"{folder.name}.image")
    with open(image, "xb") as out:
        out.truncate(size)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", image],
                       check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        device = subprocess.run(["findmnt", "-no", "SOURCE", folder], check=True, capture_output=True, text=True).stdout
        # What is cached twice would be written twice; where the disk cannot do without, it has to be.
        subprocess.run(["losetup", "--direct-io=on", device.strip()], stderr=subprocess.DEVNULL)
        os.rmdir(folder / "lost+found")
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        folder.rmdir()
        raise SystemExit(f"no file system of its own can be made here ({error}); --shared-disk does without") from error
    finally:
        image.unlink()


def give_back(place: Path) -> None:
    """Gives what was deleted back to the disk that the image is on, if `place` is a file system of its own.

    An image keeps every block that was ever written, and a case writes some ten times what it holds at a time.
    """
    if place.is_mount():
        subprocess.run(["fstrim", place], stderr=subprocess.DEVNULL)
