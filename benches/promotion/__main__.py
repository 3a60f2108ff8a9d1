"""`scripts/bench promotion`: runs the cases, and prints what they took."""

import sys

from benches.campaign import Run, run_cases
from benches.isolated import IsolatedCampaign
from benches.report import Result

from .bench import Bench
from .cases import CASES
from .sizes import FULL, QUICK


class PromotionCampaign(IsolatedCampaign):
    name = "promotion"
    description = "Measure how long the whole appliance is away when roles change, beside Postgres alone."
    cases, full, quick = CASES, FULL, QUICK

    def measure(self, run: Run) -> list[Result]:
        bench = Bench(run.binary, run.sizes)
        try:
            return run_cases(bench, CASES, run.arguments)
        finally:
            bench.end()


if __name__ == "__main__":
    sys.exit(PromotionCampaign().main())
