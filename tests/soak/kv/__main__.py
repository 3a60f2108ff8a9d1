"""`scripts/soak kv`: rounds of kills, stops and cuts under load, with take-overs, each judged by what clients saw."""

import os
import sys

from tests.outside import bridge, isolation
from tests.outside.binary import Binary
from tests.soak import campaign

from .trial import Break, Trial

# Then a new pair begins, under the next seed, which has other settings.
ROUNDS_PER_PAIR = 10


def main() -> int:
    parser = campaign.parser(
        "kv", "Write to a pair of key-value stores, kill nodes, swap their roles, and judge all that clients saw.")
    parser.add_argument("--broken", choices=[one.value for one in Break], default=None,
                        help="break what is judged, to see that the judge sees it: clients that take silence for an "
                             "acknowledgement, or an asynchronous store")
    arguments = campaign.parse(parser)
    if os.geteuid():
        print("scripts/soak kv: networks of its own need root", file=sys.stderr)
        return 2
    binary = Binary()
    folder = campaign.folder(arguments, "kv")
    folder.mkdir(parents=True)
    isolation.enter(folder)
    # Many threads, each of which is to tell its moment well.
    sys.setswitchinterval(0.001)
    bridge.build()
    broken = Break(arguments.broken) if arguments.broken else None
    again = "kv" + (f" --broken {broken.value}" if broken else "")
    outcome = campaign.run(lambda place, seed: Trial(binary, place, seed, broken), isolation.WORK, arguments, again,
                           ROUNDS_PER_PAIR)
    if not outcome.seeds:
        folder.rmdir()
    return outcome.tell(arguments.json, folder)


if __name__ == "__main__":
    sys.exit(main())
