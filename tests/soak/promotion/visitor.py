"""A client of the service, in a network of its own."""

import json
import socket
import threading
import time

from tests.outside import inside
from tests.outside.appliance import ADDRESS, WEB_PORT
from tests.outside.bridge import Plug

from .front import Page

INTERVAL = 0.03
# Nobody has the address while it moves, and a connection is tried again soon.
TIMEOUT = 0.25


class Visitor:
    """A client in a network of its own who looks at the service, over and over, each time on a new connection."""

    def __init__(self, plug: Plug) -> None:
        self._plug = plug
        self.pages: list[Page] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(5)

    def first(self, node: str, since: float) -> float | None:
        return min((page.heard for page in list(self.pages) if page.node == node and page.asked >= since), default=None)

    def _run(self) -> None:
        inside.stay(self._plug)
        while not self._ended.is_set():
            asked = time.monotonic()
            try:
                body = get(TIMEOUT, TIMEOUT)
            except (OSError, ValueError):
                time.sleep(INTERVAL)
                continue
            [(role, told)] = body["record"]["role"].items()
            epoch = told.get("epoch") or {"number": 0, "node": ""}
            self.pages.append(Page(asked, time.monotonic(), body["node"], role, (epoch["number"], epoch["node"])))
            self._ended.wait(INTERVAL)


def get(connect_patience: float, patience: float) -> dict:
    """Asks the service at the address, from the network that the thread is in."""
    with socket.create_connection((ADDRESS, WEB_PORT), connect_patience) as connection:
        connection.settimeout(patience)
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        raw = b""
        while part := connection.recv(4096):
            raw += part
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.0 200"):
        raise ValueError(head)
    return json.loads(body)
