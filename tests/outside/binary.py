"""The program under test, and what this build of it can do."""

import os
import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class Binary:
    """The built program. `UNDERSTUDY_BIN` names one that is built already."""

    def __init__(self) -> None:
        given = os.environ.get("UNDERSTUDY_BIN")
        self.path = Path(given).resolve() if given else _build()
        if not os.access(self.path, os.X_OK):
            raise SystemExit(f"{self.path} cannot be executed")
        wait_help = self._help("wait")
        # Older builds lack them, and are worth measuring too.
        self.has_flushed = "--flushed" in wait_help
        self.has_store = "--store" in wait_help
        self._verbs = self._help()
        self.has_sync = self.has_verb("sync")

    def has_verb(self, name: str) -> bool:
        return f"\n  {name} " in self._verbs

    def _help(self, *verb: str) -> str:
        return subprocess.run([self.path, *verb, "--help"], capture_output=True, text=True, check=True).stdout

    def version(self) -> str:
        return subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _build() -> Path:
    """Lets cargo build what has changed; it finds by itself whether anything has."""
    cargo = shutil.which("cargo") or os.path.join(os.environ.get("CARGO_HOME", Path.home() / ".cargo"), "bin/cargo")
    # What it prints is progress, and standard output is for results.
    subprocess.run([cargo, "build", "--release", "--locked"], cwd=REPOSITORY, stdout=2, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")).resolve() / "release/understudy"
