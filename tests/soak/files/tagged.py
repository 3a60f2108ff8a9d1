"""Small files that tell by themselves whether they are whole.

A file whose name starts with `t` is only ever empty or one whole content, whenever one looks at the
primary. So the same must hold on the standby, whenever one looks there.
"""

import hashlib
import os
import random

PREFIX = b"t"
_DIGEST_BYTES = 16
_BODY_BYTES_MAX = 24 * 1024


class Ledger:
    """Makes tagged contents, and remembers which there have been."""

    def __init__(self) -> None:
        self._written: set[bytes] = set()

    def content(self, rng: random.Random) -> bytes:
        body = rng.randbytes(rng.randrange(_BODY_BYTES_MAX))
        digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
        self._written.add(digest)
        return digest + body

    def faults(self, top: bytes) -> list[str]:
        """Returns the tagged files beneath `top` that are no whole version that was ever written."""
        found = []
        for folder, folders, names in os.walk(top):
            if folder == top and b".understudy" in folders:
                folders.remove(b".understudy")
            for name in names:
                path = os.path.join(folder, name)
                if name.startswith(PREFIX) and not os.path.islink(path):
                    fault = self._fault(path)
                    if fault:
                        found.append(f"{path!r}: {fault}")
        return found

    def _fault(self, path: bytes) -> str | None:
        with open(path, "rb") as file:
            content = file.read()
        if not content:
            return None
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
            return f"{len(content)} bytes that are not one whole version"
        return None if digest in self._written else "a version that the primary never had"
