"""Waiting for a condition, with a deadline."""

import time

from .pair import Failed


def until(what: str, holds, patience: float = 60, interval: float = 0.005,
          failures: tuple[type[Exception], ...] = ()) -> float:
    """Waits until `holds` returns something true, and returns the moment; what fails meanwhile does not hold yet."""
    deadline = time.monotonic() + patience
    while True:
        trouble = ""
        try:
            if holds():
                return time.monotonic()
        except (Failed, OSError, *failures) as error:
            trouble = f"; {error}"
        if time.monotonic() > deadline:
            raise Failed(f"not within {patience:.0f} s: {what}{trouble}")
        time.sleep(interval)
