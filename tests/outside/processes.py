"""What a running process has used, and a child that does not outlive us."""

import subprocess
import time
from pathlib import Path


def spawn(command: list, **options) -> subprocess.Popen:
    """Starts a daemon that the kernel kills when this program dies, however it dies."""
    mortal = ["setpriv", "--pdeathsig", "KILL", "--", *command]
    return subprocess.Popen(mortal, stdin=subprocess.DEVNULL, **options)


def cpu_seconds(pid: int) -> float:
    """Returns the processor time of all threads of `pid`, in the kernel's own nanoseconds.

    /proc/PID/stat counts in steps of 10 ms, more than an idle daemon uses.
    """
    return time.clock_gettime((~pid << 3) | 2)


def cpu_of_reaped_children(pid: int) -> float:
    """Returns the processor time of the children that `pid` has waited for."""
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) / 100


def peak_rss(pid: int) -> int:
    """Returns the most memory that `pid` has held since [`reset_peak_rss`], in bytes; 0 when it is gone."""
    return _memory(pid, "VmHWM:")


def rss(pid: int) -> int:
    """Returns the memory that `pid` holds now, in bytes; 0 when it is gone."""
    return _memory(pid, "VmRSS:")


def reset_peak_rss(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def descendants(pid: int) -> list[int]:
    """Returns the children of `pid`, and theirs."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def _stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat from the state on; the name before it may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def _memory(pid: int, name: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0
