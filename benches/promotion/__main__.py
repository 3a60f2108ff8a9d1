"""`scripts/bench promotion`: runs the cases, and prints what they took."""

import os
import shutil
import sys
import time

from benches import campaign
from tests.outside import bridge, isolation
from tests.outside.binary import Binary
from tests.outside.postgres import program

from .bench import Bench
from .cases import CASES
from .sizes import FULL, QUICK


def main() -> int:
    arguments = campaign.parse(campaign.parser(
        "promotion", "Measure how long the whole appliance is away when roles change, beside Postgres alone.", CASES))
    if os.geteuid():
        print("scripts/bench promotion: networks of its own need root", file=sys.stderr)
        return 2
    binary = Binary()
    started = time.strftime("%Y%m%d-%H%M%S")
    folder = arguments.dir / f"promotion-{started}"
    folder.mkdir(parents=True)
    facts = {"machine": campaign.machine(folder, binary, postgres=[program("postgres"), "--version"]),
             "quick": arguments.quick}
    isolation.enter(folder)
    # A thread that waits for a server is to run when the server has answered, not when another one's turn ends.
    sys.setswitchinterval(0.0005)
    bridge.build()
    bench = Bench(binary, QUICK if arguments.quick else FULL)
    try:
        results = campaign.run_cases(bench, CASES, arguments)
    finally:
        bench.end()
        if not arguments.keep:
            for entry in isolation.WORK.iterdir():
                shutil.rmtree(entry, ignore_errors=True)
            folder.rmdir()
    return campaign.tell(results, facts, arguments.dir / f"promotion-{started}.json", arguments)


if __name__ == "__main__":
    sys.exit(main())
