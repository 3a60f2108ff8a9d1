"""Standing in a machine's network without a process there: a thread may, and a socket stays where it was made."""

import ctypes
import os
import socket
import threading
from contextlib import contextmanager

from .bridge import Plug
from .pair import Failed

_NEW_NETWORK = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def network(plug: Plug):
    """Lets this thread stand in the machine's network for a while."""
    with open("/proc/thread-self/ns/net") as own, open(plug.namespace) as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def stay(plug: Plug) -> None:
    """Moves this thread into the machine's network, for good."""
    with open(plug.namespace) as other:
        _enter(other.fileno())


def connect(plug: Plug, port: int, timeout: float) -> socket.socket:
    """Connects to a port of the machine's own loopback, also while it is cut off from the others."""
    with network(plug):
        made = socket.socket()
    made.settimeout(timeout)
    try:
        made.connect(("127.0.0.1", port))
    except OSError:
        made.close()
        raise
    return made


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _NEW_NETWORK):
        raise Failed(f"thread {threading.get_native_id()} cannot enter a network: {os.strerror(ctypes.get_errno())}")
