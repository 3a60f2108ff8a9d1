"""`scripts/soak promotion`: rounds of switchovers and failovers of a whole appliance, each ended by a comparison."""

import os
import sys

from tests.outside import bridge, isolation
from tests.outside.appliance import Abilities
from tests.outside.binary import Binary
from tests.soak import campaign
from tests.soak.campaign import say

from .trial import Break, Kind, Trial

# Then a new appliance begins, under the next seed, which has other settings.
ROUNDS_PER_PAIR, SWITCHOVERS_PER_PAIR = 10, 50


def main() -> int:
    parser = campaign.parser(
        "promotion", "Write to every store of an appliance, let things go wrong while roles change, and judge all that "
                     "clients, neighbours and nodes saw.")
    parser.add_argument("--only", choices=[kind.value for kind in Kind], default=None, help="let only this happen")
    parser.add_argument("--nodes", type=int, choices=[2, 3], default=None, help="how many there are (default: by the seed)")
    parser.add_argument("--broken", choices=[one.value for one in Break], default=None,
                        help="break what is judged, to see that the judge sees it: whatever was begun counts as "
                             "acknowledged, a second holder of the address, or a service on the standby")
    arguments = campaign.parse(parser)
    if os.geteuid():
        print("scripts/soak promotion: networks of its own need root", file=sys.stderr)
        return 2
    binary = Binary()
    abilities = Abilities.of(binary)
    for lacking in [name for name, has in vars(abilities).items() if not has]:
        say(f"this build has no {lacking.removeprefix('has_')} of its own: the campaign goes without, or does it itself")
    folder = campaign.folder(arguments, "promotion")
    folder.mkdir(parents=True)
    isolation.enter(folder)
    # Many threads, each of which is to tell its moment well.
    sys.setswitchinterval(0.001)
    bridge.build()
    only = Kind(arguments.only) if arguments.only else None
    broken = Break(arguments.broken) if arguments.broken else None
    again = "promotion" + (f" --only {only.value}" if only else "") + (f" --broken {broken.value}" if broken else "")
    again += f" --nodes {arguments.nodes}" if arguments.nodes else ""
    make = lambda place, seed: Trial(binary, place, seed, abilities, only, broken, arguments.nodes)
    outcome = campaign.run(make, isolation.WORK, arguments, again,
                           SWITCHOVERS_PER_PAIR if only is Kind.SWITCHOVER else ROUNDS_PER_PAIR)
    if not outcome.seeds:
        folder.rmdir()
    return outcome.tell(arguments.json, folder)


if __name__ == "__main__":
    sys.exit(main())
