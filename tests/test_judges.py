"""The judges of `scripts/soak` and `scripts/bench` must see what they are there to see."""

import os
import random
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from benches import report as cases_report
from benches.case import Case, Measure
from benches.files.cases import CASES
from benches.files.compare import Different, assert_equal
from benches.files.measured import Round, Run
from benches.files.report import Result, figures
from benches.files.stream import Unseen, _latencies
from tests.outside.resp import RespError
from tests.soak.files import judge
from tests.soak.files.mutator import CAPABILITIES, Mutator
from tests.soak.files.tagged import Ledger
from tests.soak.kv import judge as kv_judge
from tests.soak.kv.clients import has_refused
from tests.soak.kv.history import Claim as KvClaim
from tests.soak.kv.history import Round as KvRound
from tests.soak.kv.history import TakeOver as KvTakeOver
from tests.soak.kv.linear import NEVER, Kind, Operation, first_inexplicable
from tests.soak.postgres import judge as postgres_judge
from tests.soak.postgres.history import Ack, Claim, History, Loss, TakeOver
from tests.soak.promotion import changes, front
from tests.outside.arp import Answer


class TwoTrees(unittest.TestCase):
    """A tree with one of each, and a copy that has everything."""

    def setUp(self) -> None:
        # Memory has neither holes nor extended attributes everywhere; the repository's disk has.
        target = Path(__file__).parents[1] / "target"
        target.mkdir(exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(dir=target))
        self.addCleanup(shutil.rmtree, self.folder)
        self.source, self.copy = self.folder / "source", self.folder / "copy"
        (self.source / "d").mkdir(parents=True)
        (self.source / "d/file").write_bytes(b"content")
        (self.source / "link").symlink_to("d/file")
        os.link(self.source / "d/file", self.source / "twin")
        with open(self.source / "sparse", "wb") as sparse:
            sparse.truncate(1 << 20)
        subprocess.run(["cp", "-a", "--sparse=always", self.source, self.copy], check=True)

    def differences(self, *without: str) -> list[str]:
        return judge.differences(os.fsencode(self.source), os.fsencode(self.copy), set(without))

    def assert_sees(self, *wanted: str) -> None:
        found = self.differences()
        for word in wanted:
            self.assertTrue(any(line.startswith(word) for line in found), (word, found))

    def test_equal_trees_are_equal(self) -> None:
        self.assertEqual(self.differences(), [])
        assert_equal(self.source, self.copy, seed=1, whole=True)

    def test_what_understudy_and_mkfs_keep_at_the_top_is_not_compared(self) -> None:
        (self.copy / ".understudy").mkdir()
        (self.copy / "lost+found").mkdir()
        self.assertEqual(self.differences(), [])

    def test_names(self) -> None:
        (self.source / "here").touch()
        (self.copy / "there").touch()
        self.assert_sees("only on the primary: b'here'", "only on the standby: b'there'")

    def test_attributes(self) -> None:
        os.chmod(self.copy / "d", 0o700)
        os.utime(self.copy / "link", ns=(1, 1), follow_symlinks=False)
        self.assert_sees("mode of b'd'", "mtime of b'link'")

    def test_content_of_the_same_size_and_time(self) -> None:
        path = self.copy / "d/file"
        moment = path.stat().st_mtime_ns
        path.write_bytes(b"Content")
        os.utime(path, ns=(moment, moment))
        self.assert_sees("digest of b'd/file'")
        with self.assertRaises(Different):
            assert_equal(self.source, self.copy, seed=1, whole=False)

    def test_extended_attributes(self) -> None:
        os.setxattr(self.source / "d", "user.one", b"1")
        self.assert_sees("xattrs of b'd'")
        self.assertEqual(self.differences("xattrs"), [])

    def test_a_hard_link_that_became_two_files(self) -> None:
        shutil.copy2(self.copy / "d/file", self.copy / "other")
        os.rename(self.copy / "other", self.copy / "twin")
        # Renaming changed the time of no file, but of the directories.
        self.assert_sees("names of one file on one side only")
        self.assertEqual(self.differences("hardlinks"), [])

    def test_a_hole_that_was_filled(self) -> None:
        path = self.copy / "sparse"
        moment = path.stat().st_mtime_ns
        path.write_bytes(bytes(1 << 20))
        os.utime(path, ns=(moment, moment))
        self.assert_sees("holes of b'sparse'")
        self.assertEqual(self.differences("holes"), [])


class Tags(unittest.TestCase):
    """Files that tell whether they are whole."""

    def setUp(self) -> None:
        self.top = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.top)
        self.ledger = Ledger()
        self.content = self.ledger.content(random.Random(1))

    def faults(self, content: bytes) -> int:
        Path(self.top, "t1").write_bytes(content)
        return len(self.ledger.faults(os.fsencode(self.top)))

    def test_whole_versions_and_emptiness_pass(self) -> None:
        self.assertEqual([self.faults(self.content), self.faults(b"")], [0, 0])

    def test_mixtures_do_not(self) -> None:
        self.assertEqual([self.faults(self.content[:-1]), self.faults(self.content[:100] + bytes(100)),
                          self.faults(Ledger().content(random.Random(2)))], [1, 1, 1])


class Histories(unittest.TestCase):
    """A seed repeats its history."""

    @unittest.skipIf(os.geteuid(), "changing owners needs root")
    def test_the_same_seed_makes_the_same_tree(self) -> None:
        tops = [Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())]
        for top in tops:
            self.addCleanup(shutil.rmtree, top)
            mutator = Mutator(os.fsencode(top), random.Random(7), Ledger(), 300, {*CAPABILITIES})
            mutator.start()
            self.assertTrue(mutator.has_ended())
        self.assertEqual(judge.differences(*map(os.fsencode, tops), {*CAPABILITIES, "mtime"}), [])


def row(number: int, node: str = "a", at: float = 10.0, timeline: int = 1) -> Ack:
    """A row that was acknowledged at that moment, 100 bytes of log after the one before."""
    return Ack(0, number, node, timeline, number * 100, at - 0.01, at)


def take_over(amount: int | None = None, cut: float | None = None, is_fenced: bool = False,
              is_forced: bool = False) -> TakeOver:
    """Node b took over from a."""
    return TakeOver("a", "b", 20.0, 21.0, is_fenced, is_forced, Loss(amount, cut))


class TakeOvers(unittest.TestCase):
    """What a take-over may lose, and who may write."""

    def lost(self, acks: list[Ack], change: TakeOver, there: set[int] = frozenset(), claims: list[Claim] = ()) -> list[str]:
        _, found = postgres_judge.lost(History(acks, list(claims)), change, {(0, number) for number in there})
        return found

    def assert_sees(self, found: list[str], words: str) -> None:
        self.assertEqual(len(found), 1, found)
        self.assertIn(words, found[0])

    def test_what_is_there_is_not_lost(self) -> None:
        self.assertEqual(self.lost([row(1), row(2)], take_over(amount=0, is_fenced=True), {1, 2}), [])

    def test_an_asynchronous_tail_may_be_lost_when_the_report_says_so(self) -> None:
        acks = [row(1, at=10), row(2, at=18), row(3, at=19)]
        keys, found = postgres_judge.lost(History(acks), take_over(cut=17), {(0, 1)})
        self.assertEqual((keys, found), ({(0, 2), (0, 3)}, []))
        self.assertEqual(self.lost(acks, take_over(amount=150), {1}), [])

    def test_what_is_older_than_the_cut_may_not(self) -> None:
        self.assert_sees(self.lost([row(1, at=16.9)], take_over(cut=17)), "up to the cut")

    def test_nor_more_than_the_report_says(self) -> None:
        self.assert_sees(self.lost([row(1)], take_over(amount=0)), "nothing was lost")
        self.assert_sees(self.lost([row(1), row(5)], take_over(amount=150)), "150 bytes")

    def test_nor_anything_of_a_primary_that_handed_over(self) -> None:
        self.assert_sees(self.lost([row(1)], take_over(is_fenced=True)), "had stopped and handed over")
        # Unless the operator would not wait for it.
        self.assertEqual(self.lost([row(1)], take_over(is_fenced=True, is_forced=True)), [])

    def test_nor_rows_of_the_new_primary(self) -> None:
        self.assert_sees(self.lost([row(1, "b", 30)], take_over()), "b or somebody before a")

    def test_nor_what_was_said_to_be_on_the_standby(self) -> None:
        held, alone = Claim("a", 9.8, 9.9, True), Claim("a", 9.95, 9.96, False)
        self.assert_sees(self.lost([row(1, at=10)], take_over(), claims=[held]), "commits wait")
        # Since then it was not claimed any more, or for too long not again, or by somebody else.
        self.assertEqual(self.lost([row(1, at=10)], take_over(), claims=[held, alone]), [])
        self.assertEqual(self.lost([row(1, at=12)], take_over(), claims=[held]), [])
        self.assertEqual(self.lost([row(1, at=10)], take_over(), claims=[Claim("b", 9.8, 9.9, True)]), [])

    def test_unless_operators_had_promoted_both_by_then(self) -> None:
        held = Claim("a", 9.8, 9.9, True)
        change = take_over()
        change.overruled = 9.95
        self.assertEqual(self.lost([row(1, at=10)], change, claims=[held]), [])
        change.overruled = 10.5
        self.assert_sees(self.lost([row(1, at=10)], change, claims=[held]), "commits wait")

    def two_writers(self, acks: list[Ack], cuts: list[tuple[float, float | None]] = (), is_fenced: bool = False) -> list[str]:
        return postgres_judge.two_writers(History(acks, cuts=list(cuts)), [take_over(is_fenced=is_fenced)])

    def test_a_timeline_has_one_writer(self) -> None:
        self.assertEqual(self.two_writers([row(1), row(2, "b", 21, timeline=2)]), [])
        self.assert_sees(self.two_writers([row(1), row(2, "b", 21, timeline=1)]), "timeline 1 was written by a and b")

    def test_an_old_primary_that_can_hear_stops(self) -> None:
        acks = [row(1, "b", 21, timeline=2), row(2, "a", 30)]
        self.assert_sees(self.two_writers(acks), "could hear of it")
        self.assertEqual(self.two_writers(acks, [(19, None)]), [])
        self.assertEqual(self.two_writers(acks, [(19, 28)]), [])
        self.assert_sees(self.two_writers(acks, [(19, 22)]), "could hear of it")

    def test_one_that_was_fenced_takes_no_write_at_all(self) -> None:
        acks = [row(1, "b", 21, timeline=2), row(2, "a", 21.5)]
        self.assert_sees(self.two_writers(acks, is_fenced=True), "had been fenced")
        # In time again, as a standby that was promoted meanwhile.
        self.assertEqual(self.two_writers([row(1, "a", 20.5), row(2, "b", 21, timeline=2)], is_fenced=True), [])


def write(value: str, called: float, returned: float = NEVER, node: str = "a", key: str = "k") -> Operation:
    """A write; without a return nobody knows of it."""
    return Operation(0, node, key, Kind.WRITE, value, called, returned)


def read(value: str | int | None, called: float, returned: float, node: str = "a", key: str = "k") -> Operation:
    return Operation(1, node, key, Kind.READ, value, called, returned)


def add(value: int | None, called: float, returned: float = NEVER, node: str = "a", key: str = "k") -> Operation:
    return Operation(0, node, key, Kind.ADD, value, called, returned)


class Linearizability(unittest.TestCase):
    """Whether one copy that does one thing at a time explains what was seen."""

    def assert_good(self, *operations: Operation) -> None:
        self.assertIsNone(first_inexplicable(operations))

    def assert_bad_at(self, wanted: Operation, *others: Operation) -> None:
        self.assertEqual(first_inexplicable([*others, wanted]), wanted)

    def test_what_one_after_the_other_saw(self) -> None:
        self.assert_good(read(None, 1, 2), write("x", 3, 4), read("x", 5, 6), write("y", 7, 8), read("y", 9, 10))

    def test_of_two_at_once_either_may_be_first(self) -> None:
        for last in "xy":
            self.assert_good(write("x", 1, 5), write("y", 2, 6), read(last, 7, 8))
        self.assert_good(write("x", 1, 9), read(None, 2, 3), read("x", 4, 5))

    def test_what_meets_in_one_moment_is_at_once(self) -> None:
        self.assert_good(write("x", 1, 2), read(None, 2, 3))

    def test_a_stale_read(self) -> None:
        self.assert_bad_at(read("x", 5, 6), write("x", 1, 2), write("y", 3, 4))
        self.assert_bad_at(read(None, 3, 4), write("x", 1, 2))

    def test_what_was_seen_once_is_not_unseen(self) -> None:
        self.assert_bad_at(read(None, 4, 5), write("x", 1, 9), read("x", 2, 3))

    def test_a_lost_write(self) -> None:
        self.assert_bad_at(read("x", 9, 10), write("x", 1, 2), write("y", 3, 4), read("y", 5, 6))

    def test_what_was_never_written(self) -> None:
        self.assert_bad_at(read("z", 3, 4), write("x", 1, 2))

    def test_an_unanswered_write_comes_late_or_never_but_once(self) -> None:
        unknown, later = write("x", 1), write("y", 2, 3)
        self.assert_good(unknown, later, read("y", 4, 5))
        self.assert_good(unknown, later, read("y", 4, 5), read("x", 6, 7))
        self.assert_bad_at(read("x", 10, 11), unknown, later, read("x", 4, 5), write("z", 6, 7), read("z", 8, 9))
        # Not before it was asked for.
        self.assert_bad_at(read("x", 0.1, 0.2), unknown)

    def test_counters(self) -> None:
        self.assert_good(add(2, 1, 5), add(1, 2, 4), read(2, 6, 7))
        self.assert_good(add(1, 1, 2), add(None, 3), add(3, 4, 5), read(3, 6, 7))
        self.assert_good(add(1, 1, 2), add(None, 3), add(2, 4, 5), read(2, 6, 7), read(3, 8, 9))

    def test_a_fractured_increment(self) -> None:
        twice, lost = add(1, 3, 4), read(1, 5, 6)
        self.assert_bad_at(twice, add(1, 1, 2))
        self.assert_bad_at(lost, add(1, 1, 2), add(2, 3, 4))
        self.assert_bad_at(add(3, 3, 4), add(1, 1, 2))

    def test_a_long_history_of_many_at_once_is_decided(self) -> None:
        # Five writers whose requests overlap without a pause, and one who reads what the first of them wrote.
        writes = [write(f"{number}", number, number + 4.5) for number in range(2000)]
        reads = [read(f"{number}", number + 4.6, number + 4.9) for number in range(0, 2000, 7)]
        self.assert_good(*writes, *reads)
        self.assert_bad_at(read("3", 1900, 1900.5), *writes)


def handed_over(**changes) -> KvTakeOver:
    """Node b took over from a at 20, by force if nothing else is said."""
    return KvTakeOver(**{"old": "a", "new": "b", "begun": 20.0, "ended": 21.0, "is_fenced": False, "is_forced": True,
                         "lost": None, **changes})


class KvRounds(unittest.TestCase):
    """What a round of kills and take-overs may leave, and what not."""

    def found(self, operations: list[Operation], final: dict, may_degrade: bool = False, **more) -> list[str]:
        final_standby = more.pop("final_standby", final)
        return kv_judge.violations(KvRound(may_degrade, operations, final=final, final_standby=final_standby,
                                           ended=(90.0, 91.0), **more))

    def assert_sees(self, found: list[str], words: str) -> None:
        self.assertTrue(any(words in line for line in found), found)

    def claims(self, *durabilities: tuple[float, str]) -> list[KvClaim]:
        return [KvClaim("a", at, at + 0.01, "primary", (1, "a"), durability) for at, durability in durabilities]

    def test_an_acknowledged_write_survives(self) -> None:
        operations = [write("x", 1, 2), write("y", 22, 23, node="b", key="l")]
        self.assertEqual(self.found(operations, {"k": "x", "l": "y"}, change=handed_over()), [])
        for lost in ({"l": "y"}, {"k": "x"}):
            self.assert_sees(self.found(operations, lost, change=handed_over(salvaged=b"xy")), "writes are lost")
            self.assert_sees(self.found(operations, lost, change=handed_over(salvaged=b"xy")), "not linearizable")

    def test_an_unanswered_one_may_be_there_or_not(self) -> None:
        for final in ({"k": "x"}, {}):
            self.assertEqual(self.found([write("x", 1)], final), [])
            self.assertEqual(self.found([write("x", 1)], final, change=handed_over()), [])

    def test_both_nodes_have_the_same_in_the_end(self) -> None:
        self.assert_sees(self.found([write("x", 1, 2)], {"k": "x"}, final_standby={}), "the standby has something else")

    def test_what_a_lonely_primary_took_may_be_lost_if_it_was_kept_aside(self) -> None:
        operations = [add(1, 10, 11), read(1, 12, 13), write("x", 18, 19, key="u"), add(1, 22, 23, node="b")]
        alone = {"may_degrade": True, "claims": self.claims((9, "held"), (15, "alone"))}
        kept, final = b"..x..", {"k": 1}
        self.assertEqual(self.found(operations, final, change=handed_over(salvaged=kept), **alone), [])
        self.assert_sees(self.found(operations, final, change=handed_over(), **alone), "did not keep them aside")
        self.assert_sees(self.found(operations, final, change=handed_over(salvaged=kept, lost=0), **alone),
                         "0 operations were lost, and more")
        # It said once more that they are on the standby.
        healed = {"may_degrade": True, "claims": self.claims((9, "held"), (15, "alone"), (19.5, "held"))}
        self.assert_sees(self.found(operations, final, change=handed_over(salvaged=kept), **healed), "were on both nodes")
        # A pair that never degrades has no such excuse; nor has a primary that was asked.
        self.assert_sees(self.found(operations, final, change=handed_over(salvaged=kept)), "were on both nodes")
        clean = handed_over(is_fenced=True, is_forced=False, salvaged=kept)
        self.assert_sees(self.found(operations, final, change=clean, **alone), "handed over, and acknowledged")

    def test_a_lonely_primary_contradicts_itself_no_more_than_any_other(self) -> None:
        operations = [write("x", 18, 18.1), read(None, 18.2, 18.3)]
        self.assert_sees(self.found(operations, {"k": "x"}, True, change=handed_over()), "for a by itself")

    def test_of_two_that_were_promoted_by_force_the_lesser_loses_what_it_promised_and_keeps_it(self) -> None:
        # What b did before they were apart is known to a, which goes on from there with a third node.
        operations = [add(1, 10, 11, node="b"), add(2, 15, 15.1), add(2, 22, 23, node="b"), write("x", 16, 16.1, key="u")]
        final = {"k": 2}
        self.assert_sees(self.found(operations, final, change=handed_over(begun=5.0, salvaged=b"x")), "were on both nodes")
        apart = handed_over(begun=5.0, salvaged=b"x", overruled=14.0)
        self.assertEqual(self.found(operations, final, change=apart), [])
        self.assert_sees(self.found(operations, final, change=handed_over(begun=5.0, overruled=14.0)), "did not keep them aside")
        late = handed_over(begun=5.0, salvaged=b"x", overruled=18.0)
        self.assert_sees(self.found(operations, final, change=late), "were on both nodes")

    def test_just_before_its_death_an_untouched_primary_is_not_alone(self) -> None:
        operations = [write("x", 10.1, 10.2)]
        held = {"claims": self.claims((10, "held")), "change": handed_over(salvaged=b"x")}
        self.assert_sees(self.found(operations, {}, True, **held), "were on both nodes")
        self.assertEqual(self.found(operations, {}, True, **held, troubles=[(10.05, None)]), [])
        self.assertEqual(self.found([write("x", 10.1, 10.9)], {}, True, **held), [])

    def test_a_superseded_primary_that_cannot_hear_may_answer_reads(self) -> None:
        operations = [write("x", 1, 2), write("y", 22, 23, node="b"), read("x", 24, 25)]
        self.assertEqual(self.found(operations, {"k": "y"}, change=handed_over()), [])
        clean = handed_over(is_fenced=True, is_forced=False)
        self.assert_sees(self.found(operations, {"k": "y"}, change=clean), "not linearizable")

    def test_one_node_takes_writes(self) -> None:
        both = [write("x", 1, 2), write("y", 3, 4, node="b", key="l")]
        self.assert_sees(self.found(both, {"k": "x", "l": "y"}), "nobody took over")
        self.assert_sees(self.found(both, {"k": "x", "l": "y"}, change=handed_over()), "before it was promoted")
        late = [write("x", 22, 23, node="b"), write("y", 31, 32, key="l")]
        final = {"k": "x", "l": "y"}
        self.assert_sees(self.found(late, final, change=handed_over()), "could hear of it")
        self.assertEqual(self.found(late, final, change=handed_over(), cuts=[(19, 30)]), [])
        fenced = handed_over(is_fenced=True, is_forced=False)
        self.assert_sees(self.found(late, final, change=fenced, cuts=[(19, 30)]), "had been fenced")
        claims = [KvClaim(node, 1, 1.1, "primary", (2, "b"), None) for node in "ab"]
        self.assert_sees(self.found([], {}, claims=claims), "two primaries")

    def test_never_alone_is_never(self) -> None:
        self.assert_sees(self.found([], {}, claims=self.claims((1, "alone"))), "must never")
        # Who has just been promoted may be, and afterwards the judge swaps roles himself.
        promoted = handed_over(old="b", new="a")
        self.assertEqual(self.found([], {}, claims=self.claims((21, "alone")), change=promoted), [])
        self.assertEqual(self.found([], {}, claims=self.claims((92, "alone"))), [])
        lost = [write("x", 18, 19)]
        claims = self.claims((17, "alone"), (92, "held"))
        self.assertEqual(self.found(lost, {}, True, claims=claims, change=handed_over(salvaged=b"x")), [])

    def test_which_errors_say_that_nothing_came_of_it(self) -> None:
        refused = ["READONLY You can't write against a read only replica.", "LOADING Redis is loading the dataset in memory",
                   "EXECABORT Transaction discarded because of previous errors."]
        unknown = ["READONLY This node is no longer the primary; whether the write was kept is not known.",
                   "NOREPLICAS Not enough good replicas to write.", "MISCONF The log cannot be written: disk full"]
        self.assertEqual([has_refused(RespError(text)) for text in refused + unknown], [True] * 3 + [False] * 3)


def changed(path: str, content: str | None, at: float, node: str = "a", is_done: bool = True) -> changes.Change:
    return changes.Change(node, f"{at}", path, content, at, at + 0.01 if is_done else None)


class Changes(unittest.TestCase):
    """What the application did to its files, and what is there after a promotion."""

    def found(self, made: list[changes.Change], there: dict[str, str], may_lose: str | None = "a", cut: float | None = None,
              amount: int | None = None, believes_silence: bool = False) -> tuple[changes.Loss, list[str]]:
        return changes.judge(made, there, may_lose, cut, {"files": amount, "settings": amount}, believes_silence)

    def assert_sees(self, found: tuple[changes.Loss, list[str]], words: str) -> None:
        self.assertTrue(any(words in line for line in found[1]), (words, found[1]))

    def test_the_newest_version_is_there_or_one_that_nobody_promised(self) -> None:
        made = [changed("f", "1", 1.0), changed("f", "2", 2.0), changed("f", "3", 3.0, is_done=False)]
        for there in ("2", "3"):
            self.assertEqual(self.found(made, {"f": there}, may_lose=None), (changes.Loss(), []))
        self.assertEqual(self.found([*made, changed("f", None, 4.0)], {}, may_lose=None), (changes.Loss(), []))

    def test_nothing_is_lost_where_the_old_primary_handed_over(self) -> None:
        made = [changed("f", "1", 1.0), changed("f", "2", 2.0)]
        self.assert_sees(self.found(made, {"f": "1"}, may_lose=None), "nothing may be lost")
        self.assert_sees(self.found(made, {}, may_lose=None), "nothing may be lost")
        self.assert_sees(self.found([changed("f", "1", 1.0), changed("f", None, 2.0)], {"f": "1"}, may_lose=None),
                         "nothing may be lost")

    def test_what_the_old_one_had_alone_may_be_lost_and_must_have_been_kept(self) -> None:
        made = [changed("f", "1", 1.0), changed("f", "2", 2.0), changed("f", "3", 3.0, is_done=False)]
        loss, found = self.found(made, {"f": "1"}, cut=1.5)
        self.assertEqual((found, [one.content for one in loss.changes], loss.to_keep), ([], ["2"], {"f": {"2", "3"}}))

    def test_but_neither_from_before_the_cut_nor_of_others_nor_what_the_report_denies(self) -> None:
        made = [changed("f", "1", 1.0), changed("f", "2", 2.0)]
        self.assert_sees(self.found(made, {"f": "1"}, cut=2.5), "changes from before are lost")
        self.assert_sees(self.found(made, {"f": "1"}, may_lose="b"), "not made on b")
        self.assert_sees(self.found(made, {"f": "1"}, amount=0), "nothing was lost")

    def test_what_nobody_wrote_is_seen(self) -> None:
        self.assert_sees(self.found([changed("f", "1", 1.0)], {"f": "half"}), "nobody wrote")
        self.assert_sees(self.found([], {"g": "1"}), "nobody made")

    def test_a_judge_that_believes_silence_complains(self) -> None:
        made = [changed("f", "1", 1.0), changed("f", "2", 2.0, is_done=False)]
        self.assert_sees(self.found(made, {"f": "1"}, may_lose=None, believes_silence=True), "nothing may be lost")


class Fronts(unittest.TestCase):
    """Who has the address, who answers there, and what runs where."""

    NAMES = {"0a": "a", "0b": "b"}
    BOTH = ["worker", "web"]

    def holders(self, *answers: tuple[int, str], pardoned: list[front.Span] = ()) -> list[str]:
        told = [Answer(number, number * 0.02, number * 0.02 + 0.001 * place, mac)
                for place, (number, mac) in enumerate(answers)]
        return front.holders(told, self.NAMES, ["a", "b"], list(pardoned))

    def test_the_address_goes_from_one_to_the_other(self) -> None:
        self.assertEqual(self.holders((1, "0a"), (2, "0a"), (40, "0b")), [])
        self.assertEqual(self.holders((40, "0b")), [])

    def test_never_both_and_never_back(self) -> None:
        self.assertIn("both have the address", self.holders((1, "0a"), (2, "0a"), (2, "0b"))[0])
        self.assertIn("a, then b, then a", self.holders((1, "0a"), (20, "0b"), (40, "0a"))[0])
        self.assertIn("0c", self.holders((1, "0a"), (20, "0c"))[0])

    def test_a_superseded_primary_is_pardoned_until_it_can_have_heard(self) -> None:
        answers = (1, "0a"), (20, "0a"), (20, "0b"), (40, "0b")
        self.assertEqual(self.holders(*answers, pardoned=[(0.3, 0.5)]), [])
        self.assertIn("both", self.holders(*answers, pardoned=[(0.5, 0.6)])[0])

    def test_an_epoch_that_was_superseded_is_not_heard_again(self) -> None:
        pages = [front.Page(1.0, 1.1, "a", "primary", (1, "a")), front.Page(2.0, 2.1, "b", "primary", (2, "b")),
                 front.Page(3.0, 3.1, "a", "primary", (1, "a"))]
        self.assertEqual(front.pages(pages[:2], []), [])
        self.assertIn("a answered in epoch (1, 'a')", front.pages(pages, [])[0])
        self.assertEqual(front.pages(pages, [(2.5, 3.5)]), [])
        self.assertIn("being fenced", front.pages([front.Page(1.0, 1.1, "a", "fenced", (1, "a"))], [])[0])

    def services(self, text: str, is_apart: bool = False) -> list[str]:
        lines = [line.split() for line in text.split(", ")]
        journal = [front.Entry(float(at), node, what, rest[0] if rest else "")
                   for at, (node, what, *rest) in enumerate(lines)]
        return front.services(journal, self.BOTH, "a", "b", 0.0, is_apart)

    def test_services_move_in_order(self) -> None:
        moved = "a start worker, a start web, a stop web, a stop worker, b start worker, b start web"
        self.assertEqual(self.services(moved), [])
        self.assertEqual(self.services("a start worker, a start web, a off, b start worker, b start web"), [])

    def test_another_order_and_both_at_once_are_seen(self) -> None:
        self.assertIn("a started web", self.services("a start web")[0])
        self.assertIn("a stopped worker", self.services("a start worker, a start web, a stop worker")[0])
        both = "a start worker, b start worker"
        self.assertIn("while a still ran", self.services(both)[0])
        self.assertEqual(self.services(both, is_apart=True), [])


class Figures(unittest.TestCase):
    """How runs become what `--json` prints."""

    def test_a_target_is_met_or_not_at_the_full_size_only(self) -> None:
        case = next(case for case in CASES if case.name == "few")
        rounds = [Round(Run({"applied": applied, "flushed": None}, wire_bytes=130), Run({"durable": 1.0}), 100)
                  for applied in (0.05, 9.0, 0.06)]
        time, wire = figures(Result(case, rounds), is_full_size=True)
        self.assertEqual(time, {"name": "few applied", "unit": "s", "ours": 0.06, "against": "rsync durable",
                                "against_value": 1.0, "ratio": 0.06, "target": 0.08, "met": True})
        self.assertEqual((wire["ratio"], wire["met"]), (1.3, False))
        self.assertEqual([figure["met"] for figure in figures(Result(case, rounds), is_full_size=False)], [None, None])

    def test_medians_bounds_and_what_is_only_told(self) -> None:
        class Swap(Case):
            name = "swap"
            measures = (Measure("window", "s", "script", 1.3), Measure("word", "s", "limit", 1.0, limit=0.5),
                        Measure("window", "s", "script", None, against_key="other"))

        samples = [{"window": window, "word": 0.6} for window in (0.2, 9.0, 0.3)]
        result = cases_report.Result(Swap, samples, [{"window": 0.25, "other": 0.1}])
        told = [(figure["ours"], figure["against_value"], figure["ratio"], figure["met"])
                for figure in cases_report.figures(result, is_full_size=True)]
        self.assertEqual(told, [(0.3, 0.25, 1.2, True), (0.6, 0.5, 1.2, False), (0.3, 0.1, 0.3 / 0.1, None)])
        quick = cases_report.figures(result, is_full_size=False)
        self.assertEqual([figure["met"] for figure in quick], [None] * 3)
        missing = cases_report.figures(cases_report.Result(Swap, [], [{"window": 0.25}]), is_full_size=True)
        self.assertEqual([(figure["ours"], figure["ratio"], figure["met"]) for figure in missing], [(None, None, None)] * 3)

    def test_of_what_there_should_be_more_a_target_is_the_least(self) -> None:
        class Rate(Case):
            name = "rate"
            measures = (Measure("rate", "/s", "peer", 1.0, is_floor=True),)

        told = [cases_report.figures(cases_report.Result(Rate, [{"rate": rate}], [{"rate": 100.0}]), True)[0]["met"]
                for rate in (99.0, 101.0)]
        self.assertEqual(told, [False, True])

    def test_a_version_shows_all_changes_up_to_its_own(self) -> None:
        changes = [(b"f", 1, 10.0), (b"f", 2, 11.0), (b"g", 3, 12.0)]
        self.assertEqual(_latencies(changes, [(b"f", 2, 13.0), (b"g", 3, 13.0)]), [3.0, 2.0, 1.0])
        with self.assertRaises(Unseen):
            _latencies(changes, [(b"f", 1, 13.0)])


if __name__ == "__main__":
    unittest.main()
