"""What every soak does around its rounds: arguments, one pair after the other, and what is told in the end."""

import argparse
import json
import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.outside.agent import Ended
from tests.outside.binary import REPOSITORY
from tests.outside.pair import Failed

SEEDS_VIOLATED_MAX = 3


class Violation(Exception):
    """Something that is guaranteed does not hold."""


class Trial(Protocol):
    """A pair from nothing, under the history of one seed."""

    def begin(self) -> None: ...

    def round(self, number: int) -> str:
        """Runs a round and judges it; returns what it did in a line."""

    def keep(self) -> None:
        """Writes down what was seen, for whoever looks into a violation."""

    def end(self) -> None: ...


@dataclass
class Outcome:
    """What a run has found."""

    rounds: int = 0
    seeds: list[int] = field(default_factory=list)
    violations: int = 0

    def tell(self, as_json: bool, folder: Path) -> int:
        """Prints it; returns the exit status."""
        told = {"rounds": self.rounds, "violations": self.violations, "seeds": self.seeds}
        print(json.dumps(told) if as_json else
              f"{self.rounds} rounds, {self.violations} violations" +
              (f", of the seeds {', '.join(map(str, self.seeds))}; kept: {folder}" if self.seeds else ""))
        return 1 if self.violations else 0


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Returns the arguments that every soak takes."""
    arguments = argparse.ArgumentParser(prog=f"scripts/soak {name}", description=description)
    arguments.add_argument("--rounds", type=int, default=None, help="how many rounds (default: 10)")
    arguments.add_argument("--seed", type=int, default=None, help="repeat the history of this seed (default: a new one)")
    arguments.add_argument("--json", action="store_true", help="print JSON")
    arguments.add_argument("--dir", type=Path, default=REPOSITORY / "target/soak",
                           help="work in this folder, on a real disk")
    return arguments


def parse(arguments: argparse.ArgumentParser, rounds: int | None = 10) -> argparse.Namespace:
    """Parses and completes them; without `--rounds` there are so many."""
    parsed = arguments.parse_args()
    if parsed.rounds is not None and parsed.rounds < 1:
        arguments.error("--rounds must be at least 1")
    parsed.rounds = parsed.rounds or rounds
    if parsed.seed is None:
        # A number that is easily typed again.
        parsed.seed = random.SystemRandom().randrange(1, 10**6)
    parsed.dir = parsed.dir.resolve()
    return parsed


def folder(arguments: argparse.Namespace, name: str) -> Path:
    """Returns the folder of this run, not made yet."""
    return arguments.dir / f"{time.strftime(f'{name}-%Y%m%d-%H%M%S')}-{time.time_ns() % 1000:03}"


def run(make, work: Path, arguments: argparse.Namespace, again: str, rounds_per_pair: int | None = None) -> Outcome:
    """Runs rounds, a pair for each seed, until enough are done or too much is violated.

    `make(folder, seed)` makes a trial; `again` is what is typed to repeat one, up to the seed. A pair has so many
    rounds: what is compared grows with every one.
    """
    outcome, seed = Outcome(), arguments.seed
    say(f"begins with seed {seed}")
    while outcome.rounds < arguments.rounds and outcome.violations < SEEDS_VIOLATED_MAX:
        place = work / f"seed-{seed}"
        until = min(arguments.rounds, outcome.rounds + rounds_per_pair) if rounds_per_pair else arguments.rounds
        _try(make(place, seed), seed, until, again, outcome)
        if seed not in outcome.seeds:
            shutil.rmtree(place)
        seed += 1
    return outcome


def _try(trial: Trial, seed: int, until: int, again: str, outcome: Outcome) -> None:
    """Runs rounds until enough are done or one finds a violation; then nothing after it would tell anything."""
    number = 0
    try:
        trial.begin()
        while outcome.rounds < until:
            number += 1
            outcome.rounds += 1
            say(f"seed {seed}, round {number}: {trial.round(number)}")
    except (Violation, Failed, Ended) as violation:
        outcome.violations += 1
        outcome.seeds.append(seed)
        trial.keep()
        say(f"VIOLATION with seed {seed} in round {number}: {violation}")
        say(f"again: scripts/soak {again} --seed {seed} --rounds {max(number, 1)}")
    finally:
        trial.end()


def say(line: str) -> None:
    print(f"soak: {line}", file=sys.stderr, flush=True)
