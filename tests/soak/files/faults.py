"""A daemon whose system calls fail now and then, by strace."""

import random
import shutil
from dataclasses import dataclass

# What fails together, as the same trouble would make it fail. No `write`: that also wakes threads of the daemon
# up, which never fails, and strace cannot tell one from the other.
_CALLS = (
    ("pwrite64,pwritev,pwritev2,copy_file_range", "ENOSPC EIO EDQUOT"),
    ("fsync,fdatasync,syncfs", "EIO ENOSPC EDQUOT"),
    ("renameat,renameat2,rename", "ENOSPC EIO EDQUOT"),
    ("openat,openat2", "EIO ENOSPC EMFILE"),
    ("linkat,unlinkat,mkdirat,symlinkat", "ENOSPC EIO EDQUOT"),
    ("ftruncate,fallocate", "ENOSPC EIO EDQUOT"),
    ("fchmod,fchmodat,fchownat,utimensat,setxattr,removexattr", "EIO ENOSPC EDQUOT"),
    ("statx,getdents64,readlinkat,listxattr,getxattr", "EIO ENOMEM"),
    ("pread64,lseek", "EIO"),
)


@dataclass
class Fault:
    """Which calls fail, how, and which of each thread's."""

    calls: str
    error: str
    first: int
    step: int

    def __str__(self) -> str:
        return f"{self.calls.partition(',')[0]}… {self.error} {self.first}+{self.step}"

    def wrapper(self) -> list[str]:
        """Returns the command that becomes the daemon, with strace beside it and not above."""
        return ["strace", "-D", "-f", "--seccomp-bpf", "-qqq", "-o", "/dev/null",
                "-e", f"trace={self.calls}",
                "-e", f"inject={self.calls}:error={self.error}:when={self.first}+{self.step}", "--"]


def is_possible() -> bool:
    return shutil.which("strace") is not None


def draw(rng: random.Random) -> Fault:
    calls, errors = rng.choice(_CALLS)
    # A daemon that is hit at once only refuses to start.
    return Fault(calls, rng.choice(errors.split()), rng.randrange(5, 80), rng.choice([3, 10, 40, 200]))
