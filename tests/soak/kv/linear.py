"""Says whether what clients saw of one key could have come from one copy that does one thing at a time.

Wing and Gong's search with just-in-time linearization (G. Lowe, "Testing for linearizability"): the history is gone
through by time, with the set of all states in which the key could be. An operation takes effect no sooner than it
must: when it returns, or when another one that returns needs it. States that differ in nothing that can matter any
more are one, so that the set collapses to the possible values whenever no operation is under way; this is what keeps
the search small, however long the history is.

An operation whose outcome nobody knows takes effect at any moment after its call, or never.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

NEVER = float("inf")
# No history of a few clients comes near; one that does is not called good.
STATES_MAX = 200_000


class Kind(Enum):
    """What an operation does to a key."""

    WRITE = "write"
    READ = "read"
    ADD = "add"


@dataclass(frozen=True)
class Operation:
    """What one client did to one key; moments are of `time.monotonic`."""

    client: int
    node: str
    key: str
    kind: Kind
    # What was written or read (`None`: the key is absent), or what a counter had after it was raised by one; `None`
    # for a counter of which nobody knows.
    value: str | int | None
    called: float
    # When it was acknowledged; `NEVER` for an operation whose outcome nobody knows.
    returned: float

    @property
    def is_known(self) -> bool:
        return self.returned != NEVER

    def __str__(self) -> str:
        returned = f"{self.returned:.6f}" if self.is_known else "unknown"
        what = f"{self.kind.value} {self.key} = {self.value}"
        return f"client {self.client} on {self.node}: {what} ({self.called:.6f} to {returned})"


class Undecided(Exception):
    """The history has too many explanations to go through them all."""


# What the key is, which operations have taken effect and not returned yet, a bit for each, and how many of a counter's
# unknown raises have: these are all the same, and the one that was called first might as well be the one that counts.
_Configuration = tuple[str | int | None, int, int]


def first_inexplicable(operations: Iterable[Operation]) -> Operation | None:
    """Returns the operation at whose return no order explains what was seen until then; `None` if all is well.

    The operations are those of one key, which was absent at first. Values that are written are unique.
    """
    configurations: set[_Configuration] = {(None, 0, 0)}
    # Which operation has which bit of a configuration.
    under_way: dict[int, Operation] = {}
    unknown_raises = 0
    for _, is_return, operation in _events(_relevant(list(operations))):
        if is_return:
            [bit] = [bit for bit, one in under_way.items() if one is operation]
            configurations = _with_effect(configurations, bit, under_way, unknown_raises)
            if not configurations:
                return operation
            del under_way[bit]
        elif operation.kind is Kind.ADD and not operation.is_known:
            unknown_raises += 1
        else:
            under_way[next(bit for bit in range(len(under_way) + 1) if bit not in under_way)] = operation
    return None


def _relevant(operations: list[Operation]) -> list[Operation]:
    """Leaves out what cannot matter: unknown reads, and unknown writes of what nobody has seen.

    Such a write can only hide what others have written; an explanation with it is one without it.
    """
    seen = {one.value for one in operations if one.kind is Kind.READ and one.is_known}
    return [one for one in operations
            if one.is_known or one.kind is Kind.ADD or one.kind is Kind.WRITE and one.value in seen]


def _events(operations: list[Operation]) -> list[tuple[float, bool, Operation]]:
    """Returns calls and returns by time; at the same moment calls come first, which allows more."""
    events = [(one.called, False, one) for one in operations]
    events += [(one.returned, True, one) for one in operations if one.is_known]
    return sorted(events, key=lambda event: event[:2])


def _with_effect(configurations: set[_Configuration], bit: int, under_way: dict[int, Operation],
                 unknown_raises: int) -> set[_Configuration]:
    """Returns the configurations in which that operation has taken effect, without it: it has returned."""
    reached, found, open_ = set(configurations), set(), list(configurations)
    while open_:
        state, effective, raised = open_.pop()
        if effective >> bit & 1:
            found.add((state, effective & ~(1 << bit), raised))
            continue
        following = [(after, effective | 1 << other, raised) for other, operation in under_way.items()
                     if not effective >> other & 1 for after in _after(state, operation)]
        if raised < unknown_raises:
            following.append(((state or 0) + 1, effective, raised + 1))
        for configuration in following:
            if configuration not in reached:
                reached.add(configuration)
                open_.append(configuration)
        if len(reached) > STATES_MAX:
            raise Undecided(f"more than {STATES_MAX} explanations of {under_way[bit]}")
    return found


def _after(state: str | int | None, operation: Operation) -> list[str | int | None]:
    """Returns the state after the operation if it can have been the next one; nothing if it cannot."""
    match operation.kind:
        case Kind.WRITE:
            return [operation.value]
        case Kind.READ:
            return [state] if state == operation.value else []
        case Kind.ADD:
            after = (state or 0) + 1
            return [after] if operation.value in (None, after) else []
