"""A neighbour that asks on the cable who has an address, over and over, and hears who takes it.

Each question has a sender of its own, so that an answer tells which question it is to: two machines that answer
the same one have the address at the same time.
"""

import socket
import struct
import threading
import time
from dataclasses import dataclass

from . import inside
from .bridge import SUBNET, Plug

INTERVAL = 0.02
# The senders of the questions, in turn: nobody has these addresses.
_SENDERS = [f"{SUBNET}.{number}" for number in range(200, 250)]
_ARP = 0x0806
_REQUEST, _REPLY = 1, 2
_EVERYBODY = b"\xff" * 6
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")


@dataclass(frozen=True)
class Answer:
    """A machine has answered a question that was asked at `asked`; moments are of `time.monotonic`."""

    number: int
    asked: float
    heard: float
    mac: str


@dataclass(frozen=True)
class Announcement:
    """A machine has said unasked that it has the address."""

    heard: float
    mac: str


class Prober:
    """Asks every 20 ms."""

    def __init__(self, plug: Plug, address: str) -> None:
        self._address = socket.inet_aton(address)
        with inside.network(plug):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP))
            self._socket.bind(("eth0", _ARP))
        self._mac = self._socket.getsockname()[4]
        self.answers: list[Answer] = []
        self.announcements: list[Announcement] = []
        # When each question was asked.
        self.asked: list[float] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._ask, self._hear)]

    def __enter__(self) -> "Prober":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(5)
        self._socket.close()

    def holder(self, since: float) -> str | None:
        """Returns who has answered last to what was asked after `since`."""
        for answer in reversed(self.answers):
            if answer.asked < since:
                return None
            return answer.mac
        return None

    def first_announcement(self, mac: str, since: float) -> float | None:
        """Returns when that machine first announced itself after `since`."""
        return min((one.heard for one in list(self.announcements) if one.mac == mac and one.heard >= since), default=None)

    def _ask(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            sender = socket.inet_aton(_SENDERS[len(self.asked) % len(_SENDERS)])
            frame = _FRAME.pack(_EVERYBODY, self._mac, _ARP, 1, 0x0800, 6, 4, _REQUEST, self._mac, sender, bytes(6),
                                self._address)
            self.asked.append(time.monotonic())
            try:
                self._socket.send(frame)
            except OSError:
                # The cable is out.
                pass
            due = max(due + INTERVAL, time.monotonic())
            self._ended.wait(max(0.0, due - time.monotonic()))

    def _hear(self) -> None:
        self._socket.settimeout(0.2)
        numbers = {socket.inet_aton(sender): number for number, sender in enumerate(_SENDERS)}
        while not self._ended.is_set():
            try:
                raw = self._socket.recv(2048)
            except OSError:
                continue
            heard = time.monotonic()
            if len(raw) < _FRAME.size:
                continue
            *_, kind, mac, of, _, to = _FRAME.unpack(raw[:_FRAME.size])
            if of != self._address:
                continue
            name = mac.hex(":")
            if to == self._address:
                self.announcements.append(Announcement(heard, name))
            elif kind == _REPLY and to in numbers:
                # The newest question of that sender.
                last = len(self.asked) - 1
                number = last - (last - numbers[to]) % len(_SENDERS)
                self.answers.append(Answer(number, self.asked[number], heard, name))
