"""`scripts/soak postgres`: rounds of kills, cuts, full disks, take-overs and returns, each ended by a comparison."""

import os
import sys

from tests.outside import bridge, isolation
from tests.outside.binary import Binary
from tests.soak import campaign
from tests.soak.campaign import say

from .trial import Trial

# Then a new pair begins, under the next seed: what is compared grows with every round.
ROUNDS_PER_PAIR = 10


def main() -> int:
    arguments = campaign.parse(campaign.parser(
        "postgres", "Write to a pair of Postgres nodes, let things go wrong, swap their roles, and compare."))
    if os.geteuid():
        print("scripts/soak postgres: networks and disks of its own need root", file=sys.stderr)
        return 2
    binary = Binary()
    lacking = [verb for verb in ("switchover", "rejoin") if not binary.has_verb(verb)]
    if lacking:
        print(f"scripts/soak postgres: this build has no `understudy {lacking[0]}`", file=sys.stderr)
        return 2
    folder = campaign.folder(arguments, "postgres")
    folder.mkdir(parents=True)
    isolation.enter(folder)
    # Many threads, each of which is to tell its moment well.
    sys.setswitchinterval(0.001)
    bridge.build()
    can_slow_down = bridge.can_slow_down()
    if not can_slow_down:
        say("no cable is slow: this kernel has no netem")
    outcome = campaign.run(lambda place, seed: Trial(binary, place, seed, can_slow_down), isolation.WORK, arguments,
                           "postgres", ROUNDS_PER_PAIR)
    if not outcome.seeds:
        folder.rmdir()
    return outcome.tell(arguments.json, folder)


if __name__ == "__main__":
    sys.exit(main())
