"""What every comparison of two sides does around its cases: arguments, rounds, and what is told in the end."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from tests.outside.binary import REPOSITORY, Binary

from . import report
from .case import Case, NotMeasurable
from .report import Result


def parser(name: str, description: str, cases: tuple) -> argparse.ArgumentParser:
    """Returns the arguments that every benchmark takes."""
    arguments = argparse.ArgumentParser(
        prog=f"scripts/bench {name}", description=description,
        epilog="cases: " + ", ".join(f"{case.name} ({case.title})" for case in cases))
    arguments.add_argument("--quick", action="store_true", help="smaller sizes and two rounds, for a look in between")
    arguments.add_argument("--json", action="store_true", help="print JSON")
    arguments.add_argument("--case", action="append", choices=[case.name for case in cases], metavar="CASE",
                           help="run this one only (may be repeated)")
    arguments.add_argument("--rounds", type=_positive, help="how often each case is run (default: 5, quick 2)")
    arguments.add_argument("--dir", type=Path, default=REPOSITORY / "target/bench",
                           help="work in this folder, on a real disk")
    arguments.add_argument("--keep", action="store_true", help="keep the nodes' folders")
    arguments.add_argument("--gate", action="store_true", help="exit with 1 unless every target is met")
    return arguments


def parse(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    parsed = arguments.parse_args()
    if parsed.gate and parsed.quick:
        arguments.error("--gate needs the full size: --quick cannot tell whether a target is met")
    parsed.dir = parsed.dir.resolve()
    return parsed


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def run_cases(bench, cases: tuple[type[Case], ...], arguments: argparse.Namespace) -> list[Result]:
    """Runs the cases that are asked for, one side after the other in each round."""
    wanted = [case for case in cases if (case.name in arguments.case if arguments.case else case.is_default)]
    return [_run(bench, case, arguments.rounds or bench.sizes.rounds) for case in wanted]


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


def tell(results: list[Result], facts: dict, kept: Path, arguments: argparse.Namespace, notes: list[str] = ()) -> int:
    """Keeps the raw runs in `kept`, prints the figures, and returns the exit status."""
    facts["machine"]["load_after"] = os.getloadavg()
    kept.write_text(report.raw(results, facts))
    told = [figure for result in results for figure in report.figures(result, not arguments.quick)]
    if arguments.json:
        print(json.dumps({"cases": told}))
    else:
        print(report.table(results, not arguments.quick))
        print()
        for note in notes:
            print(note)
        print("machine: " + ", ".join(f"{name} {value}" for name, value in facts["machine"].items()))
        if arguments.quick:
            print("quick: smaller, and fewer rounds, than the targets are meant for, so none is called met")
        print(f"every run: {kept}")
    misses = arguments.gate and any(figure["target"] is not None and figure["met"] is not True for figure in told)
    return 1 if misses or any(result.failure for result in results) else 0


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
