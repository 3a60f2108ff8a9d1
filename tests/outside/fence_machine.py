"""The fence command of a campaign: switches a machine off as if its power were cut.

Called as `python3 -S -E fence_machine.py FOLDER` with `UNDERSTUDY_FENCE_NODE` in the environment. In `FOLDER`, a
file of that name tells the machine's network namespace, the process that keeps it, and the other end of its cable.
Succeeds only when no process of the machine is left, its cable is out and its addresses are gone. Fails once where
`FOLDER/fails` exists.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 10


def main() -> int:
    folder, name = Path(sys.argv[1]), os.environ["UNDERSTUDY_FENCE_NODE"]
    if (folder / "fails").exists():
        (folder / "fails").unlink()
        print("the outlet does not answer", file=sys.stderr)
        return 1
    holder, switch, port, address = (folder / name).read_text().split()
    # The cable first: what is half dead must not be heard any more.
    enter = lambda pid, *command: subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "--", *command])
    if enter(switch, "ip", "link", "set", port, "down").returncode:
        return 1
    mine = os.readlink(f"/proc/{holder}/ns/net")
    deadline = time.monotonic() + PATIENCE
    while left := processes(mine, int(holder)):
        if time.monotonic() > deadline:
            print(f"{len(left)} processes of {name} do not end", file=sys.stderr)
            return 1
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.002)
    # The kernel of a machine without power does not answer for its addresses.
    enter(holder, "ip", "-4", "address", "del", address, "dev", "eth0")
    # The machine's own journal: what it ran, it runs no more.
    with open(folder.parent / name / "journal", "a") as journal:
        journal.write(f"{time.time():.6f} off\n")
    return 0


def processes(namespace: str, holder: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != holder:
            try:
                if os.readlink(entry / "ns/net") == namespace:
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                pass
    return found


if __name__ == "__main__":
    sys.exit(main())
