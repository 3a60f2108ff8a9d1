"""The judges of `scripts/soak` and `scripts/bench` must see what they are there to see."""

import os
import random
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from benches.files.cases import CASES
from benches.files.compare import Different, assert_equal
from benches.files.measured import Round, Run
from benches.files.report import Result, figures
from benches.files.stream import Unseen, _latencies
from benches.postgres import report as postgres_report
from benches.postgres.case import Case as PostgresCase
from benches.postgres.case import Measure
from tests.soak.files import judge
from tests.soak.files.mutator import CAPABILITIES, Mutator
from tests.soak.files.tagged import Ledger
from tests.soak.postgres import judge as postgres_judge
from tests.soak.postgres.history import Ack, Claim, History, Loss, TakeOver


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

    def test_postgres_medians_bounds_and_what_is_only_told(self) -> None:
        class Swap(PostgresCase):
            name = "swap"
            measures = (Measure("window", "s", "script", 1.3), Measure("word", "s", "limit", 1.0, limit=0.5),
                        Measure("window", "s", "script", None, against_key="other"))

        samples = [{"window": window, "word": 0.6} for window in (0.2, 9.0, 0.3)]
        result = postgres_report.Result(Swap, samples, [{"window": 0.25, "other": 0.1}])
        told = [(figure["ours"], figure["against_value"], figure["ratio"], figure["met"])
                for figure in postgres_report.figures(result, is_full_size=True)]
        self.assertEqual(told, [(0.3, 0.25, 1.2, True), (0.6, 0.5, 1.2, False), (0.3, 0.1, 0.3 / 0.1, None)])
        quick = postgres_report.figures(result, is_full_size=False)
        self.assertEqual([figure["met"] for figure in quick], [None] * 3)
        missing = postgres_report.figures(postgres_report.Result(Swap, [], [{"window": 0.25}]), is_full_size=True)
        self.assertEqual([(figure["ours"], figure["ratio"], figure["met"]) for figure in missing], [(None, None, None)] * 3)

    def test_a_version_shows_all_changes_up_to_its_own(self) -> None:
        changes = [(b"f", 1, 10.0), (b"f", 2, 11.0), (b"g", 3, 12.0)]
        self.assertEqual(_latencies(changes, [(b"f", 2, 13.0), (b"g", 3, 13.0)]), [3.0, 2.0, 1.0])
        with self.assertRaises(Unseen):
            _latencies(changes, [(b"f", 1, 13.0)])


if __name__ == "__main__":
    unittest.main()
