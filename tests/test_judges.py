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
from tests.soak.files import judge
from tests.soak.files.mutator import CAPABILITIES, Mutator
from tests.soak.files.tagged import Ledger


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

    def test_a_version_shows_all_changes_up_to_its_own(self) -> None:
        changes = [(b"f", 1, 10.0), (b"f", 2, 11.0), (b"g", 3, 12.0)]
        self.assertEqual(_latencies(changes, [(b"f", 2, 13.0), (b"g", 3, 13.0)]), [3.0, 2.0, 1.0])
        with self.assertRaises(Unseen):
            _latencies(changes, [(b"f", 1, 13.0)])


if __name__ == "__main__":
    unittest.main()
