"""What happens to a pair now and then, and how it ends."""

import errno
import os
import random
import signal
import time
from pathlib import Path

from tests.outside import client
from tests.outside.node import Node, Pair

from .history import History

DELAY_MILLISECONDS = 60


class Fault:
    """Something that goes wrong with a pair; `heal` ends it and can be called whatever has happened since."""

    # Nodes can still take over from each other while it lasts.
    may_linger = False

    def __init__(self, pair: Pair, history: History, rng: random.Random) -> None:
        self.pair, self.history, self.rng = pair, history, rng

    def begin(self) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        """Does what does not happen by itself."""


class _OfNode(Fault):
    def __init__(self, pair: Pair, history: History, rng: random.Random) -> None:
        super().__init__(pair, history, rng)
        self.node: Node = rng.choice(pair.nodes)

    def __str__(self) -> str:
        return f"{self.what} of {self.node.name}"


class PostgresKilled(_OfNode):
    """The server and all its children are killed; the daemon starts it again."""

    what = "Postgres killed"

    def begin(self) -> None:
        self.node.kill_postgres()


class DaemonKilled(_OfNode):
    what = "daemon killed"

    def begin(self) -> None:
        self.node.kill_daemon()

    def heal(self) -> None:
        if self.node.daemon is None:
            self.node.serve()


class Cut(_OfNode):
    """The cable is pulled; both nodes live."""

    what = "cable pulled"

    def begin(self) -> None:
        self.history.cuts.append((time.monotonic(), None))
        self.node.plug.cut()

    def heal(self) -> None:
        self.node.plug.mend()
        self.history.cuts[-1] = (self.history.cuts[-1][0], time.monotonic())


class Slow(_OfNode):
    what, may_linger = "slow cable", True

    def begin(self) -> None:
        self.node.plug.slow_down(DELAY_MILLISECONDS)

    def heal(self) -> None:
        self.node.plug.speed_up()


class StandbyHangs(Fault):
    """The standby's Postgres stands still; its connections stay."""

    def __str__(self) -> str:
        return "the standby hangs"

    def begin(self) -> None:
        self._stopped = self.pair.standby.postgres_processes()
        self._send(signal.SIGSTOP)

    def heal(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, what: int) -> None:
        for pid in self._stopped:
            try:
                os.kill(pid, what)
            except ProcessLookupError:
                pass


class DiskFull(Fault):
    """The standby has no room any more; each node's stores are on a small disk of their own."""

    def __str__(self) -> str:
        return "disk full on the standby"

    def begin(self) -> None:
        self._fill = self.pair.standby.root / "fill"
        free = os.statvfs(self.pair.standby.root)
        with open(self._fill, "wb") as out:
            try:
                os.posix_fallocate(out.fileno(), 0, max(1, (free.f_bavail - 1) * free.f_frsize))
            except OSError as error:
                # Somebody else took the rest: it is full.
                if error.errno != errno.ENOSPC:
                    raise

    def heal(self) -> None:
        Path(self._fill).unlink(missing_ok=True)


class ReplayPaused(Fault):
    """The standby receives, and applies nothing."""

    may_linger = True

    def __str__(self) -> str:
        return "replay paused"

    def begin(self) -> None:
        self._node = self.pair.standby
        self._try("SELECT pg_wal_replay_pause()")

    def heal(self) -> None:
        self._try("SELECT pg_wal_replay_resume()")

    def _try(self, sql: str) -> None:
        try:
            self._node.ask(sql)
        except client.Error:
            # Not there, or primary by now.
            pass


def kinds(can_slow_down: bool) -> list[type[Fault]]:
    return [PostgresKilled, DaemonKilled, Cut, StandbyHangs, DiskFull, ReplayPaused, *([Slow] if can_slow_down else [])]
