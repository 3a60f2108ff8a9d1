"""What was seen of a pair in one round. Moments are of `time.monotonic`, which everybody in a campaign shares."""

from dataclasses import dataclass, field

from tests.soak.hearing import CONTACT

from .linear import Operation


@dataclass(frozen=True)
class Claim:
    """What a node said of itself when it was asked at `asked`, and had answered at `told`."""

    node: str
    asked: float
    told: float
    role: str
    epoch: tuple[int, str]
    # Of writes: `held`, they are on the standby when they are acknowledged; `waiting`; `alone`.
    durability: str | None


@dataclass
class TakeOver:
    """A node took over from another."""

    old: str
    new: str
    # The word was given at `begun`, and the command came back at `ended`.
    begun: float
    ended: float
    # The old primary was asked, has stopped, and has handed over what it had.
    is_fenced: bool
    # The operator answered for it that the old one is off, whether it was or not.
    is_forced: bool
    # What the report says was lost: exactly so many operations, or nobody knows.
    lost: int | None
    # What the old primary kept aside when it came back.
    salvaged: bytes = b""
    # Operators have promoted both since then: what the old one has promised holds for nobody but itself and its standbys.
    overruled: float | None = None

    @property
    def is_clean(self) -> bool:
        return self.is_fenced and not self.is_forced


@dataclass
class Round:
    """Everything of one round; its keys are used in no other one."""

    may_degrade: bool
    operations: list[Operation] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    # When a node was killed, stopped or cut off; the last one may not have ended.
    troubles: list[tuple[float, float | None]] = field(default_factory=list)
    # When nothing passed between the nodes.
    cuts: list[tuple[float, float | None]] = field(default_factory=list)
    # A superseded primary that hears of it has this long to stop.
    contact: float = CONTACT
    change: TakeOver | None = None
    # What the clients themselves found to be wrong.
    seen: list[str] = field(default_factory=list)
    # Everything that is there in the end, as the clients name it.
    final: dict[str, str | int] = field(default_factory=dict)
    # The same by the other node.
    final_standby: dict[str, str | int] = field(default_factory=dict)
    # When it was read.
    ended: tuple[float, float] = (0.0, 0.0)
