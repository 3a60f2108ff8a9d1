"""pgbench: rows to copy, and clients that keep a server busy."""

import subprocess
from contextlib import contextmanager

from tests.outside.postgres import PORT, Machine, as_postgres, program


def command(machine: Machine, *arguments) -> list:
    """Returns a pgbench of that machine."""
    pgbench = [program("pgbench"), "-h", machine.sockets, "-p", str(PORT), "-U", "postgres"]
    return machine.plug.within(as_postgres([*pgbench, *map(str, arguments), "postgres"]))


def fill(machine: Machine, scale: int) -> None:
    """Makes about 15 MB for each step of `scale`, and leaves nothing of it to be written later."""
    subprocess.run(command(machine, "-i", "-q", "-s", scale), cwd="/", check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    settle(machine)


def settle(machine: Machine) -> None:
    machine.ask("CHECKPOINT")
    subprocess.run(["sync", "-f", machine.folder], check=True)


@contextmanager
def clients(machine: Machine, count: int):
    """Keeps clients busy there; they end with the server, or afterwards."""
    if count == 0:
        yield
        return
    running = subprocess.Popen(command(machine, "-n", "-c", count, "-T", 600), cwd="/", stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.kill()
        running.wait()
