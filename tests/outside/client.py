"""Where psycopg2 is, and how a connection is made: at once, or not at all."""

import sys

from .binary import REPOSITORY

# What `scripts/setup --test` installs where Debian's package is not for the Python that runs.
sys.path.append(str(REPOSITORY / "target/tools/psycopg2"))
try:
    import psycopg2
except ImportError as error:
    raise SystemExit(f"{error}; `scripts/setup --test` installs it") from error

Error = psycopg2.Error


class Standby(Exception):
    """The server is a standby: there is nothing to write."""


def connect(sockets, application: str = "campaign"):
    """Connects to the server whose Unix socket is in the folder `sockets`; each statement commits by itself.

    A socket in the file system is reached from everywhere: a client stands at its node even when that is cut off.
    """
    connection = psycopg2.connect(
        host=str(sockets), user="postgres", dbname="postgres", application_name=application, connect_timeout=2)
    connection.autocommit = True
    return connection


def ask(sockets, sql: str, values: tuple = ()) -> list[tuple]:
    """Runs one statement on a connection of its own; returns the rows, if it has any."""
    connection = connect(sockets)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()
