"""A new standby gets its copy of 2 GB."""

import shutil
import subprocess
import time

from benches.case import Case, Measure, Sample
from tests.outside.node import Node, Pair
from tests.outside.postgres import BARE_SETTINGS, Server, until

from . import load


# What `join` prints when a base backup is durable, before the server is started on it.
COPIED = "postgres is copied"


class Seeding(Case):
    name = "seed"
    title = "a standby joins a database of 2 GB"
    measures = (
        Measure("copied", "s", "pg_basebackup over TLS", 1.0, against_key="base backup, TLS"),
        Measure("streams", "s", "pg_basebackup over TLS, start", 1.0, against_key="streams"),
        Measure("copied (in the clear)", "s", "pg_basebackup, no TLS", None, ours_key="copied",
                against_key="base backup, clear"),
        Measure("copied (cp)", "s", "cp -a and sync", None, ours_key="copied", against_key="cp"),
    )
    _pair: Pair | None = None

    def _source(self) -> Pair:
        """Returns the pair whose primary is copied; on either side it is the same server."""
        if self._pair is None:
            self._pair = self.bench.pair()
            load.fill(self._pair.primary, self.bench.sizes.large_scale)
        return self._pair

    def ours(self, number: int) -> Sample:
        pair = self._source()
        load.settle(pair.primary)
        invited = pair.primary.invite(pair.standby.name)
        begun = time.monotonic()
        copied = self._join(pair.standby, invited)
        streams = pair.await_streaming()
        # The next one is a new machine of the same name.
        pair.standby.remove()
        shutil.rmtree(pair.standby.folder)
        pair.standby = Node(self.bench.binary, pair.standby.folder)
        return {"copied": copied - begun, "streams": streams - begun}

    @staticmethod
    def _join(node: Node, invited: list[str]) -> float:
        """Starts a standby, which goes on as the daemon; returns when it said that Postgres was copied."""
        node.start("join", *node.join_arguments(invited), "--serve")
        log = node.folder / "log"
        return until("Postgres is copied", lambda: COPIED in log.read_text() or node.assert_runs(), patience=600)

    def against(self, number: int) -> Sample:
        primary = self._source().primary
        sample = {}
        for word, mode in (("TLS", "require"), ("clear", "disable")):
            load.settle(primary)
            folder = self.bench.folder("copy")
            server = Server(folder / "c")
            try:
                begun = time.monotonic()
                server.copy(f"{primary.source()} sslmode={mode}")
                sample[f"base backup, {word}"] = time.monotonic() - begun
                if word == "TLS":
                    sample["streams"] = self._started(server, primary) - begun
            finally:
                server.remove()
                shutil.rmtree(folder)
        sample["cp"] = self._copied(primary)
        return sample

    @staticmethod
    def _started(server: Server, primary: Node) -> float:
        """Starts the copy as a standby; returns when it streamed. What it took to write its settings counts little."""
        (server.data / "understudy.conf").write_text(BARE_SETTINGS)
        server.follow(primary)
        server.start()
        return until("the copy streams", lambda: primary.streams_to(server))

    def _copied(self, primary: Node) -> float:
        load.settle(primary)
        folder = self.bench.folder("cp")
        begun = time.monotonic()
        subprocess.run(["cp", "-a", primary.data, folder / "pg"], check=True)
        subprocess.run(["sync", "-f", folder], check=True)
        seconds = time.monotonic() - begun
        shutil.rmtree(folder)
        return seconds

    def end(self) -> None:
        self.bench.discard(self._pair)
        self._pair = None
