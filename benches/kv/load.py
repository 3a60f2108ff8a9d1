"""Clients that ask as fast as they are answered: processes with a few connections each, requests made beforehand.

The same clients drive both servers. What they cost themselves is told by [`ceiling`].
"""

import multiprocessing
import os
import random
import select
import socket
import statistics
import threading
import time

from tests.outside.resp import encode

OK = b"+OK\r\n"
PROCESSES = 2
# How many requests a process has made beforehand; then it begins anew.
REQUESTS = 1 << 14
CHUNK = 500


class Unexpected(Exception):
    """A server answered something else."""


def key(number: int) -> str:
    """Returns a key as redis-benchmark names them."""
    return f"key:{number:012d}"


def sets(keys: int, value_bytes: int, suffix: bytes = b"", seed: int | None = None) -> list[bytes]:
    """Returns requests that set random keys to random bytes, each with `suffix` in the same packet."""
    rng = random.Random(seed)
    return [encode("SET", key(rng.randrange(keys)), rng.randbytes(value_bytes)) + suffix for _ in range(REQUESTS)]


def throughput(port: int, clients: int, keys: int, value_bytes: int, seconds: float, suffix: bytes = b"",
               answer: bytes = OK) -> float:
    """Returns how many requests a second so many clients got answered, each waiting for one before the next."""
    share = min(PROCESSES, clients)
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(share + 1), context.SimpleQueue()
    workers = [context.Process(target=_work, args=(port, clients // share, keys, value_bytes, seconds, suffix, answer,
                                                   start, results), daemon=True) for _ in range(share)]
    for worker in workers:
        worker.start()
    start.wait(60)
    for worker in workers:
        worker.join(seconds + 60)
    told = [results.get() for worker in workers if worker.exitcode == 0]
    if len(told) < share:
        raise Unexpected("a client has failed, see above")
    return sum(told)


def _work(port: int, clients: int, keys: int, value_bytes: int, seconds: float, suffix: bytes, answer: bytes,
          start, results) -> None:
    requests = sets(keys, value_bytes, suffix)
    connections = [_connect(port) for _ in range(clients)]
    poll = select.epoll()
    for one in connections:
        poll.register(one.fileno(), select.EPOLLIN)
    partial = dict.fromkeys((one.fileno() for one in connections), b"")
    start.wait(60)
    done = at = 0
    for one in connections:
        one.sendall(requests[at % REQUESTS])
        at += 1
    begun = time.monotonic()
    deadline, now = begun + seconds, begun
    read, write, length = os.read, os.write, len(answer)
    while now < deadline:
        for fd, _ in poll.poll(1):
            got = read(fd, 4096)
            if got != answer:
                # In pieces, or something else.
                got = partial[fd] + got
                if len(got) < length and answer.startswith(got) and got:
                    partial[fd] = got
                    continue
                if got != answer:
                    raise Unexpected(f"instead of {answer!r}: {got[:200]!r}")
                partial[fd] = b""
            write(fd, requests[at % REQUESTS])
            at += 1
            done += 1
        now = time.monotonic()
    results.put(done / (now - begun))


def latencies(port: int, keys: int, value_bytes: int, seconds: float, suffix: bytes = b"",
              answer: bytes = OK) -> list[float]:
    """Returns how long each request of one client took, in seconds."""
    requests = sets(keys, value_bytes, suffix)
    connection, told = _connect(port), []
    begun = time.monotonic()
    while time.monotonic() < begun + seconds:
        sent = time.perf_counter()
        connection.sendall(requests[len(told) % REQUESTS])
        got = b""
        while len(got) < len(answer):
            got += (more := connection.recv(4096))
            if not more:
                raise Unexpected("the connection was closed")
        told.append(time.perf_counter() - sent)
        if got != answer:
            raise Unexpected(f"instead of {answer!r}: {got[:200]!r}")
    connection.close()
    return told


def fill(port: int, numbers: range, value_bytes: int, seed: int = 1) -> None:
    """Sets keys, many requests on their way at once."""
    connection, rng = _connect(port), random.Random(seed)
    for at in range(0, len(numbers), CHUNK):
        chunk = numbers[at:at + CHUNK]
        connection.sendall(b"".join(encode("SET", key(number), rng.randbytes(value_bytes)) for number in chunk))
        got = b""
        while len(got) < len(chunk) * len(OK) and b"-" not in got:
            got += (more := connection.recv(1 << 16))
            if not more:
                break
        if got != OK * len(chunk):
            raise Unexpected(f"while filling: {got[:200]!r}")
    connection.close()


def ceiling(clients: int, seconds: float, value_bytes: int) -> float:
    """Returns how many requests a second the clients make of a server that does nothing; they can make more."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=clients)
    process = multiprocessing.get_context("fork").Process(target=_answer, args=(listener, clients), daemon=True)
    process.start()
    try:
        return throughput(listener.getsockname()[1], clients, 1000, value_bytes, seconds)
    finally:
        process.terminate()
        process.join()
        listener.close()


def _answer(listener: socket.socket, clients: int) -> None:
    poll = select.epoll()
    connections = [listener.accept()[0] for _ in range(clients)]
    for one in connections:
        poll.register(one.fileno(), select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            try:
                os.read(fd, 4096) and os.write(fd, OK)
            except OSError:
                # The client has what it wanted to know.
                poll.unregister(fd)


def _connect(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), 10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def round_trip(seconds: float = 1.0) -> float:
    """Returns the median time of a byte to another thread's socket and back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo() -> None:
        connection, _ = listener.accept()
        while got := connection.recv(64):
            connection.sendall(got)

    threading.Thread(target=echo, daemon=True).start()
    connection, told = _connect(listener.getsockname()[1]), []
    begun = time.monotonic()
    while time.monotonic() < begun + seconds:
        sent = time.perf_counter()
        connection.sendall(b".")
        connection.recv(64)
        told.append(time.perf_counter() - sent)
    connection.close()
    listener.close()
    return statistics.median(told)
