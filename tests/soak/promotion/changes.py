"""What the application did to files and settings, and what must be left of it. Pure."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

DIFFERENCES_TOLD = 5
# The cut is told in milliseconds.
CUT_GRAIN = 0.001
SETTINGS = "settings"


@dataclass(frozen=True)
class Change:
    """A path got this content (a digest), or went (`None`); by the wall clock, which all nodes share."""

    node: str
    key: str
    path: str
    content: str | None
    begun: float
    # When it was durable; `None` where nobody has said so.
    done: float | None


@dataclass
class Loss:
    """What is missing on the new primary, and what the old one must have kept aside for it."""

    changes: list[Change] = field(default_factory=list)
    # Of each path, the contents of which one must have been kept: the last one, or the one that was just being written.
    to_keep: dict[str, set[str]] = field(default_factory=dict)


def read(folder: Path, node: str) -> list[Change]:
    """Reads what a node's application has written down."""
    begun, done = {}, {}
    path = folder / "acks"
    for line in path.read_text().splitlines() if path.exists() else []:
        told = json.loads(line)
        if "done" in told:
            done[told["key"]] = told["done"]
        else:
            begun[told["key"]] = told
    return [Change(node, key, told["path"], told["content"], told["begun"], done.get(key)) for key, told in begun.items()]


def is_settings(change: Change) -> bool:
    return change.path == SETTINGS


def judge(changes: list[Change], there: dict[str, str], may_lose: str | None, cut: float | None,
          amounts: dict[str, int | None], believes_silence: bool = False) -> tuple[Loss, list[str]]:
    """Compares what was made durable with what is there; returns what is missing, and what should not be.

    `may_lose` names the node whose changes may be missing, but those from before the cut. `amounts` is what the report
    says of the two stores, and `there` has the digest of every path. What nobody has acknowledged may be there or not.
    """
    loss, found = Loss(), []
    by_path = defaultdict(list)
    for change in sorted(changes, key=lambda one: one.begun):
        by_path[change.path].append(change)
    for path in sorted(set(there) - set(by_path)):
        found.append(f"{path} is there, and nobody made it")
    for path, ones in sorted(by_path.items()):
        has = there.get(path)
        acknowledged = [number for number, one in enumerate(ones) if one.done is not None or believes_silence]
        last = acknowledged[-1] if acknowledged else -1
        if has in [state(ones, number) for number in range(last, len(ones))]:
            continue
        # The newest state that explains it; everything acknowledged after that is lost.
        since = next((number for number in range(last - 1, -2, -1) if state(ones, number) == has), None)
        if since is None:
            found.append(f"{path} has the content {has}, which nobody wrote")
            continue
        lost = [ones[number] for number in acknowledged if number > since]
        loss.changes += lost
        ends = {one.content for one in ones[last:] if one.content is not None}
        if ends and ones[last].content is not None:
            loss.to_keep[path] = ends
    for store, ones in (("files", [one for one in loss.changes if not is_settings(one)]),
                        ("settings", [one for one in loss.changes if is_settings(one)])):
        if not ones:
            continue
        if may_lose is None:
            found.append(f"{store}: nothing may be lost, and changes are: {told(ones)}")
            continue
        of_others = [one for one in ones if one.node != may_lose]
        if of_others:
            found.append(f"{store}: changes are lost that were not made on {may_lose}: {told(of_others)}")
        if amounts.get(store) == 0:
            found.append(f"{store}: the report says that nothing was lost, and changes are: {told(ones)}")
        early = [one for one in ones if cut is not None and one.done is not None and one.done < cut - CUT_GRAIN]
        if early:
            found.append(f"{store}: everything up to {cut:.3f} is there by the report, and changes from before are lost: "
                         f"{told(early)}")
    return loss, found


def state(ones: list[Change], number: int) -> str | None:
    """Returns what the path holds after that change; nothing before the first."""
    return ones[number].content if number >= 0 else None


def told(changes: list[Change]) -> str:
    first = min(changes, key=lambda one: one.done or one.begun)
    names = ", ".join(one.path for one in changes[:DIFFERENCES_TOLD])
    return (f"{len(changes)} ({names}{', …' if len(changes) > DIFFERENCES_TOLD else ''}), the first at "
            f"{first.done or first.begun:.3f} on {first.node}")
