"""`scripts/bench postgres`: runs the cases, and prints what they took."""

import sys

from benches.campaign import Run, run_cases
from benches.isolated import IsolatedCampaign
from benches.report import Result

from .bench import Bench
from .cases import CASES
from .sizes import FULL, QUICK


class PostgresCampaign(IsolatedCampaign):
    name = "postgres"
    description = "Measure the Postgres store beside bare Postgres and Patroni, in turn, in the same run."
    cases, full, quick = CASES, FULL, QUICK

    def measure(self, run: Run) -> list[Result]:
        return run_cases(Bench(run.binary, run.sizes), CASES, run.arguments)


if __name__ == "__main__":
    sys.exit(PostgresCampaign().main())
