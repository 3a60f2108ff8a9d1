"""`scripts/bench files`: runs the cases, and prints what they took."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benches import campaign
from benches.campaign import say
from tests.outside import network
from tests.outside.binary import Binary

from . import disk, floors, report
from .cases import CASES, SCENES, NotMeasurable
from .generator import small_files
from .report import Result
from .scene import Bench, Scene
from .sizes import FULL, QUICK


def main() -> int:
    arguments = _arguments()
    has_own_network = network.enter_own_namespaces("benches.files")
    # A terminated run cleans up as one that ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    binary = Binary()
    started = time.strftime("%Y%m%d-%H%M%S")
    folder = arguments.dir / f"files-{started}"
    places = (folder / "near", folder / "far")
    for place in places:
        place.mkdir(parents=True)
    sizes = QUICK if arguments.quick else FULL
    if not has_own_network:
        say("without root, the loopback and the file system are shared with whatever else uses them")
    elif not (arguments.keep or arguments.shared_disk):
        for place in places:
            disk.mount_own(place, sizes.disk_bytes)
    bench = Bench(binary, folder, sizes, arguments.seed, has_own_network, arguments.verify)
    facts = {"machine": campaign.machine(places[0], binary, rsync=["rsync", "--version"]), "quick": arguments.quick, "seed": arguments.seed,
             "own_network": has_own_network}
    try:
        say("what an idle pair and this machine need at least")
        bench.measure_idleness()
        facts["idle"] = {"cpu_share": bench.idle_cpu_share, "bytes_per_second": bench.idle_bytes_per_second}
        facts["floors"] = _floors(bench)
        results = _run_cases(bench, arguments)
    finally:
        if not arguments.keep:
            _remove(folder)
    facts["machine"]["load_after"] = os.getloadavg()
    kept = arguments.dir / f"files-{started}.json"
    kept.write_text(report.raw(results, facts))
    told = [figure for result in results for figure in report.figures(result, not arguments.quick)]
    if arguments.json:
        print(json.dumps({"cases": told}))
    else:
        _print(results, facts, kept, not arguments.quick)
    has_failed = any(result.failure and result.is_measurable for result in results)
    misses = arguments.gate and any(figure["met"] is not True for figure in told)
    return 1 if has_failed or misses else 0


def _arguments() -> argparse.Namespace:
    parser = campaign.parser("files", "Measure the files store beside rsync, in turn, in the same run.", CASES)
    parser.add_argument("--seed", type=int, default=1, help="of trees and changes (default: 1)")
    parser.add_argument("--shared-disk", action="store_true",
                        help="use that folder's file system as it is, not a fresh one in an image there; --keep implies it")
    parser.add_argument("--verify", action="store_true", help="compare all content after each case, not a sample")
    return campaign.parse(parser)


def _floors(bench: Bench) -> dict:
    top = bench.folder / "floors"
    small_files(top, bench.sizes.small_files, bench.sizes.small_mean, bench.seed)
    told = {
        "walk": floors.walk(top),
        "hash": floors.hashing(top),
        "disk": floors.disk(bench.folder, bench.sizes.floor_bytes),
        "loopback": floors.loopback(bench.sizes.floor_bytes),
    }
    shutil.rmtree(top)
    return told


def _run_cases(bench: Bench, arguments: argparse.Namespace) -> list[Result]:
    """Runs scene by scene, so that a tree is made once."""
    wanted = [case for case in CASES if (case.name in arguments.case if arguments.case else case.is_default)]
    results = []
    for name, make in SCENES.items():
        scene = Scene(bench, name, make)
        try:
            for case in wanted:
                if case.scene == name:
                    rounds = 1 if case.once else arguments.rounds or bench.sizes.rounds
                    results.append(_run(scene, case, rounds, arguments.keep))
        finally:
            scene.discard(arguments.keep)
    return results


def _run(scene: Scene, case, rounds: int, keep: bool) -> Result:
    """Runs a case; one that fails does not stop the others, and leaves them nothing of its own."""
    result = Result(case)
    for number in range(rounds):
        for place in (scene.folder.parent, scene.far.parent):
            disk.give_back(place)
        begun = time.monotonic()
        try:
            result.rounds.append(case.run(scene, number))
        except NotMeasurable as reason:
            result.failure, result.is_measurable = str(reason), False
            say(f"{case.name}: not measurable, {reason}")
            return result
        except Exception as error:  # whatever it is, it is the case's result
            result.failure = f"{type(error).__name__}: {error}"
            say(f"{case.name}: FAILED, {result.failure}")
            scene.discard(keep)
            return result
        say(f"{case.name} {number + 1}/{rounds}: {_told(result.rounds[-1])}  ({time.monotonic() - begun:.0f} s in all)")
    return result


def _told(one) -> str:
    runs = [("ours", one.ours), ("rsync", one.rsync)]
    return "; ".join(
        f"{side} " + ", ".join(f"{name} {value:.3f} s" for name, value in run.seconds.items() if value is not None)
        for side, run in runs if run)


def _print(results: list[Result], facts: dict, kept: Path, is_full_size: bool) -> None:
    print(report.table(results, is_full_size))
    print()
    floor = facts["floors"]
    print(f"floors: walk {floor['walk']['seconds']:.2f} s and hash {floor['hash']['seconds']:.2f} s of the small files "
          f"({floor['hash']['with']}); disk {floor['disk']['bytes_per_second'] / 1e9:.2f} GB/s written and synced; "
          f"loopback {floor['loopback']['bytes_per_second'] / 1e9:.2f} GB/s")
    print(f"an idle pair: {facts['idle']['cpu_share']:.2%} of a processor, {facts['idle']['bytes_per_second']:.0f} B/s; "
          "these heartbeats are taken off WIRE")
    print("machine: " + ", ".join(f"{name} {value}" for name, value in facts["machine"].items()))
    if not is_full_size:
        print("quick: trees are smaller than the targets are meant for, so none is called met")
    print(f"every run: {kept}")


def _remove(folder: Path) -> None:
    for place in (folder / "near", folder / "far"):
        if place.is_mount():
            # Whoever still has it open keeps it no longer than it lives.
            subprocess.run(["umount", "--lazy", place], check=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
