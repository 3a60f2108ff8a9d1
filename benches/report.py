"""The results, as a table for people and as JSON for programs."""

import json
import statistics
from dataclasses import dataclass, field

from .case import Case, Measure, Sample


@dataclass
class Result:
    """How a case went: what each side told in each round."""

    case: type[Case]
    ours: list[Sample] = field(default_factory=list)
    against: list[Sample] = field(default_factory=list)
    # Why it is not complete, or was not measured at all.
    failure: str | None = None
    missing: str | None = None

    @property
    def has_failed(self) -> bool:
        return self.failure is not None


def figures(result: Result, is_full_size: bool) -> list[dict]:
    """Returns the case's figures as `--json` prints them; what is not known is null.

    Whether a target is met can be told at the full size only.
    """
    told = []
    for measure in result.case.measures:
        ours, against = _ours(measure, result), _against(measure, result)
        ratio = ours / against if ours is not None and against else None
        is_told = is_full_size and ratio is not None and measure.target is not None and not result.failure
        told.append({
            "name": f"{result.case.name} {measure.name}", "unit": measure.unit,
            "ours": ours, "against": measure.against, "against_value": against,
            "ratio": ratio, "target": measure.target, "met": measure.is_met(ratio) if is_told else None,
        })
    return told


def _ours(measure: Measure, result: Result) -> float | None:
    return _median(result.ours, measure.ours_key or measure.name)


def _against(measure: Measure, result: Result) -> float | None:
    if measure.limit is not None:
        return measure.limit
    return _median(result.against, measure.against_key or measure.name)


def _median(samples: list[Sample], key: str) -> float | None:
    values = [sample[key] for sample in samples if key in sample]
    return statistics.median(values) if values else None


def table(results: list[Result], is_full_size: bool) -> str:
    """Returns the table: medians, with the least and the most of ours."""
    lines = [["CASE", "FIGURE", "OURS", "(FROM", "TO)", "AGAINST", "", "RATIO", "TARGET", "MET"]]
    for result in results:
        for figure, measure in zip(figures(result, is_full_size), result.case.measures):
            values = [sample[key] for sample in result.ours if (key := measure.ours_key or measure.name) in sample]
            met = {True: "yes", False: "NO", None: "-"}[figure["met"]]
            lines.append([
                result.case.name, measure.name, _short(figure["ours"], measure.unit),
                _short(min(values, default=None), measure.unit), _short(max(values, default=None), measure.unit),
                measure.against, _short(figure["against_value"], measure.unit),
                "-" if figure["ratio"] is None else f"{figure['ratio']:.2f}",
                measure.target_text(), met,
            ])
        if result.missing:
            lines.append([result.case.name, f"not measured: {result.missing}"])
        if result.failure:
            lines.append([result.case.name, f"FAILED after {len(result.ours)} rounds: {result.failure}"])
    widths = [max(len(line[column]) for line in lines if len(line) > 2) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def _short(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "s" and value < 0.01:
        return f"{value * 1e6:.0f} us"
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3f} {unit}"


def raw(results: list[Result], facts: dict) -> str:
    """Returns everything that was measured, run by run."""
    runs = {result.case.name: {"ours": result.ours, "against": result.against, "failure": result.failure,
                               "missing": result.missing} for result in results}
    return json.dumps({**facts, "runs": runs}, indent=1)
