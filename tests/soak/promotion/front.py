"""What must not be of what clients meet: who has the address, who answers there, and what runs where. Pure."""

from dataclasses import dataclass

from tests.outside.arp import Answer

DIFFERENCES_TOLD = 3

Span = tuple[float, float]


@dataclass(frozen=True)
class Page:
    """What the service has answered at the address."""

    asked: float
    heard: float
    node: str
    role: str
    epoch: tuple[int, str]


def is_within(moment: float, spans: list[Span]) -> bool:
    return any(start <= moment <= end for start, end in spans)


def holders(answers: list[Answer], names: dict[str, str], order: list[str], pardoned: list[Span]) -> list[str]:
    """Returns what must not be of who answers for the address: two at once, a stranger, or one that had given it up.

    `order` is who may have it in the round, one after the other; `pardoned` are the times in which a superseded
    primary has just come back to the cable.
    """
    found = []
    of_question: dict[int, dict[str, float]] = {}
    seen: list[str] = []
    for answer in sorted(answers, key=lambda one: one.heard):
        name = names.get(answer.mac, answer.mac)
        if is_within(answer.heard, pardoned):
            continue
        others = of_question.setdefault(answer.number, {})
        others[name] = answer.heard
        if len(others) > 1:
            found.append(f"{' and '.join(sorted(others))} both have the address at {answer.asked:.3f}")
        if not seen or seen[-1] != name:
            seen.append(name)
    if not pardoned and seen and not is_part(seen, order):
        found.append(f"the address was had by {', then '.join(seen)}; it may go from {' to '.join(order)}")
    return found[:DIFFERENCES_TOLD]


def is_part(seen: list[str], order: list[str]) -> bool:
    """Returns whether `seen` is `order`, perhaps without its beginning or its end."""
    return any(order[at:at + len(seen)] == seen for at in range(len(order)))


def pages(seen: list[Page], pardoned: list[Span]) -> list[str]:
    """Returns what must not be of what the service answered: no primary, or an epoch that had been superseded."""
    found = []
    newest: Page | None = None
    for page in sorted(seen, key=lambda one: one.heard):
        if is_within(page.heard, pardoned):
            continue
        # A node that is promoted once more, after a crash, has its services already.
        if page.role not in ("primary", "promoting"):
            found.append(f"{page.node} answered at the address at {page.heard:.3f}, being {page.role}")
        if newest and page.asked > newest.heard and page.epoch < newest.epoch:
            found.append(f"{page.node} answered in epoch {page.epoch} at {page.heard:.3f}, after {newest.node} had in "
                         f"{newest.epoch} at {newest.heard:.3f}")
        if newest is None or page.epoch > newest.epoch:
            newest = page
    return found[:DIFFERENCES_TOLD]


@dataclass(frozen=True)
class Entry:
    """A line of a node's journal, by the wall clock."""

    time: float
    node: str
    what: str
    service: str


def read(text: str, node: str) -> list[Entry]:
    lines = [line.split() for line in text.splitlines()]
    return [Entry(float(line[0]), node, line[1], line[2] if len(line) > 2 else "") for line in lines]


def services(journal: list[Entry], order: list[str], old: str, new: str, since: float, is_apart: bool) -> list[str]:
    """Returns what must not be of when services started and stopped: another order, or on both nodes at once.

    Where nobody could tell the old primary (`is_apart`), what it runs is its own affair.
    """
    found = []
    running: dict[str, list[str]] = {}
    for entry in sorted(journal, key=lambda one: one.time):
        up = running.setdefault(entry.node, [])
        if entry.what == "off":
            up.clear()
        elif entry.what == "start":
            if entry.service in up:
                # It had died, and is started again.
                continue
            before = order[:order.index(entry.service)]
            if [one for one in before if one not in up]:
                found.append(f"{entry.node} started {entry.service} at {entry.time:.3f}, and only {up} were up")
            others = [name for name, theirs in running.items() if name != entry.node and theirs]
            if others and not is_apart and entry.time >= since:
                found.append(f"{entry.node} started {entry.service} at {entry.time:.3f}, while {others[0]} still ran "
                             f"{running[others[0]]}")
            up.append(entry.service)
        elif entry.what == "stop":
            after = [one for one in order[order.index(entry.service) + 1:] if one in up]
            if after:
                found.append(f"{entry.node} stopped {entry.service} at {entry.time:.3f}, before {after}")
            if entry.service in up:
                up.remove(entry.service)
    return found[:DIFFERENCES_TOLD]
