"""Clients in a network of their own, who reach the appliance only at its address: one of each kind, always busy.

A client waits for an answer for a quarter of a second (longer where answers are slow in peace), then tries on a new
connection: an address that moves takes no goodbye along, and whoever waits for one waits for ever.
"""

import select
import statistics
import threading
import time
from dataclasses import dataclass

from tests.outside import inside
from tests.outside.appliance import ADDRESS, KV_PORT, PASSWORD
from tests.outside.bridge import Plug
from tests.outside.client import psycopg2
from tests.outside.pair import Failed
from tests.outside.postgres import PORT
from tests.outside.resp import Connection, RespError
from tests.soak.promotion.visitor import get

# Between two operations; a connection that cannot be made is tried again as soon.
INTERVAL = 0.005
CONNECT_PATIENCE = 0.05
ANSWER_PATIENCE_MIN, ANSWER_PATIENCE_MAX, ANSWERS_SLOWER_MAX = 0.25, 2.0, 8
# Whoever has taken the connection is there, and greets.
GREETING_PATIENCE = 2.0
# So many answers tell how slow they are.
ANSWERS_TELLING = 50
TABLE = "visit"


@dataclass(frozen=True)
class Visit:
    """An operation that was acknowledged; moments are of `time.monotonic`."""

    number: int
    sent: float
    acked: float


class Visitor:
    """One client; does one thing after the other, and remembers what was acknowledged."""

    name: str

    def __init__(self, plug: Plug) -> None:
        self._plug = plug
        self.visits: list[Visit] = []
        self._number = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.trouble = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(10)

    def window(self, since: float, until: float) -> float:
        """Returns the longest time in which nothing was acknowledged; infinite where it did not end."""
        moments = [visit.acked for visit in list(self.visits) if since <= visit.acked <= until]
        if len(moments) < 2:
            return float("inf")
        return max(later - earlier for earlier, later in zip(moments, moments[1:]))

    def first_sent_after(self, moment: float) -> float | None:
        """Returns when the first operation was acknowledged that was begun after that moment."""
        return min((visit.acked for visit in list(self.visits) if visit.sent >= moment), default=None)

    def patience(self) -> float:
        """Returns how long an answer is awaited: much longer than any was in peace."""
        recent = [visit.acked - visit.sent for visit in self.visits[:ANSWERS_TELLING]]
        if len(recent) < ANSWERS_TELLING:
            return ANSWER_PATIENCE_MAX
        return min(max(ANSWERS_SLOWER_MAX * statistics.median(recent), ANSWER_PATIENCE_MIN), ANSWER_PATIENCE_MAX)

    def _run(self) -> None:
        inside.stay(self._plug)
        while not self._ended.is_set():
            self._number += 1
            sent = time.monotonic()
            try:
                self._visit(self._number)
                self.visits.append(Visit(self._number, sent, time.monotonic()))
            except (OSError, ValueError, RespError, psycopg2.Error) as error:
                self.trouble = f"{type(error).__name__}: {error}"
                self._leave()
            self._ended.wait(INTERVAL)
        self._leave()

    def _visit(self, number: int) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        """Gives up the connection, if there is one."""


class Writer(Visitor):
    """Inserts a row at a time into Postgres, each committed."""

    name = "Postgres"
    _connection = None

    def _visit(self, number: int) -> None:
        if self._connection is None:
            self._connection = psycopg2.connect(host=ADDRESS, port=PORT, user="postgres", dbname="postgres",
                                                application_name="visitor", async_=True)
            # A server that is there answers at once, with whatever.
            _poll(self._connection, CONNECT_PATIENCE, GREETING_PATIENCE)
        with self._connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {TABLE} VALUES (%s)", (number,))
            _poll(self._connection, self.patience(), self.patience())

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _poll(connection, connect_patience: float, patience: float) -> None:
    """Waits until what was begun on a connection is done."""
    waits = connect_patience
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        is_read = state == psycopg2.extensions.POLL_READ
        descriptor = [connection.fileno()]
        ready = select.select(descriptor if is_read else [], [] if is_read else descriptor, [], waits)
        if not any(ready):
            raise TimeoutError(f"no answer within {waits} s")
        waits = patience


class Setter(Visitor):
    """Sets a key at a time."""

    name = "KV"
    _connection = None

    def __init__(self, plug: Plug) -> None:
        super().__init__(plug)
        # Its own keys: what an earlier one has set proves nothing.
        self._prefix = f"visit{time.monotonic_ns()}."

    def key(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def _visit(self, number: int) -> None:
        if self._connection is None:
            connection = Connection.to(KV_PORT, CONNECT_PATIENCE, ADDRESS)
            connection.patience(GREETING_PATIENCE)
            connection.call("AUTH", PASSWORD)
            self._connection = connection
        self._connection.patience(self.patience())
        self._connection.call("SET", self.key(number), number)

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Reader(Visitor):
    """Asks the service."""

    name = "HTTP"

    def _visit(self, number: int) -> None:
        get(CONNECT_PATIENCE, self.patience())


class Party:
    """One client of each kind."""

    def __init__(self, plug: Plug) -> None:
        self.writer, self.setter, self.reader = Writer(plug), Setter(plug), Reader(plug)
        self.all = (self.writer, self.setter, self.reader)

    def __enter__(self) -> "Party":
        for visitor in self.all:
            visitor.start()
        return self

    def __exit__(self, *_) -> None:
        for visitor in self.all:
            visitor.stop()

    def are_served(self, since: float) -> bool:
        """Returns whether every one of them has got something that was asked for after that moment."""
        hungry = [visitor for visitor in self.all if not visitor.first_sent_after(since)]
        if hungry:
            raise Failed("; ".join(f"{visitor.name}: {visitor.trouble}" for visitor in hungry))
        return True

    def are_at_home(self) -> bool:
        """Returns whether every one of them knows how long answers take in peace."""
        return self.are_served(0) and all(len(visitor.visits) >= ANSWERS_TELLING for visitor in self.all)
