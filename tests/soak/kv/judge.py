"""Says what of a round must not be. Pure: the same round, the same violations."""

from collections import defaultdict
from dataclasses import replace

from tests.soak.hearing import could_hear

from .history import Claim, Round, TakeOver
from .linear import NEVER, Kind, Operation, Undecided, first_inexplicable

DIFFERENCES_TOLD = 5
# Who reads in the end.
JUDGE = -1
# A primary that says that writes are on the standby, and whose standby nobody touches, will not be alone this soon.
HELD_FOR = 0.5
# Before such a word nothing may have gone wrong for this long, lest the patience of a write is nearly over.
CALM = 0.3
# A cable is cut this soon after the word.
CUT_TAKES = 1.0


def violations(seen: Round) -> list[str]:
    """Returns what of the round must not be."""
    found = list(seen.seen)
    found += differences("all is quiet, and the standby has something else", seen.final, seen.final_standby)
    main, alone = branches(seen)
    found += _inexplicable(_with_end(main, seen), "")
    if seen.change:
        found += _inexplicable(alone, f", for {seen.change.old} by itself")
        found += _lost(seen, seen.change)
    found += two_writers(seen)
    # Whoever has just been promoted has nobody yet who could have joined it; everybody else has a standby.
    alone = [claim for claim in _claims(seen) if claim.durability == "alone" and not seen.may_degrade
             and not (seen.change and claim.node == seen.change.new)]
    if alone:
        found.append(f"{alone[0].node} said at {alone[0].told:.3f} that it goes on alone, though it must never")
    return found


def _claims(seen: Round) -> list[Claim]:
    """Returns what was claimed until all was quiet: how the judge looks is no part of the round."""
    return [claim for claim in seen.claims if claim.asked <= seen.ended[1]]


def branches(seen: Round) -> tuple[list[Operation], list[Operation]]:
    """Returns the operations that one history has to explain, and those that the superseded primary's own has to.

    What a primary did that may have been alone is its own affair: in the one history it is as unknown as if nobody had
    answered.
    """
    change = seen.change
    if change is None or change.is_clean:
        return seen.operations, []
    main, alone = [], []
    for one in seen.operations:
        if one.node == change.old:
            alone.append(one)
            if not is_promised(one, seen, change):
                one = replace(one, returned=NEVER, value=None if one.kind is Kind.ADD else one.value)
        elif change.overruled is not None and one.called < change.overruled + CUT_TAKES and one.kind is not Kind.READ:
            # The other one was primary then, and what it did may be known to the old one or not.
            alone.append(replace(one, returned=NEVER, value=None if one.kind is Kind.ADD else one.value))
        main.append(one)
    return main, alone


def is_promised(one: Operation, seen: Round, change: TakeOver) -> bool:
    """Returns whether what the old primary answered must hold whoever takes over.

    A read after the word was given must not: the old one cannot know yet that it is superseded.
    """
    if one.kind is Kind.READ and one.returned > change.begun:
        return False
    if change.overruled is not None and one.returned > change.overruled:
        return False
    if not seen.may_degrade or not one.is_known:
        return True
    own = [claim for claim in _claims(seen) if claim.node == change.old and claim.role == "primary"]
    if any(claim.durability == "held" and claim.asked >= one.returned for claim in own):
        # Whatever was between, it is on the standby by then.
        return True
    last = max((claim for claim in own if claim.told <= one.returned), key=lambda claim: claim.told, default=None)
    return (last is not None and last.durability == "held" and one.returned <= last.told + HELD_FOR
            and not any(start <= one.returned and (end is None or end >= last.told - CALM)
                        for start, end in seen.troubles)
            and not any(claim.durability != "held" and last.asked <= claim.told and claim.asked <= one.returned
                        for claim in own))


def two_writers(seen: Round) -> list[str]:
    """Returns where two nodes were primary in one epoch, or an old one took writes though it could hear of the new."""
    found = []
    primaries = defaultdict(set)
    for claim in seen.claims:
        # In any epoch, the judge's own included.
        if claim.role == "primary":
            primaries[claim.epoch].add(claim.node)
    for epoch, nodes in sorted(primaries.items()):
        if len(nodes) > 1:
            found.append(f"epoch {epoch} had two primaries, {' and '.join(sorted(nodes))}")
    change = seen.change
    writes = [one for one in seen.operations if one.kind is not Kind.READ and one.is_known]
    if change is None:
        nodes = {one.node for one in writes}
        return found + ([f"nobody took over, and both took writes: {', '.join(sorted(nodes))}"] if len(nodes) > 1 else [])
    first = min((one.returned for one in writes if one.node == change.new), default=NEVER)
    if first < change.begun:
        found.append(f"{change.new} took writes before it was promoted")
    late = [one for one in writes if one.node == change.old and first < one.called
            and (change.is_fenced or could_hear(one.called, first, seen.cuts, seen.contact))]
    if late:
        why = "had been fenced" if change.is_fenced else "could hear of it"
        found.append(f"{change.old} took writes {late[-1].called - first:.3f} s after the first of {change.new}, "
                     f"though it {why}: {_told(late)}")
    return found


def _lost(seen: Round, change: TakeOver) -> list[str]:
    """Compares keys that were written once and acknowledged with what is there in the end."""
    writes = defaultdict(list)
    for one in seen.operations:
        if one.kind is not Kind.READ:
            writes[one.key].append(one)
    missing = [one for ones in writes.values() if len(ones) == 1 for one in ones
               if one.is_known and one.key not in seen.final]
    # At least these; of counters and of what was written over it cannot be said so plainly.
    if not missing:
        return []
    found = []
    if change.is_clean:
        found.append(f"{change.old} had stopped and handed over, and acknowledged writes are lost: {_told(missing)}")
    elif change.lost is not None and len(missing) > change.lost:
        found.append(f"the report says that {change.lost} operations were lost, and more are: {_told(missing)}")
    promised = [one for one in missing if one.node != change.old or is_promised(one, seen, change)]
    if promised:
        found.append(f"writes are lost that were on both nodes when they were acknowledged: {_told(promised)}")
    unkept = [one for one in missing if str(one.value).encode() not in change.salvaged]
    if unkept:
        found.append(f"{change.old} had acknowledged writes that {change.new} lacks, and did not keep them aside: "
                     f"{_told(unkept)}")
    return found


def _with_end(operations: list[Operation], seen: Round) -> list[Operation]:
    """Adds what was read when all was quiet."""
    counters = {one.key for one in operations if one.kind is Kind.ADD}
    ends = []
    for key in {one.key for one in operations}:
        value = seen.final.get(key)
        if key in counters and value is not None:
            value = int(value)
        ends.append(Operation(JUDGE, "judge", key, Kind.READ, value, *seen.ended))
    return operations + ends


def _inexplicable(operations: list[Operation], where: str) -> list[str]:
    by_key = defaultdict(list)
    for one in operations:
        by_key[one.key].append(one)
    found = []
    for key, ones in sorted(by_key.items()):
        try:
            first = first_inexplicable(ones)
        except Undecided as undecided:
            found.append(f"{key} is not decided{where}: {undecided}")
            continue
        if first:
            near = [one for one in ones if one is not first and one.called <= first.returned
                    and (one.returned >= first.called - 0.05 or not one.is_known)]
            near = sorted(near, key=lambda one: one.called)[-DIFFERENCES_TOLD:]
            found.append(f"{key} is not linearizable{where}: {first}; near it " + "; ".join(map(str, near)))
    return found[:DIFFERENCES_TOLD] + ([f"and {len(found) - DIFFERENCES_TOLD} more"] if len(found) > DIFFERENCES_TOLD else [])


def differences(what: str, left: dict, right: dict) -> list[str]:
    """Returns in a line where two contents differ; nothing if they do not."""
    keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    if not keys:
        return []
    told = "; ".join(f"{key}: {left.get(key)!r}, {right.get(key)!r}" for key in keys[:DIFFERENCES_TOLD])
    return [f"{what}: {len(keys)} keys of {len(left)} ({told})"]


def _told(operations: list[Operation]) -> str:
    first = min(operations, key=lambda one: one.returned)
    names = ", ".join(one.key for one in operations[:DIFFERENCES_TOLD])
    return (f"{len(operations)} ({names}{', …' if len(operations) > DIFFERENCES_TOLD else ''}), "
            f"the first: {first}")
