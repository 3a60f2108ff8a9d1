"""`scripts/soak postgres`: rounds of kills, cuts, full disks, take-overs and returns, each ended by a comparison."""

import argparse
import json
import os
import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.outside import bridge, isolation
from tests.outside.binary import REPOSITORY, Binary
from tests.outside.node import Ended
from tests.outside.pair import Failed

from .trial import Trial, Violation

SEEDS_VIOLATED_MAX = 3
# Then a new pair begins, under the next seed: what is compared grows with every round.
ROUNDS_PER_PAIR = 10


@dataclass
class Outcome:
    """What a run has found."""

    rounds: int = 0
    seeds: list[int] = field(default_factory=list)


def main() -> int:
    arguments = _arguments()
    if os.geteuid():
        print("scripts/soak postgres: networks and disks of its own need root", file=sys.stderr)
        return 2
    binary = Binary()
    lacking = [verb for verb in ("switchover", "rejoin") if not binary.has_verb(verb)]
    if lacking:
        print(f"scripts/soak postgres: this build has no `understudy {lacking[0]}`", file=sys.stderr)
        return 2
    folder = arguments.dir / f"{time.strftime('postgres-%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True)
    isolation.enter(folder)
    # Many threads, each of which is to tell its moment well.
    sys.setswitchinterval(0.001)
    bridge.build()
    can_slow_down = bridge.can_slow_down()
    if not can_slow_down:
        say("no cable is slow: this kernel has no netem")
    outcome, seed = Outcome(), arguments.seed
    say(f"begins with seed {seed}")
    while outcome.rounds < arguments.rounds and len(outcome.seeds) < SEEDS_VIOLATED_MAX:
        _try(binary, isolation.WORK / f"seed-{seed}", seed, can_slow_down, arguments.rounds, outcome)
        seed += 1
    if not outcome.seeds:
        folder.rmdir()
    told = {"rounds": outcome.rounds, "violations": len(outcome.seeds), "seeds": outcome.seeds}
    print(json.dumps(told) if arguments.json else
          f"{outcome.rounds} rounds, {len(outcome.seeds)} violations" +
          (f", of the seeds {', '.join(map(str, outcome.seeds))}; kept: {folder}" if outcome.seeds else ""))
    return 1 if outcome.seeds else 0


def _try(binary: Binary, folder: Path, seed: int, can_slow_down: bool, rounds: int, outcome: Outcome) -> None:
    """Runs rounds until enough are done or one finds a violation; then nothing after it would tell anything."""
    number = 0
    trial = Trial(binary, folder, seed, can_slow_down)
    try:
        trial.begin()
        while outcome.rounds < rounds and number < ROUNDS_PER_PAIR:
            number += 1
            outcome.rounds += 1
            say(f"seed {seed}, round {number}: {trial.round(number)}")
    except (Violation, Failed, Ended) as violation:
        outcome.seeds.append(seed)
        trial.keep()
        say(f"VIOLATION with seed {seed} in round {number}: {violation}")
        say(f"again: scripts/soak postgres --seed {seed} --rounds {number}")
    finally:
        trial.end()
    if seed not in outcome.seeds:
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak postgres",
        description="Write to a pair of Postgres nodes, let things go wrong, swap their roles, and compare.")
    parser.add_argument("--rounds", type=int, default=10, help="how many rounds (default: 10)")
    parser.add_argument("--seed", type=int, default=None, help="repeat the history of this seed (default: a new one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--dir", type=Path, default=REPOSITORY / "target/soak",
                        help="work in this folder, on a real disk")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if arguments.seed is None:
        # A number that is easily typed again.
        arguments.seed = random.SystemRandom().randrange(1, 10**6)
    arguments.dir = arguments.dir.resolve()
    return arguments


def say(line: str) -> None:
    print(f"soak: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
