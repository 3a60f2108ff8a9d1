"""What every comparison of two sides does around its cases: arguments, rounds, and what is told in the end."""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.outside.binary import REPOSITORY, Binary

from . import report
from .case import Case, NotMeasurable
from .report import Result


@dataclass(frozen=True)
class Run:
    """One run of a campaign: what was asked for, where it works, and what is to be known of its figures."""

    arguments: argparse.Namespace
    binary: Binary
    folder: Path
    sizes: object
    facts: dict


class Campaign:
    """One of `scripts/bench`, from its arguments to its exit status; each says what it has of its own."""

    name: str
    description: str
    cases: tuple
    # The sizes that the targets are meant for, and smaller ones.
    full: object
    quick: object
    # What tells of the results.
    report = report
    quick_means = "smaller, and fewer rounds, than the targets are meant for, so none is called met"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds what this one takes beside what every one takes."""

    def lacks(self) -> str | None:
        """Returns what is missing here, if anything is."""

    def enter(self) -> None:
        """Begins this program again in a world of its own, where it needs one that is made so."""

    def peers(self) -> dict[str, list]:
        """Returns the commands that tell the versions of what is compared with."""
        return {}

    def prepare(self, run: Run) -> None:
        """Makes the world in which the cases run."""

    def measure(self, run: Run) -> list:
        """Runs the cases, and returns their results."""
        raise NotImplementedError

    def notes(self, run: Run) -> list[str]:
        """Returns what people are told below the table."""
        return []

    def remove(self, run: Run) -> None:
        """Removes what the run has made; is called whatever has happened."""
        shutil.rmtree(run.folder, ignore_errors=True)

    def main(self) -> int:
        """Runs it, and returns the exit status."""
        arguments = self._parse()
        if lacking := self.lacks():
            print(f"scripts/bench {self.name}: {lacking}", file=sys.stderr)
            return 2
        self.enter()
        # A terminated run cleans up as one that ends.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        binary = Binary()
        started = f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = arguments.dir / started
        folder.mkdir(parents=True)
        facts = {"machine": machine(folder, binary, **self.peers()), "quick": arguments.quick}
        run = Run(arguments, binary, folder, self.quick if arguments.quick else self.full, facts)
        self.prepare(run)
        try:
            results = self.measure(run)
        finally:
            if not arguments.keep:
                self.remove(run)
        return self._tell(run, results, arguments.dir / f"{started}.json")

    def _parse(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            prog=f"scripts/bench {self.name}", description=self.description,
            epilog="cases: " + ", ".join(f"{case.name} ({case.title})" for case in self.cases))
        parser.add_argument("--quick", action="store_true", help="smaller sizes and two rounds, for a look in between")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument("--case", action="append", choices=[case.name for case in self.cases], metavar="CASE",
                            help="run this one only (may be repeated)")
        parser.add_argument("--rounds", type=_positive, help="how often each case is run (default: 5, quick 2)")
        parser.add_argument("--dir", type=Path, default=REPOSITORY / "target/bench",
                            help="work in this folder, on a real disk")
        parser.add_argument("--keep", action="store_true", help="keep the nodes' folders")
        parser.add_argument("--gate", action="store_true", help="exit with 1 unless every target is met")
        self.add_arguments(parser)
        parsed = parser.parse_args()
        if parsed.gate and parsed.quick:
            parser.error("--gate needs the full size: --quick cannot tell whether a target is met")
        parsed.dir = parsed.dir.resolve()
        return parsed

    def _tell(self, run: Run, results: list, kept: Path) -> int:
        """Keeps the raw runs in `kept`, prints the figures, and returns the exit status."""
        is_full_size = not run.arguments.quick
        run.facts["machine"]["load_after"] = os.getloadavg()
        kept.write_text(self.report.raw(results, run.facts))
        told = [figure for result in results for figure in self.report.figures(result, is_full_size)]
        if run.arguments.json:
            print(json.dumps({"cases": told}))
        else:
            print(self.report.table(results, is_full_size))
            print()
            for note in self.notes(run):
                print(note)
            print("machine: " + ", ".join(f"{name} {value}" for name, value in run.facts["machine"].items()))
            if not is_full_size:
                print(f"quick: {self.quick_means}")
            print(f"every run: {kept}")
        misses = run.arguments.gate and any(
            figure["target"] is not None and figure["met"] is not True for figure in told)
        return 1 if misses or any(result.has_failed for result in results) else 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def wanted(cases: tuple, arguments: argparse.Namespace) -> list:
    """Returns the cases that are asked for."""
    return [case for case in cases if (case.name in arguments.case if arguments.case else case.is_default)]


def run_cases(bench, cases: tuple[type[Case], ...], arguments: argparse.Namespace) -> list[Result]:
    """Runs the cases that are asked for, one side after the other in each round."""
    return [_run(bench, case, arguments.rounds or bench.sizes.rounds) for case in wanted(cases, arguments)]


def _run(bench, kind: type[Case], rounds: int) -> Result:
    """Runs a case; one that fails does not stop the others."""
    result = Result(kind)
    case = kind(bench)
    lacking = [verb for verb in kind.verbs if not bench.binary.has_verb(verb)]
    if lacking:
        result.missing = f"this build has no `understudy {lacking[0]}`"
        say(f"{kind.name}: {result.missing}; the other side alone is measured")
    try:
        for number in range(1 if kind.once else rounds):
            for side, samples in ((case.ours, result.ours), (case.against, result.against)):
                if lacking and side == case.ours:
                    continue
                begun = time.monotonic()
                samples.append(side(number))
                told = ", ".join(f"{name} {value:.4f}" for name, value in samples[-1].items())
                say(f"{kind.name} {number + 1}: {side.__name__} {told}  ({time.monotonic() - begun:.0f} s in all)")
    except NotMeasurable as reason:
        result.missing = str(reason)
        say(f"{kind.name}: not measured, {reason}")
    except Exception as error:  # whatever it is, it is the case's result
        result.failure = f"{type(error).__name__}: {error}"
        say(f"{kind.name}: FAILED, {result.failure}")
    finally:
        case.end()
    return result


def machine(folder: Path, binary: Binary, **peers: list) -> dict:
    """Tells what the figures were measured on; of the others, the first line that each command prints."""
    first_line = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]
    told = {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "file_system": first_line("findmnt", "-no", "FSTYPE", "-T", str(folder)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg(),
        **{name: first_line(*command) for name, command in peers.items()},
        "understudy": binary.version().removeprefix("understudy "),
    }
    if told["file_system"] == "tmpfs":
        say(f"{folder} is in memory, where a sync costs nothing: no figure will mean much")
    return told


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
