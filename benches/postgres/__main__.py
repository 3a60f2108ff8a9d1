"""`scripts/bench postgres`: runs the cases, and prints what they took."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.outside import bridge, isolation
from tests.outside.binary import REPOSITORY, Binary
from tests.outside.postgres import program

from . import report
from .case import Bench, Case, NotMeasurable
from .cases import CASES
from .report import Result
from .sizes import FULL, QUICK


def main() -> int:
    arguments = _arguments()
    if os.geteuid():
        print("scripts/bench postgres: networks of its own need root", file=sys.stderr)
        return 2
    binary = Binary()
    started = time.strftime("%Y%m%d-%H%M%S")
    folder = arguments.dir / f"postgres-{started}"
    folder.mkdir(parents=True)
    facts = {"machine": _machine(folder, binary), "quick": arguments.quick}
    if facts["machine"]["file_system"] == "tmpfs":
        say(f"{folder} is in memory, where a sync costs nothing: no figure will mean much")
    isolation.enter(folder)
    # A thread that waits for a server is to run when the server has answered, not when another one's turn ends.
    sys.setswitchinterval(0.0005)
    bridge.build()
    try:
        results = _run_cases(Bench(binary, QUICK if arguments.quick else FULL), arguments)
    finally:
        if not arguments.keep:
            for entry in isolation.WORK.iterdir():
                shutil.rmtree(entry, ignore_errors=True)
            folder.rmdir()
    facts["machine"]["load_after"] = os.getloadavg()
    kept = arguments.dir / f"postgres-{started}.json"
    kept.write_text(report.raw(results, facts))
    told = [figure for result in results for figure in report.figures(result, not arguments.quick)]
    if arguments.json:
        print(json.dumps({"cases": told}))
    else:
        print(report.table(results, not arguments.quick))
        print()
        print("machine: " + ", ".join(f"{name} {value}" for name, value in facts["machine"].items()))
        if arguments.quick:
            print("quick: fewer rounds and smaller databases than the targets are meant for, so none is called met")
        print(f"every run: {kept}")
    misses = arguments.gate and any(figure["target"] is not None and figure["met"] is not True for figure in told)
    return 1 if misses or any(result.failure for result in results) else 0


def _arguments() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        prog="scripts/bench postgres",
        description="Measure the Postgres store beside bare Postgres and Patroni, in turn, in the same run.",
        epilog="cases: " + ", ".join(f"{case.name} ({case.title})" for case in CASES))
    parser.add_argument("--quick", action="store_true", help="smaller databases and two rounds, for a look in between")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--case", action="append", choices=names, metavar="CASE",
                        help="run this one only (may be repeated)")
    parser.add_argument("--rounds", type=_positive, help="how often each case is run (default: 5, quick 2)")
    parser.add_argument("--dir", type=Path, default=REPOSITORY / "target/bench",
                        help="work in this folder, on a real disk")
    parser.add_argument("--keep", action="store_true", help="keep the nodes' folders")
    parser.add_argument("--gate", action="store_true", help="exit with 1 unless every target is met")
    arguments = parser.parse_args()
    if arguments.gate and arguments.quick:
        parser.error("--gate needs the full size: --quick cannot tell whether a target is met")
    arguments.dir = arguments.dir.resolve()
    return arguments


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _run_cases(bench: Bench, arguments: argparse.Namespace) -> list[Result]:
    wanted = [case for case in CASES if (case.name in arguments.case if arguments.case else case.is_default)]
    return [_run(bench, case, arguments.rounds or bench.sizes.rounds) for case in wanted]


def _run(bench: Bench, kind: type[Case], rounds: int) -> Result:
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


def _machine(folder: Path, binary: Binary) -> dict:
    """Tells what the figures were measured on."""
    first_line = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "file_system": first_line("findmnt", "-no", "FSTYPE", "-T", str(folder)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg(),
        "postgres": first_line(program("postgres"), "--version"),
        "understudy": binary.version().removeprefix("understudy "),
    }


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
