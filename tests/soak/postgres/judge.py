"""Says what of a history must not be. Pure: the same history, the same violations."""

from bisect import bisect_right
from collections import defaultdict

from tests.soak.hearing import CONTACT, could_hear

from .history import Ack, Claim, History, TakeOver

DIFFERENCES_TOLD = 5

# For so long after `held` was told, a commit still waits, whatever happens to the standby: the primary goes on alone
# after `degrade_after`, counted from the standby's last answer, which is at most three seconds old while it is held.
HELD_FOR = 1.0
# The cut is told in milliseconds.
CUT_GRAIN = 0.001


def lost(history: History, change: TakeOver, there: set[tuple[int, int]]) -> tuple[set[tuple[int, int]], list[str]]:
    """Compares what was acknowledged with what the new primary has; returns what is missing, and what should not be.

    Rows that the old primary acknowledged after it was superseded are its own affair: see [`two_writers`].
    """
    missing = [ack for ack in history.acks if ack.key not in there]
    found = []
    of_others = [ack for ack in missing if ack.node != change.old]
    if of_others:
        found.append(f"rows that {change.new} or somebody before {change.old} acknowledged are gone: "
                     f"{_told(of_others)}")
    missing = [ack for ack in missing if ack.node == change.old]
    keys = {ack.key for ack in missing}
    before = [ack for ack in missing if ack.acked <= change.begun]
    if change.is_fenced and not change.is_forced and missing:
        found.append(f"{change.old} had stopped and handed over, and rows are lost: {_told(missing)}")
    elif change.loss.amount == 0 and missing:
        found.append(f"the report says that nothing was lost, and rows are: {_told(missing)}")
    elif change.loss.amount is not None and before:
        span = max(ack.lsn for ack in before) - min(ack.lsn for ack in before)
        if span > change.loss.amount:
            found.append(f"the report says that {change.loss.amount} bytes were lost, and rows are lost over {span}: "
                         f"{_told(before)}")
    if change.loss.cut is not None:
        older = [ack for ack in missing if ack.acked < change.loss.cut - CUT_GRAIN]
        if older:
            found.append(f"everything up to the cut is there by the report, and rows from before are lost: "
                         f"{_told(older)}")
    held = [ack for ack in missing if is_held(ack, history.claims)
            and (change.overruled is None or ack.acked < change.overruled)]
    if held:
        found.append(f"rows are lost of which {change.old} had said that commits wait for a standby: {_told(held)}")
    return keys, found


def is_held(ack: Ack, claims: list[Claim]) -> bool:
    """Returns whether the node claimed, before the row was sent and until it was acknowledged, that commits wait."""
    own = [claim for claim in claims if claim.node == ack.node]
    at = bisect_right(own, ack.sent, key=lambda claim: claim.told)
    if at == 0:
        return False
    last = own[at - 1]
    between = [claim for claim in own[at:] if claim.asked <= ack.acked]
    return last.is_held and ack.acked <= last.told + HELD_FOR and all(claim.is_held for claim in between)


def two_writers(history: History, changes: list[TakeOver], contact: float = CONTACT) -> list[str]:
    """Returns where two nodes wrote in one epoch, or an old primary went on though it could hear of the new one."""
    found = []
    nodes = defaultdict(set)
    for ack in history.acks:
        nodes[ack.timeline].add(ack.node)
    for timeline, writers in sorted(nodes.items()):
        if len(writers) > 1:
            found.append(f"timeline {timeline} was written by {' and '.join(sorted(writers))}")
    for change, following in zip(changes, [*changes[1:], None]):
        until = following.begun if following else float("inf")
        firsts = [ack.acked for ack in history.acks if ack.node == change.new and change.begun <= ack.acked < until]
        if not firsts:
            continue
        first = min(firsts)
        late = [ack for ack in history.acks
                if ack.node == change.old and first < ack.sent and ack.acked < until
                and (change.is_fenced or could_hear(ack.sent, first, history.cuts, contact))]
        if late:
            why = "had been fenced" if change.is_fenced else "could hear of it"
            found.append(f"{change.old} took writes {late[-1].sent - first:.3f} s after the first of {change.new}, "
                         f"though it {why}: {_told(late)}")
    return found


def _told(acks: list[Ack]) -> str:
    first = min(acks, key=lambda ack: ack.acked)
    names = ", ".join(f"{ack.client}/{ack.number}" for ack in acks[:DIFFERENCES_TOLD])
    return (f"{len(acks)} ({names}{', …' if len(acks) > DIFFERENCES_TOLD else ''}), "
            f"the first acknowledged at {first.acked:.3f}")
