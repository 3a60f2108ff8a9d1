"""What a pair of ours costs a commit that waits for nobody."""

import statistics
import subprocess

from benches.case import Measure, PairsCase, Sample
from tests.outside.node import Pair

from . import load
from .bare import BarePair

SCRIPT = "INSERT INTO latency (at) VALUES (now());\n"


class Latency(PairsCase):
    name = "latency"
    title = "single inserts, one client, asynchronous"
    measures = (
        Measure("p50", "s", "bare streaming", 1.1),
        Measure("p99", "s", "bare streaming", 1.1),
    )

    def prepare(self, pair: Pair | BarePair) -> None:
        pair.primary.ask("CREATE TABLE latency (number bigserial PRIMARY KEY, at timestamptz)")

    def ours(self, number: int) -> Sample:
        return self._slice(self.our_pair())

    def against(self, number: int) -> Sample:
        return self._slice(self.bare_pair())

    def _slice(self, pair: Pair | BarePair) -> Sample:
        folder = self.bench.folder("pgbench")
        folder.chmod(0o777)
        (folder / "insert.sql").write_text(SCRIPT)
        arguments = ["-n", "-c", 1, "-T", self.bench.sizes.slice_seconds, "-f", folder / "insert.sql", "-l",
                     "--log-prefix", folder / "log"]
        subprocess.run(load.command(pair.primary, *arguments), cwd="/", check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        [log] = folder.glob("log.*")
        # client, transaction, microseconds, …
        seconds = [int(line.split()[2]) / 1e6 for line in log.read_text().splitlines()]
        cuts = statistics.quantiles(seconds, n=100)
        return {"p50": cuts[49], "p99": cuts[98]}
