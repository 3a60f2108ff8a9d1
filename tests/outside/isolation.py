"""A world of its own for a campaign: its network, its mounts, and processes that do not outlive it.

Postgres makes itself a daemon and would outlive whoever started it, however carefully that one cleans up. In a
process namespace all of it ends with the first process, and so does every mount, link and loop device.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_NEW_MOUNTS, _NEW_PROCESSES, _NEW_NETWORK = 0x00020000, 0x20000000, 0x40000000
_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# A short path: that of a Unix socket has 107 bytes. The folder itself stays, empty: another campaign may be in it.
WORK = Path("/run/understudy-campaign")

_libc = ctypes.CDLL(None, use_errno=True)


def enter(folder: Path) -> None:
    """Goes on in a world of its own, where `folder` is at [`WORK`]; what called stays outside and waits for the end.

    Needs root. Postgres' user may walk to `WORK`, wherever the repository is.
    """
    if _libc.unshare(_NEW_NETWORK | _NEW_MOUNTS | _NEW_PROCESSES):
        raise SystemExit(f"namespaces cannot be made here: {os.strerror(ctypes.get_errno())}")
    _leave_behind(os.waitpid)
    _mount("--make-rprivate", "/")
    _mount("-t", "proc", "proc", "/proc")
    WORK.mkdir(exist_ok=True)
    _mount("--bind", folder, WORK)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # The first process has to reap what others orphan: a dead postmaster that is nobody's child any more would
    # otherwise stay as a zombie, and Postgres takes it for alive.
    _leave_behind(_reap_until)
    # Whoever ends cleans up as one that comes to its end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def _leave_behind(wait) -> None:
    """Forks; the parent does nothing any more but to wait for the child, which dies with it."""
    child = os.fork()
    if child == 0:
        _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)
        return
    for one in _FORWARDED:
        signal.signal(one, lambda number, _: os.kill(child, number))
    _, status = wait(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _reap_until(child: int, _: int) -> tuple[int, int]:
    while True:
        pid, status = os.wait()
        if pid == child:
            return pid, status


def _mount(*arguments) -> None:
    subprocess.run(["mount", *arguments], check=True)
