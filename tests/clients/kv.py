"""`python3 -m tests.clients.kv`: redis-py, redis-cli and redis-benchmark against a pair of ours and one of Redis'.

Both answer the same script, and every answer of ours that is not Redis' is told.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.outside import redis_server
from tests.outside.binary import REPOSITORY, Binary
from tests.outside.kv import KvNode, KvPair
from tests.outside.pair import Failed
from tests.outside.redis_server import BENCHMARK, CLI, RedisPair

from . import script

PROTOCOLS = (2, 3)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.clients.kv", description=__doc__)
    parser.add_argument("--binary", type=Path, help="the built program (default: $UNDERSTUDY_BIN, or one is built)")
    arguments = parser.parse_args()
    if arguments.binary:
        os.environ["UNDERSTUDY_BIN"] = str(arguments.binary)
    if not redis_server.is_there():
        print("redis-server and its tools are missing; `scripts/setup --test` installs them", file=sys.stderr)
        return 2
    (REPOSITORY / "target").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="clients-", dir=REPOSITORY / "target"))
    ours = KvPair(Binary(), folder / "ours", {"standby_reads": True, "allow_flush": True})
    theirs = RedisPair(folder / "redis")
    try:
        theirs.begin("--databases", "1")
        ours.begin()
        asked, different = compare(ours, theirs)
    finally:
        ours.remove()
        theirs.remove()
        shutil.rmtree(folder, ignore_errors=True)
    for line in different:
        print(line)
    print(f"{asked} questions, {len(different)} answered differently")
    return 1 if different else 0


def compare(ours: KvPair, theirs: RedisPair) -> tuple[int, list[str]]:
    """Asks both pairs everything; returns how much, and where the answers differ."""
    asked, different = 0, []

    def note(where: str, our: str, their: str) -> None:
        nonlocal asked
        asked += 1
        if our != their:
            different.append(f"{where}\n  redis: {their}\n  ours:  {our}")

    for protocol in PROTOCOLS:
        clients = [script.client(port, protocol) for port in (ours.primary.kv_port, theirs.primary.port)]
        for step in script.steps():
            note(f"redis-py, RESP{protocol}: {step.name}", *(script.answer(step, one) for one in clients))
        for one in clients:
            one.set("kept", "here")
            one.hset("kept hash", "f", "here")
        ours.await_equal()
        theirs.await_equal()
        standbys = [script.client(port, protocol) for port in (ours.standby.kv_port, theirs.replica.port)]
        for step in script.standby_steps():
            note(f"redis-py, RESP{protocol}, standby: {step.name}", *(script.answer(step, one) for one in standbys))
        for one in clients:
            one.flushdb()
        for one in clients + standbys:
            one.close()
    for protocol in PROTOCOLS:
        our, their = (_cli(port, protocol) for port in (ours.primary.kv_port, theirs.primary.port))
        lines = script.CLI.splitlines()
        if len(our) == len(their):
            # An answer may have several lines; those that differ are told as they are.
            for at, pair in enumerate(zip(our, their)):
                note(f"redis-cli, RESP{protocol}, line {at + 1} of the answers", *pair)
        else:
            note(f"redis-cli, RESP{protocol}: {len(lines)} commands", "\n".join(our), "\n".join(their))
    for name, our, wanted in _verbs(ours):
        note(f"understudy kv {name}", our, wanted)
    note("redis-benchmark", *(_benchmark(port) for port in (ours.primary.kv_port, theirs.primary.port)))
    return asked, different


def _verbs(pair: KvPair) -> list[tuple[str, str, str]]:
    """Uses the command line beside a client: returns what was typed, what came of it, and what had to."""
    asked = script.client(pair.primary.kv_port, 3)

    def typed(node: KvNode, *words: str) -> str:
        try:
            return node.verb("kv", *words).strip()
        except Failed as failed:
            return f"refused: {'READONLY' in str(failed) or 'standby' in str(failed)}"

    told = [
        ("put", typed(pair.primary, "put", "verb", "one two"), "verb is set"),
        ("put, seen by a client", str(asked.get("verb")), "b'one two'"),
        ("get", typed(pair.primary, "get", "verb"), "one two"),
        ("put that expires", typed(pair.primary, "put", "passing", "x", "--expires", "1h"), "passing is set"),
        ("put that expires, seen by a client", str(3590 < asked.ttl("passing") <= 3600), "True"),
        ("scan", typed(pair.primary, "scan", "verb*", "--values"), "verb  one two"),
        ("put on a standby", typed(pair.standby, "put", "verb", "no"), "refused: True"),
        ("del", typed(pair.primary, "del", "verb", "passing", "none"), "2 of 3 keys removed"),
        ("del, seen by a client", str(asked.exists("verb", "passing")), "0"),
    ]
    asked.close()
    return told


def _cli(port: int, protocol: int) -> list[str]:
    """Returns what redis-cli shows for its script, line by line."""
    command = [CLI, "-p", str(port), f"-{protocol}", "--no-raw"]
    return subprocess.run(command, input=script.CLI, capture_output=True, text=True, timeout=60).stdout.splitlines()


def _benchmark(port: int) -> str:
    """Returns which tests of redis-benchmark came to their end."""
    command = [BENCHMARK, "-p", str(port), "-t", "ping,set,get,incr,hset,mset", "-n", "2000", "-c", "20", "-r", "1000",
               "-d", "100", "-P", "4", "--csv"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return f"{ended.returncode}: " + ", ".join(line.split(",")[0] for line in ended.stdout.splitlines())


if __name__ == "__main__":
    sys.exit(main())
