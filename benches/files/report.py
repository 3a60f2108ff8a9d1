"""The results, as a table for people and as JSON for programs."""

import json
from dataclasses import asdict, dataclass, field

from .cases import Case, Measure
from .measured import Round, median


@dataclass
class Result:
    """How a case went."""

    case: Case
    rounds: list[Round] = field(default_factory=list)
    failure: str | None = None
    is_measurable: bool = True

    @property
    def has_failed(self) -> bool:
        return self.failure is not None and self.is_measurable


def figures(result: Result, is_full_size: bool) -> list[dict]:
    """Returns the case's figures as `--json` prints them; what is not known is null.

    Whether a target is met can be told at the full size only.
    """
    told = []
    for measure in result.case.measures:
        ours, against = _medians(measure, result.rounds)
        ratio = ours / against if ours is not None and against else None
        told.append({
            "name": f"{result.case.name} {measure.name}", "unit": measure.unit,
            "ours": ours, "against": measure.against_name, "against_value": against,
            "ratio": ratio, "target": measure.at_most,
            "met": ratio <= measure.at_most if is_full_size and ratio is not None else None,
        })
    return told


def _medians(measure: Measure, rounds: list[Round]) -> tuple[float | None, float | None]:
    return median(map(measure.ours, rounds)), median(map(measure.against, rounds))


def table(results: list[Result], is_full_size: bool) -> str:
    """Returns the table: medians; a case with several targets has a line for each."""
    head = ["CASE", "FLUSHED s", "APPLIED s", "RSYNC s", "DURABLE s", "WIRE", "RSYNC", "CPU s", "RSYNC",
            "RSS MiB", "RSYNC", "FIGURE", "AGAINST", "RATIO", "TARGET", "MET"]
    lines = [head]
    for result in results:
        if not result.rounds:
            why = "FAILED" if result.is_measurable else "not measurable"
            lines.append([result.case.name, f"{why}: {result.failure}"])
            continue
        left = _used(result.rounds)
        for figure, measure in zip(figures(result, is_full_size), result.case.measures):
            met = {True: "yes", False: "NO", None: "-"}[figure["met"]]
            lines.append([
                result.case.name if left else "", *(left or [""] * 10), f"{measure.name} {_short(figure['ours'], measure.unit)}",
                f"{measure.against_name} {_short(figure['against_value'], measure.unit)}",
                _number(figure["ratio"], 4), f"<= {measure.at_most:g}", met,
            ])
            left = []
        if result.failure:
            lines.append(["", f"FAILED after {len(result.rounds)} rounds: {result.failure}"])
    return _aligned(lines)


def _used(rounds: list[Round]) -> list[str]:
    """Returns the cells of what both sides used."""
    ours = [one.ours for one in rounds]
    rsync = [one.rsync for one in rounds if one.rsync]

    def of(runs, name):
        return _number(median(run.seconds.get(name) for run in runs), 3)

    def memory(runs):
        peaks = [median(side) for side in zip(*(run.rss_bytes for run in runs))]
        return "/".join(f"{peak / (1 << 20):.0f}" for peak in peaks) or "-"

    return [
        of(ours, "flushed"), of(ours, "applied"), of(rsync, "wall"), of(rsync, "durable"),
        _short(median(run.wire_bytes for run in ours), "bytes"), _short(median(run.wire_bytes for run in rsync), "bytes"),
        _number(median(run.cpu_seconds for run in ours), 3), _number(median(run.cpu_seconds for run in rsync), 3),
        memory(ours), memory(rsync),
    ]


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines if len(line) > 2) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _short(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit != "bytes":
        return f"{value:.4f} {unit}"
    for name, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.2f} {name}"
    return f"{value:.0f} B"


def raw(results: list[Result], facts: dict) -> str:
    """Returns every run of every case, and all that is needed to judge it."""
    return json.dumps(facts | {
        "cases": {
            result.case.name: {
                "title": result.case.title,
                "failure": result.failure,
                "rounds": [asdict(one) for one in result.rounds],
            }
            for result in results
        },
    }, indent=1)
