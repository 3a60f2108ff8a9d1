"""What this machine can do at best, measured in the same run: nobody can be faster than these."""

import hashlib
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

MIB = 1 << 20


def walk(top: Path) -> dict:
    """Looks at every entry once."""
    begun = time.monotonic()
    subprocess.run(["find", top, "-printf", "%s %T@\\n"], stdout=subprocess.DEVNULL, check=True)
    return {"seconds": time.monotonic() - begun}


def hashing(top: Path) -> dict:
    """Reads and hashes all content: BLAKE3 where `b3sum` is installed, else Python's BLAKE2b."""
    begun = time.monotonic()
    if shutil.which("b3sum"):
        subprocess.run(f"find '{top}' -type f -print0 | xargs -0 b3sum >/dev/null", shell=True, check=True)
        return {"seconds": time.monotonic() - begun, "with": "b3sum"}
    for folder, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                hashlib.file_digest(file, hashlib.blake2b)
    return {"seconds": time.monotonic() - begun, "with": "blake2b of Python, slower than BLAKE3"}


def disk(folder: Path, size: int) -> dict:
    """Writes a file and makes it durable."""
    path = folder / "floor"
    block = os.urandom(MIB)
    begun = time.monotonic()
    with open(path, "xb", buffering=0) as out:
        for _ in range(size // MIB):
            out.write(block)
        os.fsync(out.fileno())
    seconds = time.monotonic() - begun
    path.unlink()
    return {"seconds": seconds, "bytes": size, "bytes_per_second": size / seconds}


def loopback(size: int) -> dict:
    """Sends through one connection of the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))

    def receive() -> None:
        connection, _ = listener.accept()
        buffer = bytearray(MIB)
        while connection.recv_into(buffer):
            pass

    receiver = threading.Thread(target=receive)
    receiver.start()
    block = bytes(MIB)
    begun = time.monotonic()
    with socket.create_connection(listener.getsockname()) as sender:
        for _ in range(size // MIB):
            sender.sendall(block)
    receiver.join()
    listener.close()
    seconds = time.monotonic() - begun
    return {"seconds": seconds, "bytes": size, "bytes_per_second": size / seconds}
