"""What one timed run of one side has told."""

import statistics
from dataclasses import dataclass, field


@dataclass
class Run:
    """`seconds` has *flushed* and *applied* of ours, *wall* and *durable* of rsync."""

    seconds: dict[str, float | None]
    cpu_seconds: float | None = None
    wire_bytes: float | None = None
    # Of the sending and of the receiving side.
    rss_bytes: list[int] = field(default_factory=list)


@dataclass
class Round:
    """One change, carried over by both."""

    ours: Run
    rsync: Run | None = None
    # How many bytes the change made or touched, and how long making it took.
    content_bytes: int = 0
    change_seconds: float = 0.0


def median(values) -> float | None:
    """Returns the median; `None` when a value is missing, since it cannot be told then."""
    values = list(values)
    return None if not values or None in values else statistics.median(values)
