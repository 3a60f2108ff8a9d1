"""Clients that insert numbered rows wherever they can, and remember what was acknowledged."""

import threading
import time

from tests.outside import client
from tests.outside.node import Node
from tests.outside.pair import Failed

from .history import Ack, Claim, History

TABLE = "numbered"
CLIENTS = 3
INTERVAL = 0.008
LOOK_INTERVAL = 0.005
CLAIM_INTERVAL = 0.05

_MAKE = f"CREATE TABLE IF NOT EXISTS {TABLE} (client int, number bigint, node text, PRIMARY KEY (client, number))"
_INSERT = (f"INSERT INTO {TABLE} VALUES (%s, %s, %s) RETURNING pg_walfile_name(pg_current_wal_insert_lsn()), "
           "pg_current_wal_insert_lsn() - '0/0'::pg_lsn")


class Clients:
    """Several clients at each node, and one who asks the node how it is."""

    def __init__(self, nodes: tuple[Node, Node], history: History, interval: float = INTERVAL) -> None:
        self._history, self._interval = history, interval
        self._ended, self._paused = threading.Event(), threading.Event()
        self._busy: set[int] = set()
        self._threads = [threading.Thread(target=self._watch, args=(node,), daemon=True) for node in nodes]
        self._threads += [threading.Thread(target=self._write, args=(node, place * CLIENTS + number), daemon=True)
                          for place, node in enumerate(nodes) for number in range(CLIENTS)]

    @staticmethod
    def make_table(node: Node) -> None:
        node.ask(_MAKE)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(5)

    def pause(self, patience: float = 20) -> None:
        """Returns when nobody waits for an acknowledgement any more."""
        self._paused.set()
        deadline = time.monotonic() + patience
        while self._busy:
            if time.monotonic() > deadline:
                raise Failed("writes hang, though both nodes stream")
            time.sleep(0.005)

    def go_on(self) -> None:
        self._paused.clear()

    def _write(self, node: Node, number: int) -> None:
        connection, row = None, 0
        while not self._ended.is_set():
            self._busy.add(number)
            try:
                if self._paused.is_set():
                    self._busy.discard(number)
                    time.sleep(LOOK_INTERVAL)
                    continue
                connection = connection or client.connect(node.sockets)
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_is_in_recovery()")
                    if cursor.fetchone() == (True,):
                        raise client.Standby
                    row += 1
                    sent = time.monotonic()
                    cursor.execute(_INSERT, (number, row, node.name))
                    acked = time.monotonic()
                    file, lsn = cursor.fetchone()
                # The name of a WAL file begins with its timeline.
                self._history.acks.append(Ack(number, row, node.name, int(file[:8], 16), int(lsn), sent, acked))
                pause = self._interval
            except client.Standby:
                pause = LOOK_INTERVAL
            except client.Error:
                # Whatever it was: the connection may be gone, and whether the row is there, nobody has promised.
                if connection:
                    connection.close()
                connection, pause = None, LOOK_INTERVAL
            finally:
                self._busy.discard(number)
            time.sleep(pause)
        if connection:
            connection.close()

    def _watch(self, node: Node) -> None:
        while not self._ended.is_set():
            asked = time.monotonic()
            try:
                status = node.status()
                self._history.claims.append(Claim(node.name, asked, time.monotonic(), is_held(status)))
            except (Failed, ValueError, KeyError):
                # A daemon that does not answer claims nothing.
                pass
            time.sleep(CLAIM_INTERVAL)


def is_held(status: dict) -> bool:
    """Returns whether a node says that commits wait for a standby that is there."""
    return status["role"] == "primary" and any(
        store["kind"] == "postgres" and (store.get("durability") or {}).get("state") == "held"
        for store in status["stores"])
