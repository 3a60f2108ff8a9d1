"""What was seen of a pair: rows that were acknowledged, what the nodes claimed, and who took over from whom.

Moments are of `time.monotonic`, which all clients, watchers and nodes of a campaign share.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ack:
    """A row that a server has acknowledged."""

    client: int
    number: int
    node: str
    # In which timeline it was written, and from where on: before its commit.
    timeline: int
    lsn: int
    sent: float
    acked: float

    @property
    def key(self) -> tuple[int, int]:
        return self.client, self.number


@dataclass(frozen=True)
class Claim:
    """What a node said of commits when it was asked at `asked`, and had answered at `told`."""

    node: str
    asked: float
    told: float
    is_held: bool


@dataclass(frozen=True)
class Loss:
    """What the report of a promotion says of the store."""

    # Exactly so many bytes, or nobody knows.
    amount: int | None
    # Everything that the old primary had by then is there.
    cut: float | None


@dataclass
class TakeOver:
    """A node took over from another."""

    old: str
    new: str
    # The word was given at `begun`, and the command came back at `ended`.
    begun: float
    ended: float
    # The old primary was asked and has stopped.
    is_fenced: bool
    # The operator did not wait for what the old one still had.
    is_forced: bool
    loss: Loss
    # Operators have promoted both since then: what the old one has promised holds for nobody but itself and its standbys.
    overruled: float | None = None


@dataclass
class History:
    """Everything that happened to a pair, in order."""

    acks: list[Ack] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    # When nothing passed between the nodes; the last one may not have ended.
    cuts: list[tuple[float, float | None]] = field(default_factory=list)
