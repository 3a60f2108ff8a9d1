"""A campaign in a world of its own: its networks, its mounts, and processes that do not outlive it."""

import os
import shutil
import sys

from tests.outside import bridge, isolation
from tests.outside.postgres import program

from .campaign import Campaign, Run


class IsolatedCampaign(Campaign):
    """One that compares with Postgres, between nodes that each have a network."""

    def lacks(self) -> str | None:
        return "networks of its own need root" if os.geteuid() else None

    def peers(self) -> dict[str, list]:
        return {"postgres": [program("postgres"), "--version"]}

    def prepare(self, run: Run) -> None:
        isolation.enter(run.folder)
        # A thread that waits for a server is to run when the server has answered, not when another one's turn ends.
        sys.setswitchinterval(0.0005)
        bridge.build()

    def remove(self, run: Run) -> None:
        for entry in isolation.WORK.iterdir():
            shutil.rmtree(entry, ignore_errors=True)
        run.folder.rmdir()
