"""A pair of servers without any agent, and what a careful script does with them: the floor."""

from pathlib import Path

from tests.outside.postgres import BARE_SETTINGS, Server, until


class BarePair:
    """Two servers, one streaming to the other; which of them is primary changes."""

    def __init__(self, folder: Path) -> None:
        self.primary, self.standby = Server(folder / "x"), Server(folder / "y")
        self.primary.init_postgres(BARE_SETTINGS)
        self.primary.start()

    def join(self) -> None:
        self.standby.copy(self.primary.source())
        self.standby.follow(self.primary)
        self.standby.start()
        self.await_streaming()

    def await_streaming(self, patience: float = 60) -> float:
        """Waits until the primary streams to the standby, and returns the moment."""
        return until(f"{self.primary.name} streams to {self.standby.name}",
                     lambda: self.primary.streams_to(self.standby), patience)

    def switch_over(self) -> None:
        """Swaps the roles; no rewind is needed, since a fast stop ships the last checkpoint."""
        self.primary.ask("CHECKPOINT")
        self.primary.stop()
        self.standby.ctl("promote")
        self.swap()
        self.standby.follow(self.primary)
        self.standby.start()

    def rejoin(self) -> None:
        """Makes the former primary, which has crashed, a standby of the new one."""
        # Without it the new one's control file still shows the old timeline, and pg_rewind sees nothing to do.
        self.primary.ask("CHECKPOINT")
        self.standby.rewind(self.primary)
        self.standby.follow(self.primary)
        self.standby.start()

    def swap(self) -> None:
        """Notes that the roles have changed."""
        self.primary, self.standby = self.standby, self.primary

    def remove(self) -> None:
        for server in (self.primary, self.standby):
            server.remove()
