"""What the appliance of a campaign runs on its primary: start, stop and status of its services, and what they do.

`web` answers HTTP with the node and its epoch. `worker` is the application: it changes files and settings, and writes
down what it had made durable. `address` takes the address that clients use, for builds that do not move it themselves.
Called by the daemon as `python3 -S -E appliance_service.py start web`, with the node's variables in the environment;
everything is beneath the node's root. `journal` there has what was started and stopped, and when.
"""

# Only what every verb needs: a client waits while they start.
import os
import signal
import sys
import time
from pathlib import Path

WEB_PORT = 8080
STOP_PATIENCE = 5
FILES_MAX = 120
# How long the worker rests between two changes, and how often it changes the settings.
REST_SECONDS, SETTINGS_SECONDS = 0.04, 0.3
ANNOUNCEMENTS = 3

ROOT = Path(os.environ["UNDERSTUDY_ROOT"])
# What is the campaign's own lies beside the root: neither a store nor the daemon's.
FOLDER = ROOT.parent
TREE, SETTINGS = ROOT / "tree", ROOT / "etc/app/app.conf"
RUN = ROOT / "run"
MARK = b"appliance_service"


def main() -> int:
    verb, name, *more = sys.argv[1:]
    RUN.mkdir(exist_ok=True)
    if name == "address":
        return address(verb, *more)
    if verb == "status":
        return 0 if is_up(name) else 3
    if verb == "stop":
        return stop(name)
    return start(name)


def pid_of(name: str) -> int | None:
    """Returns the process of the service, if it runs."""
    try:
        pid = int((RUN / f"{name}.pid").read_text())
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if MARK in line and line.split(b"\0")[-2].decode() == name else None


def is_up(name: str) -> bool:
    if pid_of(name) is None:
        return False
    if name == "web":
        import socket

        try:
            socket.create_connection(("127.0.0.1", WEB_PORT), 1).close()
        except OSError:
            return False
    return True


def start(name: str) -> int:
    if pid_of(name) is not None:
        return 0
    hindered = RUN / f"fails-{name}"
    if hindered.exists():
        hindered.unlink()
        journal("failed", name)
        print(f"{name} cannot start: it was told to fail once", file=sys.stderr)
        return 1
    journal("start", name)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        out = os.open(RUN / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for one in (1, 2):
            os.dup2(out, one)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        {"web": web, "worker": worker}[name]()
        os._exit(1)
    (RUN / f"{name}.pid").write_text(str(pid))
    return 0


def stop(name: str) -> int:
    pid = pid_of(name)
    if pid is None:
        return 0
    journal("stopping", name)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_PATIENCE
    while pid_of(name) is not None:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    journal("stop", name)
    return 0


def journal(*words: str) -> None:
    append(FOLDER / "journal", " ".join([f"{time.time():.6f}", *words]))


def append(path: Path, line: str) -> None:
    """Appends a line in one piece: whoever is killed leaves a whole one or none."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, f"{line}\n".encode())
    os.close(file)


# The service that clients see.


def web() -> None:
    import json
    import socket

    server = socket.create_server(("0.0.0.0", WEB_PORT), backlog=64)
    while True:
        client, _ = server.accept()
        try:
            client.settimeout(0.2)
            if client.recv(1024):
                record = json.loads((FOLDER / "state/role.json").read_text())
                body = json.dumps({"node": os.environ["UNDERSTUDY_NODE"], "record": record}).encode()
                client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        except (OSError, ValueError):
            pass
        finally:
            client.close()


# The application.


def worker() -> None:
    """Changes files and settings until it is killed, and writes down what it begins and what is durable."""
    import random

    node, begun = os.environ["UNDERSTUDY_NODE"], time.time_ns()
    acks = FOLDER / "acks"
    number, settings_due = 0, 0.0
    there = sorted(str(path.relative_to(TREE)) for path in TREE.glob("d*/*") if not path.name.endswith(".tmp"))
    while True:
        if (FOLDER.parent / "paused").exists():
            (RUN / "worker.idle").write_text(str(os.getpid()))
            time.sleep(0.01)
            continue
        (RUN / "worker.idle").unlink(missing_ok=True)
        number += 1
        if time.monotonic() >= settings_due:
            settings_due = time.monotonic() + SETTINGS_SECONDS
            change(acks, f"{begun}.{number}", SETTINGS, "settings", f"generation = {node}.{begun}.{number}\n".encode(),
                   ".new")
            continue
        shares = (0, 2, 8) if len(there) > FILES_MAX else (8, 2, 1) if len(there) > 4 else (1, 0, 0)
        kind = random.choices(["new", "change", "delete"], shares)[0]
        if kind == "new":
            name = f"d{random.randrange(8)}/{begun}-{number}"
            there.append(name)
        else:
            name = random.choice(there)
        content = None
        if kind == "delete":
            there.remove(name)
        else:
            content = f"{node} {begun} {number} ".encode() + os.urandom(random.choice([10, 300, 5000, 70000]))
        change(acks, f"{begun}.{number}", TREE / name, name, content, ".tmp")
        time.sleep(REST_SECONDS)


def change(acks: Path, key: str, path: Path, name: str, content: bytes | None, suffix: str) -> None:
    """Makes one change durable; what it is to be is written down before, and that it is, after."""
    import hashlib
    import json

    told = hashlib.sha256(content).hexdigest() if content is not None else None
    append(acks, json.dumps({"key": key, "path": name, "content": told, "begun": time.time()}))
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}{suffix}")
        with open(beside, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        beside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    append(acks, json.dumps({"key": key, "done": time.time()}))


# The address, where nobody else moves it.


def address(verb: str, ip: str) -> int:
    import subprocess

    has = subprocess.run(["ip", "-brief", "address", "show", "eth0"], capture_output=True, text=True).stdout
    is_here = f" {ip} " in f"{has} "
    if verb == "status":
        return 0 if is_here else 3
    if verb == "stop" and is_here:
        journal("stopping", "address")
        subprocess.run(["ip", "address", "del", ip, "dev", "eth0"], check=True)
        journal("stop", "address")
    if verb == "start" and not is_here:
        journal("start", "address")
        subprocess.run(["ip", "address", "add", ip, "dev", "eth0"], check=True)
        announce(ip.partition("/")[0])
    return 0


def announce(ip: str) -> None:
    import socket
    import struct

    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as out:
        out.bind(("eth0", 0x0806))
        mac, raw = out.getsockname()[4], socket.inet_aton(ip)
        frame = struct.pack("!6s6sHHHBBH6s4s6s4s", b"\xff" * 6, mac, 0x0806, 1, 0x0800, 6, 4, 1, mac, raw, bytes(6), raw)
        for _ in range(ANNOUNCEMENTS):
            out.send(frame)


if __name__ == "__main__":
    sys.exit(main())
