"""Clients that write and read wherever they can, and remember what was answered, and when.

The keys of a round are its own (`3:` for the third): `r` registers, `c` counters, `p` pairs of keys that are set
together, `h` fields of a hash, and `u`, which are written once.
"""

import random
import re
import threading
import time

from tests.outside.kv import KvNode
from tests.outside.pair import Failed
from tests.outside.resp import Closed, Connection, RespError, everything

from .history import Claim, Round
from .linear import NEVER, Kind, Operation

CLIENTS = 6
REGISTERS = COUNTERS = PAIRS = FIELDS = 3
# A server that stands still is given up after this long; what was asked for stays unknown.
TIMEOUT = 1.5
# So that the clients and their judge leave the nodes something of a small machine.
INTERVAL = 0.002
LOOK_INTERVAL = 0.02
CLAIM_INTERVAL = 0.05
_FIRST_HALF = re.compile(r"\d+:p\d+a")
# What a client asks for, and how often in a hundred.
SHARES = {"write": 26, "once": 24, "add": 14, "pair": 6, "field": 8, "read": 14, "read pair": 4, "read field": 4}


class Clients:
    """Several clients, who start at either node and go where writes are taken, and one at each who asks how it is."""

    def __init__(self, nodes: tuple[KvNode, KvNode], seed: int, standby_reads: bool, believes_silence: bool,
                 interval: float = INTERVAL) -> None:
        self._nodes, self._standby_reads, self._believes_silence = nodes, standby_reads, believes_silence
        self._interval = interval
        self._lock = threading.Lock()
        self._ended, self._paused = threading.Event(), threading.Event()
        self._paused.set()
        self._busy: set[int] = set()
        self._failures: list[str] = []
        self.round, self.number = Round(False), 0
        self._threads = [threading.Thread(target=self._guarded, args=(self._watch, node), daemon=True) for node in nodes]
        self._threads += [threading.Thread(target=self._guarded, args=(Client(self, number, seed).run,), daemon=True)
                          for number in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(5)

    def begin(self, number: int, seen: Round) -> None:
        """Lets them go on, with the keys of this round."""
        self.round, self.number = seen, number
        self._paused.clear()

    def pause(self, patience: float = 30) -> None:
        """Returns when nobody waits for an answer any more."""
        self._paused.set()
        deadline = time.monotonic() + patience
        while self._busy:
            if time.monotonic() > deadline:
                raise Failed("clients hang, though both nodes are well")
            time.sleep(0.005)
        if self._failures:
            raise Failed(f"a client has failed: {self._failures[0]}")

    def _guarded(self, run, *arguments) -> None:
        try:
            run(*arguments)
        except Exception as error:  # a thread has nobody else who would be told
            self._failures.append(f"{type(error).__name__}: {error}")

    def _watch(self, node: KvNode) -> None:
        while not self._ended.is_set():
            asked = time.monotonic()
            try:
                status = node.status()
                store = next((one for one in status["stores"] if one["name"] == "kv"), {})
                claim = Claim(node.name, asked, time.monotonic(), status["role"],
                              (status["epoch"]["number"], status["epoch"]["node"]),
                              (store.get("durability") or {}).get("state"))
                self.round.claims.append(claim)
            except (Failed, ValueError, KeyError):
                # A daemon that does not answer claims nothing.
                pass
            time.sleep(CLAIM_INTERVAL)


class Client:
    """One client: one connection at a time, one request after the other."""

    def __init__(self, clients: Clients, number: int, seed: int) -> None:
        self._all, self._number = clients, number
        self._rng = random.Random(f"client {seed} {number}")
        self._at = number % 2
        self._connection: Connection | None = None
        self._written = 0
        # Reads of a node that may be a standby count only when it has taken a write on the same connection since.
        self._unproved: list[Operation] = []

    def run(self) -> None:
        while not self._all._ended.is_set():
            self._all._busy.add(self._number)
            if self._all._paused.is_set():
                self._leave()
                self._all._busy.discard(self._number)
                time.sleep(LOOK_INTERVAL)
                continue
            try:
                is_well = self._ask()
            finally:
                self._all._busy.discard(self._number)
            time.sleep(self._all._interval if is_well else LOOK_INTERVAL)
        self._leave()

    def _leave(self) -> None:
        self._unproved.clear()
        if self._connection:
            self._connection.close()
            self._connection = None

    @property
    def _node(self) -> KvNode:
        return self._all._nodes[self._at]

    def _go_elsewhere(self) -> bool:
        self._leave()
        self._at = 1 - self._at
        return False

    def _ask(self) -> bool:
        """Makes one request; returns whether the node takes requests."""
        if not self._connection:
            try:
                self._connection = self._node.connect(TIMEOUT)
            except OSError:
                return self._go_elsewhere()
        what = self._rng.choices(list(SHARES), SHARES.values())[0]
        prefix = f"{self._all.number}:"
        match what:
            case "write":
                key, value = f"{prefix}r{self._rng.randrange(REGISTERS)}", self._value()
                return self._write(key, value, [("SET", key, value)])
            case "once":
                value = self._value()
                return self._write(f"{prefix}u{value}", value, [("SET", f"{prefix}u{value}", value)])
            case "add":
                key = f"{prefix}c{self._rng.randrange(COUNTERS)}"
                return self._write(key, None, [("INCR", key)])
            case "pair":
                key, value = f"{prefix}p{self._rng.randrange(PAIRS)}", self._value()
                return self._write(key, value, [("MULTI",), ("SET", f"{key}a", value), ("SET", f"{key}b", value), ("EXEC",)])
            case "field":
                field, value = f"f{self._rng.randrange(FIELDS)}", self._value()
                return self._write(f"{prefix}h/{field}", value, [("HSET", f"{prefix}h", field, value)])
            case "read":
                kind = self._rng.choice("rc")
                key = f"{prefix}{kind}{self._rng.randrange(REGISTERS if kind == 'r' else COUNTERS)}"
                return self._read(key, [("GET", key)], is_counter=kind == "c")
            case "read pair":
                key = f"{prefix}p{self._rng.randrange(PAIRS)}"
                return self._read(key, [self._rng.choice([("MGET", f"{key}a", f"{key}b"), ("MGET", f"{key}b", f"{key}a")])])
            case _:
                field = f"f{self._rng.randrange(FIELDS)}"
                return self._read(f"{prefix}h/{field}", [("HGET", f"{prefix}h", field)])

    def _value(self) -> str:
        """Returns a value that nobody else writes, ever."""
        self._written += 1
        return f"v{self._all.number}.{self._number}.{self._written}."

    def _write(self, key: str, value: str | None, commands: list[tuple]) -> bool:
        kind = Kind.ADD if value is None else Kind.WRITE
        node, called = self._node.name, time.monotonic()
        remember = lambda result, returned: self._all.round.operations.append(
            Operation(self._number, node, key, kind, result, called, returned))
        try:
            answers = self._connection.pipeline(commands)
        except Closed:
            # With a broken judge, whatever was sent is believed to be there.
            remember(value, time.monotonic() if self._all._believes_silence and value else NEVER)
            return self._go_elsewhere()
        returned = time.monotonic()
        answer = answers[-1]
        if isinstance(answer, RespError):
            if not has_refused(answer):
                remember(value, returned if self._all._believes_silence and value else NEVER)
            return self._go_elsewhere()
        remember(answer if kind is Kind.ADD else value, returned)
        self._all.round.operations.extend(self._unproved)
        self._unproved.clear()
        return True

    def _read(self, key: str, commands: list[tuple], is_counter: bool = False) -> bool:
        node, called = self._node.name, time.monotonic()
        try:
            [answer] = self._connection.pipeline(commands)
        except Closed:
            return self._go_elsewhere()
        returned = time.monotonic()
        if isinstance(answer, RespError):
            return self._go_elsewhere()
        if isinstance(answer, list):
            if answer[0] != answer[1]:
                self._all.round.seen.append(f"{key} was read as {answer} on {node}: half of what was set together")
            answer = answer[0]
        value = (int(answer) if is_counter else answer.decode()) if answer is not None else None
        read = Operation(self._number, node, key, Kind.READ, value, called, returned)
        (self._unproved if self._all._standby_reads else self._all.round.operations).append(read)
        return True


def has_refused(error: RespError) -> bool:
    """Returns whether the node says that nothing came of the write; every other error leaves it open."""
    text = str(error)
    return text.startswith(("READONLY", "LOADING", "EXECABORT")) and "not known" not in text


def contents(node: KvNode) -> dict[str, str]:
    """Returns everything that a node has, as clients name it."""
    connection = node.connect(20)
    try:
        told = everything(connection)
    finally:
        connection.close()
    named: dict[str, str] = {}
    for raw, value in told.items():
        key = raw.decode()
        if isinstance(value, dict):
            named |= {f"{key}/{field.decode()}": one.decode() for field, one in value.items()}
        else:
            named[key] = value.decode()
    for half in [key for key in named if _FIRST_HALF.fullmatch(key)]:
        key = half[:-1]
        first, second = named.pop(half), named.pop(f"{key}b", None)
        named[key] = first if first == second else f"{first}, and {second}"
    return named
