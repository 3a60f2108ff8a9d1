"""`scripts/bench files`: runs the cases, and prints what they took."""

import argparse
import shutil
import subprocess
import sys
import time

from benches.campaign import Campaign, Run, say, wanted
from tests.outside import network

from . import disk, floors, report
from .cases import CASES, SCENES, NotMeasurable
from .generator import small_files
from .report import Result
from .scene import Bench, Scene
from .sizes import FULL, QUICK

# Where the nodes of either side work.
PLACES = ("near", "far")


class FilesCampaign(Campaign):
    name = "files"
    description = "Measure the files store beside rsync, in turn, in the same run."
    cases, full, quick = CASES, FULL, QUICK
    report = report
    quick_means = "trees are smaller than the targets are meant for, so none is called met"
    has_own_network = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seed", type=int, default=1, help="of trees and changes (default: 1)")
        parser.add_argument("--shared-disk", action="store_true",
                            help="use that folder's file system as it is, not a fresh one in an image there; --keep implies it")
        parser.add_argument("--verify", action="store_true", help="compare all content after each case, not a sample")

    def enter(self) -> None:
        self.has_own_network = network.enter_own_namespaces("benches.files")

    def peers(self) -> dict[str, list]:
        return {"rsync": ["rsync", "--version"]}

    def prepare(self, run: Run) -> None:
        run.facts.update(seed=run.arguments.seed, own_network=self.has_own_network)
        places = [run.folder / place for place in PLACES]
        for place in places:
            place.mkdir()
        if not self.has_own_network:
            say("without root, the loopback and the file system are shared with whatever else uses them")
        elif not (run.arguments.keep or run.arguments.shared_disk):
            for place in places:
                disk.mount_own(place, run.sizes.disk_bytes)

    def measure(self, run: Run) -> list[Result]:
        arguments = run.arguments
        bench = Bench(run.binary, run.folder, run.sizes, arguments.seed, self.has_own_network, arguments.verify)
        say("what an idle pair and this machine need at least")
        bench.measure_idleness()
        run.facts["idle"] = {"cpu_share": bench.idle_cpu_share, "bytes_per_second": bench.idle_bytes_per_second}
        run.facts["floors"] = _floors(bench)
        return _run_cases(bench, arguments)

    def notes(self, run: Run) -> list[str]:
        floor, idle = run.facts["floors"], run.facts["idle"]
        return [
            f"floors: walk {floor['walk']['seconds']:.2f} s and hash {floor['hash']['seconds']:.2f} s of the small files "
            f"({floor['hash']['with']}); disk {floor['disk']['bytes_per_second'] / 1e9:.2f} GB/s written and synced; "
            f"loopback {floor['loopback']['bytes_per_second'] / 1e9:.2f} GB/s",
            f"an idle pair: {idle['cpu_share']:.2%} of a processor, {idle['bytes_per_second']:.0f} B/s; "
            "these heartbeats are taken off WIRE",
        ]

    def remove(self, run: Run) -> None:
        for place in (run.folder / place for place in PLACES):
            if place.is_mount():
                # Whoever still has it open keeps it no longer than it lives.
                subprocess.run(["umount", "--lazy", place], check=True)
        super().remove(run)


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
    asked = wanted(CASES, arguments)
    results = []
    for name, make in SCENES.items():
        scene = Scene(bench, name, make)
        try:
            for case in asked:
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


if __name__ == "__main__":
    sys.exit(FilesCampaign().main())
