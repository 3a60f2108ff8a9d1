"""`scripts/bench postgres`: runs the cases, and prints what they took."""

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
        "postgres", "Measure the Postgres store beside bare Postgres and Patroni, in turn, in the same run.", CASES))
    if os.geteuid():
        print("scripts/bench postgres: networks of its own need root", file=sys.stderr)
        return 2
    binary = Binary()
    started = time.strftime("%Y%m%d-%H%M%S")
    folder = arguments.dir / f"postgres-{started}"
    folder.mkdir(parents=True)
    facts = {"machine": campaign.machine(folder, binary, postgres=[program("postgres"), "--version"]),
             "quick": arguments.quick}
    isolation.enter(folder)
    # A thread that waits for a server is to run when the server has answered, not when another one's turn ends.
    sys.setswitchinterval(0.0005)
    bridge.build()
    try:
        results = campaign.run_cases(Bench(binary, QUICK if arguments.quick else FULL), CASES, arguments)
    finally:
        if not arguments.keep:
            for entry in isolation.WORK.iterdir():
                shutil.rmtree(entry, ignore_errors=True)
            folder.rmdir()
    return campaign.tell(results, facts, arguments.dir / f"postgres-{started}.json", arguments)


if __name__ == "__main__":
    sys.exit(main())
