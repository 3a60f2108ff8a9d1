"""A client that writes to whichever node is primary, with a thread per node.

A thread that hangs at a dead node does not delay the others. What a server has acknowledged is remembered with the
moment; nothing is repeated.
"""

import threading
import time
from dataclasses import dataclass

from . import client
from .postgres import Machine

TABLE = "probe"
# Where a node is no primary, it is looked at this often; where it cannot be reached, tried this often.
LOOK_INTERVAL = 0.001


@dataclass(frozen=True)
class Ack:
    """A row that a server has acknowledged; moments are of `time.monotonic`."""

    node: str
    number: int
    sent: float
    acked: float


class Writer:
    """Writes one row every `interval` seconds."""

    def __init__(self, machines: list[Machine], interval: float = 0.01) -> None:
        self.acks: list[Ack] = []
        self._numbers = iter(range(1 << 62))
        self._interval = interval
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._write, args=(machine,), daemon=True) for machine in machines]

    @staticmethod
    def make_table(machine: Machine) -> None:
        machine.ask(f"CREATE TABLE IF NOT EXISTS {TABLE} (number bigint PRIMARY KEY, node text)")
        machine.ask(f"TRUNCATE {TABLE}")

    def __enter__(self) -> "Writer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(10)

    def first_on(self, machine: Machine, since: float = 0.0) -> float | None:
        """Returns when that node acknowledged the first row after `since`."""
        moments = (ack.acked for ack in list(self.acks) if ack.node == machine.name and ack.acked > since)
        return min(moments, default=None)

    def last_on(self, machine: Machine) -> float | None:
        return max((ack.acked for ack in list(self.acks) if ack.node == machine.name), default=None)

    def lost_on(self, machine: Machine) -> int:
        """Returns how many acknowledged rows that node lacks."""
        there = {number for (number,) in machine.ask(f"SELECT number FROM {TABLE}")}
        return sum(ack.number not in there for ack in list(self.acks))

    def _write(self, machine: Machine) -> None:
        connection = None
        due = time.monotonic()
        while not self._ended.is_set():
            try:
                connection = connection or client.connect(machine.sockets)
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_is_in_recovery()")
                    if cursor.fetchone() == (True,):
                        time.sleep(LOOK_INTERVAL)
                        due = time.monotonic()
                        continue
                    with self._lock:
                        number = next(self._numbers)
                    sent = time.monotonic()
                    cursor.execute(f"INSERT INTO {TABLE} VALUES (%s, %s)", (number, machine.name))
                    self.acks.append(Ack(machine.name, number, sent, time.monotonic()))
            except client.Error:
                # Whatever it was: the connection may be gone, and a new one tells.
                if connection:
                    connection.close()
                connection = None
                time.sleep(LOOK_INTERVAL)
                due = time.monotonic()
                continue
            due = max(due + self._interval, time.monotonic())
            self._ended.wait(max(0.0, due - time.monotonic()))
        if connection:
            connection.close()
