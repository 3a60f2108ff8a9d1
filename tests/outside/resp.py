"""Redis' protocol over a socket, as small as a campaign needs it: no retries, nothing hidden."""

import socket

CHUNK_BYTES = 1 << 16


class RespError(Exception):
    """The server answered with an error."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class Closed(OSError):
    """The connection ended, or did not answer in time: what was asked for last may have come to be."""


def encode(*words: str | bytes | int) -> bytes:
    """Returns a command as it travels."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        raw = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


class Connection:
    """One connection; answers come in the order of what was sent."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()

    @classmethod
    def to(cls, port: int, timeout: float = 2, host: str = "127.0.0.1") -> "Connection":
        connected = socket.create_connection((host, port), timeout)
        connected.settimeout(timeout)
        return cls(connected)

    def patience(self, timeout: float) -> None:
        """Waits for so long for an answer, whatever was said when it connected."""
        self._socket.settimeout(timeout)

    def close(self) -> None:
        self._socket.close()

    def send(self, raw: bytes) -> None:
        try:
            self._socket.sendall(raw)
        except OSError as error:
            raise Closed(str(error)) from error

    def call(self, *words: str | bytes | int):
        """Sends a command; returns its answer, raises [`RespError`] when that is an error."""
        self.send(encode(*words))
        answer = self.read()
        if isinstance(answer, RespError):
            raise answer
        return answer

    def pipeline(self, commands: list[tuple]) -> list:
        """Sends commands at once; returns their answers, errors among them."""
        self.send(b"".join(encode(*words) for words in commands))
        return [self.read() for _ in commands]

    def read(self):
        """Reads one answer; an error is returned, not raised."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        match kind:
            case b"+":
                return rest.decode()
            case b"-":
                return RespError(rest.decode(errors="replace"))
            case b":":
                return int(rest)
            case b"$" | b"=":
                length = int(rest)
                return None if length < 0 else self._bytes(length)
            case b"*" | b"~" | b">":
                count = int(rest)
                return None if count < 0 else [self.read() for _ in range(count)]
            case b"%":
                return {_hashable(self.read()): self.read() for _ in range(int(rest))}
            case b"_":
                return None
            case b"#":
                return rest == b"t"
            case b",":
                return float(rest)
            case _:
                raise Closed(f"this is no answer: {line[:80]!r}")

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._receive()
        line = bytes(self._buffer[:end])
        del self._buffer[:end + 2]
        return line

    def _bytes(self, length: int) -> bytes:
        while len(self._buffer) < length + 2:
            self._receive()
        taken = bytes(self._buffer[:length])
        del self._buffer[:length + 2]
        return taken

    def _receive(self) -> None:
        try:
            received = self._socket.recv(CHUNK_BYTES)
        except OSError as error:
            raise Closed(str(error) or type(error).__name__) from error
        if not received:
            raise Closed("the connection was closed")
        self._buffer += received


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value


def everything(connection: Connection) -> dict[bytes, object]:
    """Returns all that a server has: strings as bytes, hashes as dictionaries."""
    told, cursor = {}, b"0"
    while True:
        cursor, keys = connection.call("SCAN", cursor, "COUNT", 500)
        kinds = connection.pipeline([("TYPE", key) for key in keys])
        values = connection.pipeline([("HGETALL" if kind == "hash" else "GET", key) for key, kind in zip(keys, kinds)])
        for key, kind, value in zip(keys, kinds, values):
            if isinstance(value, RespError):
                raise value
            told[key] = dict(zip(value[::2], value[1::2])) if kind == "hash" else value
        if cursor == b"0":
            # A key that went away between two questions is not there.
            return {key: value for key, value in told.items() if value not in (None, {})}
