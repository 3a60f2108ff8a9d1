"""`scripts/soak files`: rounds of random changes, kills and cuts, each ended by a comparison of both trees."""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.outside import network
from tests.outside.binary import Binary
from tests.outside.pair import STORE, Failed, Pair
from tests.soak import campaign
from tests.soak.campaign import SEEDS_VIOLATED_MAX, Outcome, Violation, say

from . import faults, judge, power, syscalls
from .mutator import CAPABILITIES, Mutator
from .tagged import Ledger

# A pair that has not caught up by then never will.
PATIENCE = 90

# With `--faults`: in how many rounds calls fail, and how long a node may take to say that all is well then.
FAULTY_SHARE = 0.7
FAULTY_PATIENCE = 3


class Trial:
    """A pair, from nothing, under the history of one seed."""

    def __init__(self, binary: Binary, folder: Path, seed: int, without: set[str], may_cut: bool,
                 has_faults: bool) -> None:
        self._seed = seed
        self._has_faults = has_faults
        self._without = without
        self._ledger = Ledger()
        self._disturbances = [self._kill_standby, self._kill_primary] + [self._cut] * may_cut
        self._pair = Pair(binary, folder)
        (self._pair.source / "kept").touch()

    def begin(self) -> None:
        self._mutate(0).has_ended()
        # The mutator means what it removes. And nothing may be found by chance: that everything is looked
        # at now and then would hide what was missed.
        self._pair.start_primary(delete_guard="100%", scan="0 0 0 1 1 *")
        self._pair.join()
        self._pair.wait_equal(PATIENCE)

    def round(self, number: int) -> str:
        """Disturbs while the tree changes, then waits and compares; returns what it did in a line."""
        mutator = self._mutate(number)
        done: list[str] = []
        try:
            return self._disturbed(mutator, done)
        except (Violation, Failed) as violation:
            raise Violation(f"{violation}\nafter: {', '.join(done) or 'nothing'}") from violation

    def _disturbed(self, mutator: Mutator, done: list[str]) -> str:
        if self._has_faults and self._rng.random() < FAULTY_SHARE:
            self._suffer(mutator, done)
        while not mutator.has_ended(within=self._rng.random()):
            disturbance = self._rng.choice(self._disturbances)
            disturbance()
            done.append(disturbance.__name__.strip("_").replace("_", " "))
        self._assert_running()
        begun = time.monotonic()
        try:
            self._pair.wait_equal(PATIENCE)
        except Failed as failed:
            raise Violation(str(failed)) from failed
        waited = time.monotonic() - begun
        found = self._differences()
        if found:
            raise Violation("\n".join(["`understudy wait` says that both agree, and they do not:", *found]))
        self._assert_whole()
        return f"{mutator.changes} changes, {', '.join(done) or 'undisturbed'}; equal after {waited:.1f} s"

    def end(self) -> None:
        self._pair.stop()

    def keep(self) -> None:
        """Nothing is kept but the folder: the trees tell all."""

    def _mutate(self, number: int) -> Mutator:
        # The changes have random numbers of their own: how many the disturbances need depends on time.
        self._rng = random.Random(f"disturb {self._seed} {number}")
        changes = random.Random(f"change {self._seed} {number}")
        mutator = Mutator(os.fsencode(self._pair.source), changes, self._ledger, changes.randrange(200, 800),
                          self._without)
        mutator.start()
        return mutator

    def _suffer(self, mutator: Mutator, done: list[str]) -> None:
        """Lets system calls of a node fail while the tree changes, and then a little longer.

        The daemon may stand still, tell troubles or end; it must claim nothing that is not so.
        """
        node = self._rng.choice([self._pair.b, self._pair.b, self._pair.a])
        while True:
            fault = faults.draw(self._rng)
            done.append(f"{node.folder.name}: {fault}")
            node.stop(self._rng.choice([signal.SIGKILL, signal.SIGTERM]))
            self._assert_whole()
            node.start_under(fault.wrapper())
            has_ended = mutator.has_ended(within=1 + 3 * self._rng.random())
            if has_ended:
                break
        if node is self._pair.b:
            self._assert_honest()
        node.stop(signal.SIGKILL)
        self._assert_whole()
        # Whoever had an end because of what the other did is started again, too.
        for each in (self._pair.a, self._pair.b):
            if each is node or each.ended():
                each.stop()
                each.start("serve")

    def _assert_honest(self) -> None:
        """A standby that says that it has everything has it, whatever has failed."""
        try:
            self._pair.a.run("wait", "--timeout", str(FAULTY_PATIENCE), "--store", STORE)
        except Failed:
            return
        found = self._differences()
        if found:
            raise Violation("\n".join(["a standby whose calls fail says that it has applied everything:", *found]))

    def _differences(self) -> list[str]:
        return judge.differences(os.fsencode(self._pair.source), os.fsencode(self._pair.copy), self._without)

    def _kill_standby(self) -> None:
        self._assert_running()
        self._pair.b.stop(signal.SIGKILL)
        self._assert_whole()
        time.sleep(self._rng.random())
        self._pair.b.start("serve")

    def _kill_primary(self) -> None:
        self._assert_running()
        self._pair.a.stop(signal.SIGKILL)
        time.sleep(self._rng.random())
        self._pair.a.start("serve")

    def _cut(self) -> None:
        network.set_loopback(up=False)
        time.sleep(self._rng.random() * 3)
        network.set_loopback(up=True)

    def _assert_running(self) -> None:
        for node in (self._pair.a, self._pair.b):
            if node.ended():
                raise Violation(node.ended())

    def _assert_whole(self) -> None:
        found = self._ledger.faults(os.fsencode(self._pair.copy))
        if found:
            raise Violation("\n".join(["files of the standby are not whole versions:", *found[: judge.DIFFERENCES_TOLD]]))


def main() -> int:
    arguments = _arguments()
    if os.geteuid():
        print("scripts/soak files: owners, and reading what is closed to everybody, need root", file=sys.stderr)
        return 2
    if (arguments.faults or arguments.syscalls) and not faults.is_possible():
        print("scripts/soak files --faults, --syscalls: need strace (`apt-get install strace`)", file=sys.stderr)
        return 2
    may_cut = network.enter_own_namespaces("tests.soak.files")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if not may_cut:
        say("nobody is cut off: no network namespace can be made here")
    without = set(arguments.without)
    binary = Binary()
    folder = campaign.folder(arguments, "files")
    if arguments.syscalls:
        return _hit_all(binary, folder, arguments)
    if arguments.power:
        return _cut_power(binary, folder, arguments)
    outcome = campaign.run(
        lambda place, seed: Trial(binary, place, seed, without, may_cut, arguments.faults), folder, arguments,
        "files" + " --faults" * arguments.faults)
    if not outcome.seeds:
        folder.rmdir()
    return outcome.tell(arguments.json, folder)


def _cut_power(binary: Binary, folder: Path, arguments: argparse.Namespace) -> int:
    rounds, seeds = power.run(binary, folder, arguments, say)
    if not seeds:
        folder.rmdir()
    return Outcome(rounds, seeds, len(seeds)).tell(arguments.json, folder)


def _hit_all(binary: Binary, folder: Path, arguments: argparse.Namespace) -> int:
    """Lets each call of the standby go wrong, or as many as `--rounds` says; which, the seed says."""
    campaign = syscalls.Campaign(binary, folder)
    violations = []
    try:
        campaign.begin()
        plan = campaign.plan()
        say(f"{len(plan)} places to hit, in {len({hit.call for hit in plan})} calls")
        if arguments.only:
            plan = [hit for hit in plan if re.search(arguments.only, str(hit))]
        if arguments.rounds is not None:
            rng = random.Random(arguments.seed)
            plan = rng.sample(plan, min(arguments.rounds, len(plan)))
            say(f"{len(plan)} of them, with seed {arguments.seed}")
        # A standby that was started to be hit has to be started once more to be hit while it runs.
        for hit in sorted(plan, key=lambda hit: syscalls.PHASES.index(hit.phase)):
            begun = time.monotonic()
            try:
                campaign.hit(hit)
                say(f"{hit}: equal after {time.monotonic() - begun:.1f} s")
            except syscalls.Violation as violation:
                violations.append(str(hit))
                say(f"VIOLATION {violation}")
                if len(violations) == SEEDS_VIOLATED_MAX:
                    break
                try:
                    campaign.start_anew()
                except (syscalls.Violation, Failed) as violation:
                    say(f"and it does not heal: {violation}")
                    break
    finally:
        campaign.end()
    if not violations:
        shutil.rmtree(folder)
    told = {"rounds": campaign.rounds, "injected": sum(campaign.injected.values()),
            "calls": len({call for (call, _), count in campaign.injected.items() if count}),
            "restarts": campaign.restarts, "violations": violations}
    print(json.dumps(told) if arguments.json else
          f"{told['rounds']} rounds, {told['injected']} calls of {told['calls']} kinds hit, {told['restarts']} times "
          f"started again, {len(violations)} violations" + (f"; kept: {folder}" if violations else ""))
    return 1 if violations else 0


def _arguments() -> argparse.Namespace:
    parser = campaign.parser("files",
                             "Change a replicated tree at random, kill and cut off its nodes, and compare both trees.")
    parser.add_argument("--without", action="append", default=[], choices=CAPABILITIES,
                        help="neither make nor compare these (may be repeated)")
    parser.add_argument("--faults", action="store_true", help="let system calls of the daemons fail (needs strace)")
    parser.add_argument("--syscalls", action="store_true",
                        help="instead, let each system call of the standby fail, and be its last (needs strace)")
    parser.add_argument("--power", action="store_true",
                        help="instead, cut the standby's power (needs loop devices and mkfs.ext4)")
    parser.add_argument("--only", help="with --syscalls: hit these calls only (a regular expression)")
    arguments = campaign.parse(parser, rounds=None)
    if arguments.rounds is None and not arguments.syscalls:
        arguments.rounds = 10
    return arguments


if __name__ == "__main__":
    sys.exit(main())
