"""Every command that the store knows, as redis-py and redis-cli ask for it.

A step is asked of both servers, and its answers are compared: what Redis says is what is right.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.outside.binary import REPOSITORY

# What `scripts/setup --test` installs.
sys.path.insert(0, str(REPOSITORY / "target/tools/redis"))
try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise SystemExit(f"{error}; `scripts/setup --test` installs it") from error


@dataclass(frozen=True)
class Step:
    """Something to ask, and a name for it."""

    name: str
    ask: Callable[[redis.Redis], object]


def client(port: int, protocol: int, **settings) -> redis.Redis:
    """Returns a client that repeats nothing by itself."""
    return redis.Redis(port=port, protocol=protocol, socket_timeout=10, retry=Retry(NoBackoff(), 0), **settings)


def answer(step: Step, asked: redis.Redis) -> str:
    """Returns what came of a step, errors too, in a form that can be compared."""
    try:
        return repr(_ordered(step.ask(asked)))
    except redis.RedisError as error:
        return f"{type(error).__name__}: {error}"


def _ordered(value):
    """Gives what has no order one."""
    if isinstance(value, dict):
        return sorted(value.items(), key=repr)
    if isinstance(value, set):
        return sorted(value, key=repr)
    return value


def steps() -> list[Step]:
    """Returns the script; it begins and ends with nothing there."""
    return [step for part in (_connection, _strings, _numbers, _expiry, _keys, _hashes, _transactions, _replication)
            for step in part()] + [Step("flushdb", lambda r: r.flushdb()), Step("nothing is left", lambda r: r.dbsize())]


def standby_steps() -> list[Step]:
    """Returns what is asked of a standby that may answer reads, and has `kept`."""
    return [
        Step("get", lambda r: r.get("kept")),
        Step("hgetall", lambda r: r.hgetall("kept hash")),
        Step("set", lambda r: r.set("kept", "no")),
        Step("incr", lambda r: r.incr("kept")),
        Step("hset", lambda r: r.hset("kept hash", "f", "no")),
        Step("del", lambda r: r.delete("kept")),
        Step("expire", lambda r: r.expire("kept", 100)),
        Step("flushdb", lambda r: r.flushdb()),
        Step("multi with a write", lambda r: r.pipeline().set("kept", "no").execute()),
        Step("multi with reads", lambda r: r.pipeline().get("kept").dbsize().execute()),
        Step("ttl", lambda r: r.ttl("kept")),
        Step("scan", lambda r: sorted(r.scan_iter())),
        Step("role in info", lambda r: r.info("replication")["role"]),
    ]


def _raw(*words: str) -> Step:
    return Step(" ".join(words), lambda r: r.execute_command(*words))


def _connection() -> list[Step]:
    return [
        Step("ping", lambda r: r.ping()),
        _raw("PING", "hello"),
        _raw("ECHO", "hello"),
        _raw("SELECT", "0"),
        _raw("SELECT", "1"),
        _raw("SELECT", "x"),
        _raw("AUTH", "secret"),
        Step("hello", lambda r: {"server", "version", "proto", "id", "mode", "role", "modules"}
             <= _names(r.execute_command("HELLO"))),
        _raw("HELLO", "9"),
        Step("client setname, getname", lambda r: _alone(r, lambda one: (
            one.execute_command("CLIENT", "SETNAME", "me"), one.execute_command("CLIENT", "GETNAME")))),
        _raw("CLIENT", "SETNAME", "with space"),
        Step("client id", lambda r: r.client_id() > 0),
        Step("command count", lambda r: r.command_count() > 30),
        Step("command info", lambda r: r.execute_command("COMMAND", "INFO", "get") is not None),
        Step("info", lambda r: {"redis_version", "role", "connected_clients", "used_memory"} <= r.info().keys()),
        Step("info keyspace", lambda r: r.info("keyspace")),
        _raw("NOSUCHCOMMAND", "a", "b"),
        _raw("GET"),
        _raw("SET", "a"),
        _raw("CLIENT", "NOSUCHTHING"),
    ]


def _strings() -> list[Step]:
    return [
        Step("get nothing", lambda r: r.get("a")),
        Step("set", lambda r: r.set("a", "1")),
        Step("get", lambda r: r.get("a")),
        Step("set nx", lambda r: (r.set("a", "2", nx=True), r.set("b", "2", nx=True))),
        Step("set xx", lambda r: (r.set("a", "3", xx=True), r.set("none", "3", xx=True), r.get("none"))),
        Step("set get", lambda r: (r.set("a", "4", get=True), r.set("new", "1", get=True), r.get("a"))),
        Step("set nx get", lambda r: r.execute_command("SET", "a", "5", "NX", "GET")),
        Step("set nx xx", lambda r: r.execute_command("SET", "a", "5", "NX", "XX")),
        Step("set with words that are none", lambda r: r.execute_command("SET", "a", "5", "SOON")),
        Step("setnx", lambda r: (r.setnx("a", "6"), r.setnx("c", "6"))),
        Step("mset, mget", lambda r: (r.mset({"m1": "x", "m2": "y"}), r.mget("m1", "none", "m2"))),
        _raw("MSET", "m1"),
        Step("append, strlen", lambda r: (r.append("c", "789"), r.append("fresh", "x"), r.strlen("c"), r.strlen("none"))),
        Step("bytes of any kind", lambda r: (r.set(b"\x00\xff\r\n", bytes(range(256))), r.get(b"\x00\xff\r\n"))),
        Step("empty", lambda r: (r.set("", ""), r.get(""), r.exists(""))),
        Step("unicode", lambda r: (r.set("ключ", "значение"), r.get("ключ").decode())),
        Step("a long value", lambda r: (r.set("long", "x" * 1_000_000), r.strlen("long"), len(r.get("long")))),
        Step("exists", lambda r: (r.exists("a"), r.exists("a", "a", "none", "b"))),
        Step("type", lambda r: (r.type("a"), r.type("none"))),
        Step("del, unlink", lambda r: (r.delete("a", "none", "b"), r.unlink("long", "c"), r.delete("none"))),
    ]


def _numbers() -> list[Step]:
    return [
        Step("incr", lambda r: (r.incr("n"), r.incr("n"), r.get("n"))),
        Step("incrby, decr, decrby", lambda r: (r.incrby("n", 40), r.decr("n"), r.decrby("n", 50))),
        Step("incr of a text", lambda r: (r.set("text", "abc"), r.incr("text"))),
        Step("incr at the end", lambda r: (r.set("n", 2**63 - 1), r.incr("n"))),
        Step("decr at the end", lambda r: (r.set("n", -(2**63)), r.decr("n"))),
        _raw("INCRBY", "n", "1.5"),
        _raw("DECRBY", "n", "-9223372036854775808"),
        Step("incr of what only looks like a number", lambda r: (r.set("n", "01"), r.incr("n"))),
        Step("gone", lambda r: r.delete("n", "text")),
    ]


def _expiry() -> list[Step]:
    return [
        Step("set ex", lambda r: (r.set("e", "1", ex=100), 95 < r.ttl("e") <= 100)),
        Step("set px", lambda r: (r.set("e", "1", px=100_000), 95_000 < r.pttl("e") <= 100_000)),
        Step("set takes the expiry away", lambda r: (r.set("e", "2"), r.ttl("e"))),
        Step("set keepttl", lambda r: (r.set("e", "1", ex=100), r.set("e", "2", keepttl=True), r.ttl("e") > 95)),
        Step("incr keeps the expiry", lambda r: (r.incr("e"), r.ttl("e") > 95)),
        Step("persist", lambda r: (r.persist("e"), r.ttl("e"), r.persist("e"), r.persist("none"))),
        Step("expire, pexpire", lambda r: (r.expire("e", 50), 45 < r.ttl("e") <= 50, r.pexpire("e", 60_000),
                                           55 < r.ttl("e") <= 60, r.expire("none", 5))),
        Step("ttl of what does not expire or is not",
             lambda r: (r.set("f", 1), r.ttl("f"), r.pttl("f"), r.ttl("none"), r.pttl("none"))),
        Step("expire in the past", lambda r: (r.expire("f", -1), r.exists("f"))),
        _raw("SET", "e", "1", "EX", "0"),
        _raw("SET", "e", "1", "EX", "-5"),
        _raw("SET", "e", "1", "EX", "abc"),
        _raw("SET", "e", "1", "EX", "5", "KEEPTTL"),
        _raw("EXPIRE", "e", "abc"),
        _raw("EXPIRE", "e", "9223372036854775807"),
        Step("it goes", lambda r: (r.set("short", 1, px=30), _gone(r, "short"), r.ttl("short"), r.dbsize() > 0)),
        Step("a hash goes", lambda r: (r.hset("short", "f", 1), r.pexpire("short", 30), _gone(r, "short"),
                                       r.hgetall("short"))),
        Step("gone", lambda r: r.delete("e", "f")),
    ]


def _keys() -> list[Step]:
    return [
        Step("many", lambda r: r.mset({f"many:{number}": number for number in range(300)})),
        Step("scan", lambda r: len(set(r.scan_iter(count=7)))),
        Step("scan match", lambda r: sorted(r.scan_iter(match="many:1?", count=1000))),
        Step("scan match classes", lambda r: sorted(r.scan_iter(match="many:[1-3]*[05]", count=50))),
        Step("scan match nothing", lambda r: list(r.scan_iter(match="nothing*"))),
        Step("scan is complete", lambda r: len(list(r.scan_iter(match="many:*", count=10)))),
        _raw("SCAN", "abc"),
        _raw("SCAN", "0", "COUNT", "0"),
        _raw("SCAN", "0", "COUNT"),
        Step("dbsize", lambda r: r.dbsize()),
        Step("gone", lambda r: r.delete(*(f"many:{number}" for number in range(300)))),
    ]


def _hashes() -> list[Step]:
    return [
        Step("hset", lambda r: (r.hset("h", "f", "1"), r.hset("h", "f", "2"), r.hset("h", mapping={"g": "3", "i": "4"}))),
        Step("hget", lambda r: (r.hget("h", "f"), r.hget("h", "none"), r.hget("none", "f"))),
        Step("hmget", lambda r: r.hmget("h", "f", "none", "g")),
        Step("hgetall", lambda r: (sorted(r.hgetall("h").items()), r.hgetall("none"))),
        Step("hlen, hexists", lambda r: (r.hlen("h"), r.hlen("none"), r.hexists("h", "f"), r.hexists("h", "none"))),
        Step("hincrby", lambda r: (r.hincrby("h", "n", 5), r.hincrby("h", "n", -7), r.hincrby("fresh hash", "n", 1))),
        Step("hincrby of a text", lambda r: (r.hset("h", "t", "abc"), r.hincrby("h", "t", 1))),
        Step("hincrby at the end", lambda r: (r.hset("h", "t", 2**63 - 1), r.hincrby("h", "t", 1))),
        Step("type", lambda r: r.type("h")),
        Step("get of a hash", lambda r: r.get("h")),
        Step("incr of a hash", lambda r: r.incr("h")),
        Step("append to a hash", lambda r: r.append("h", "x")),
        Step("strlen of a hash", lambda r: r.strlen("h")),
        Step("mget of a hash", lambda r: r.mget("h")),
        Step("hset of a string", lambda r: (r.set("s", "1"), r.hset("s", "f", "1"))),
        Step("hgetall of a string", lambda r: r.hgetall("s")),
        Step("set get of a hash", lambda r: r.set("h", "x", get=True)),
        _raw("HSET", "h", "f"),
        _raw("HINCRBY", "h", "n", "x"),
        Step("hdel", lambda r: (r.hdel("h", "f", "none"), r.hdel("none", "f"), r.hlen("h"))),
        Step("the key goes with its last field", lambda r: (r.hset("one", "f", 1), r.hdel("one", "f"), r.exists("one"))),
        Step("a hash may become a string", lambda r: (r.set("h", "x"), r.type("h"))),
        Step("gone", lambda r: r.delete("h", "s", "fresh hash")),
    ]


def _transactions() -> list[Step]:
    def watched(r: redis.Redis, is_disturbed: bool):
        pipe = r.pipeline()
        pipe.watch("w")
        if is_disturbed:
            r.set("w", "other")
        pipe.multi()
        pipe.set("w", "mine")
        return pipe.execute(), r.get("w")

    def discarded(one):
        return (one.execute_command("MULTI"), one.execute_command("SET", "d", 1), one.execute_command("DISCARD"),
                one.execute_command("GET", "d"))

    def aborted(one):
        one.execute_command("MULTI")
        try:
            one.execute_command("NOSUCHCOMMAND")
        except redis.ResponseError:
            pass
        return one.execute_command("EXEC")

    return [
        Step("multi, exec", lambda r: r.pipeline().set("t", 1).incr("t").get("t").hset("th", "f", 1).execute()),
        Step("an error within does not undo the others", lambda r: (
            r.pipeline().set("t", "x").incr("t").set("u", 1).execute(raise_on_error=False)[1:3:2], r.get("t"), r.get("u"))),
        Step("watch", lambda r: watched(r, False)),
        Step("watch of what changes", lambda r: watched(r, True)),
        Step("unwatch", lambda r: _alone(r, lambda one: (one.execute_command("WATCH", "w"), one.execute_command("UNWATCH")))),
        Step("discard", lambda r: _alone(r, discarded)),
        Step("exec after a mistake", lambda r: _alone(r, aborted)),
        _raw("EXEC"),
        _raw("DISCARD"),
        Step("multi twice", lambda r: _alone(r, lambda one: [one.execute_command("MULTI") for _ in range(2)])),
        Step("watch within", lambda r: _alone(r, lambda one: [one.execute_command(*words.split())
                                                               for words in ("MULTI", "WATCH w")])),
        Step("many at once, not together", lambda r: r.pipeline(transaction=False).set("p", 1).get("p").incr("p").execute()),
        Step("gone", lambda r: r.delete("t", "u", "w", "th", "p")),
    ]


def _replication() -> list[Step]:
    return [
        Step("wait", lambda r: (r.set("r", 1), r.wait(1, 2000))),
        Step("wait for more than there are", lambda r: (r.set("r", 2), r.wait(5, 50))),
        _raw("WAIT", "-1", "0"),
        _raw("WAIT", "1", "x"),
        Step("role in info", lambda r: r.info("replication")["role"]),
        Step("standbys in info", lambda r: r.info("replication")["connected_slaves"]),
    ]


def _names(told) -> set[str]:
    """Returns the names in a map, which RESP2 sends as a list."""
    names = told.keys() if isinstance(told, dict) else told[::2]
    return {name.decode() if isinstance(name, bytes) else name for name in names}


def _alone(r: redis.Redis, ask):
    """Asks on a connection of its own, which is left behind as it is."""
    settings = r.connection_pool.connection_kwargs
    one = client(settings["port"], settings["protocol"], single_connection_client=True)
    try:
        return ask(one)
    finally:
        one.connection_pool.disconnect()
        one.connection = None


def _gone(r: redis.Redis, key: str, patience: float = 5) -> bool:
    deadline = time.monotonic() + patience
    while r.exists(key):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


CLI = r"""PING
SET cli "a b\x00c"
GET cli
GET none
INCR cli
SET n 41
INCR n
MSET a 1 b 2
MGET a none b
HSET h f 1 g 2
HGETALL h
HLEN h
TYPE h
EXISTS a b none
EXPIRE a 100
PERSIST a
TTL a
SETNX a 2
APPEND a xyz
STRLEN a
MULTI
SET t 1
INCR t
HGET h f
EXEC
MULTI
SET t 1
DISCARD
SCAN 0 MATCH none COUNT 100
DBSIZE
NOSUCHCOMMAND
GET
HINCRBY h f 10
HDEL h f g
EXISTS h
WAIT 1 1000
DECR n
DECRBY n 10
INCRBY n 5
UNLINK a b
DEL cli n t a
DBSIZE
"""
