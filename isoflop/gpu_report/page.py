"""The page of the report: what was predicted, what was measured, and a verdict per stage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from isoflop.gpu_report.records import BAD, TAKEN, Outcome, Row

HOLDS = (1 / 1.5, 1.5)
"""Measured over predicted of a prediction that is said to hold."""

_TITLES = {
    "machine": "The machine",
    "compile": "Kernels compiled ahead, in parallel",
    "numerics": "Numbers against float64",
    "kernels": "Kernels: time against bytes and the roofline",
    "steps": "Steps: time by part against the estimate",
    "losses": "Losses: Triton against plain torch",
}
_EXPLAINED = {
    "machine": "Predicted is the peak of the hardware profile. Rates are the best of five.",
    "kernels": "Predicted: the byte model of `isoflop_kernels.bench`, rows from the cache that "
    "holds them, else from memory at the copy's rate. Roofline: arguments and results once, or all "
    "FLOPs, over the time taken. `reference` is the eager gather, of fewer tokens; `mlp` the dense "
    "layer of as many FLOPs.",
    "steps": "Predicted: `isoflop.plan.estimate` for the profile, of steps as `isoflop run` makes "
    "them on a GPU: `compiled`. Without the compiler, elementwise operators move all that was "
    "counted. Parts are of one profiled step; overhead is the time in which no kernel ran.",
    "losses": "Predicted: the losses by plain torch (`bag`) on the same device. They may differ by "
    "three times what two paths of plain torch differ by, here or as measured on a CPU.",
}


_SAID: dict[Outcome, str] = {
    "failed": "**failed**",
    "cut": "**cut for time**",
    "passed": "passed",
    "skipped": "skipped",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What the page says before its tables."""

    device: str
    budget_s: float
    elapsed_s: float
    planned: Sequence[str]
    """Stages."""
    done: Sequence[str]
    """Those that have ended, however."""
    stopped: str = ""
    """Why the command ended early."""


def page(head: Head, rows: Sequence[Row]) -> str:
    """Return the page in Markdown."""
    by_stage = {stage: [row for row in rows if row.stage == stage] for stage in head.planned}
    lines = ["# Predictions against a GPU", ""]
    if head.device == "cpu":
        lines += [
            "**A rehearsal on a CPU, in tiny shapes, Triton's kernels interpreted: no number here "
            "says anything of a GPU.**",
            "",
        ]
    lines += [_state(head, rows), "", "| stage | verdict |", "|---|---|"]
    for stage, found in by_stage.items():
        lines.append(f"| {_TITLES[stage]} | {verdict(stage, found, ended=stage in head.done)} |")
    for stage, found in by_stage.items():
        lines += ["", f"## {_TITLES[stage]}", ""]
        if stage in _EXPLAINED:
            lines += [_EXPLAINED[stage], ""]
        lines += _table(stage, found) if found else ["Nothing was run."]
    return "\n".join(lines) + "\n"


def is_good(head: Head, rows: Sequence[Row]) -> bool:
    """Return whether all of it was run, and nothing failed or was cut."""
    seen = {row.stage for row in rows}
    complete = (
        not head.stopped and set(head.planned) == set(head.done) and set(head.planned) <= seen
    )
    return complete and not any(row.outcome in BAD for row in rows)


def _state(head: Head, rows: Sequence[Row]) -> str:
    spent = f"{head.elapsed_s:.0f} of {head.budget_s:.0f} s"
    if head.stopped:
        return f"**Ended early ({head.stopped}), after {spent}.**"
    left = [stage for stage in head.planned if stage not in head.done]
    if left:
        return f"Running, {spent} so far; still to come: {', '.join(left)}."
    if is_good(head, rows):
        return f"Complete: all of it ran and nothing failed, in {spent}."
    bad = sum(row.outcome in BAD for row in rows)
    return f"**Not all of it is right: {bad} results failed or were cut, in {spent}.**"


def verdict(stage: str, rows: Sequence[Row], *, ended: bool = True) -> str:
    """Return in a line how a stage came out."""
    if not rows:
        return "not run" if ended else "not yet"
    outcomes = Counter(row.outcome for row in rows)
    words = [f"{outcomes[name]} {said}" for name, said in _SAID.items() if outcomes[name]]
    ratios = [row.ratio for row in rows if row.ratio is not None and row.unit not in ("", "nats")]
    if ratios:
        held = sum(HOLDS[0] <= ratio <= HOLDS[1] for ratio in ratios)
        words.append(f"{held} of {len(ratios)} predictions hold (within a factor of {HOLDS[1]:g})")
        # A part that takes no time has no logarithm.
        logs = [math.log(ratio) for ratio in ratios if ratio > 0]
        if logs:
            mean = math.exp(sum(logs) / len(logs))
            words.append(f"measured is {mean:.2f} × predicted in the geometric mean")
    elif outcomes["measured"] and not words:
        words.append(f"{outcomes['measured']} measured")
    return "; ".join([*words, *_of_versions(rows)])


def _of_versions(rows: Sequence[Row]) -> Iterator[str]:
    """Yield how often the version of Triton's passes that is taken was the faster one."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.what == "both" and row.measured and "triton" in str(row.details.get("contender")):
            groups.setdefault((row.details["shape"], row.details["dtype"]), []).append(row)
    choices = [group for group in groups.values() if len(group) > 1]
    if choices:
        right = sum(
            bool(min(group, key=lambda row: row.measured or math.inf).details[TAKEN])
            for group in choices
        )
        yield f"of v1 and v2 the faster one is taken in {right} of {len(choices)} shapes"


def _table(stage: str, rows: Sequence[Row]) -> list[str]:
    roofline = stage == "kernels"
    columns = [
        "case",
        "",
        "predicted",
        "measured",
        "ratio",
        *(["roofline"] if roofline else []),
        "",
    ]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [
            row.case if row.case != stage else "",
            row.what,
            _with_unit(row.predicted, row.unit),
            _with_unit(row.measured, row.unit),
            _number(row.ratio),
            *([_share(row.details)] if roofline else []),
            _note(row),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _note(row: Row) -> str:
    said = {"measured": "", "passed": "pass", "failed": "**FAIL**", "cut": "**cut**"}
    taken = "the version that is taken" if row.details.get(TAKEN) else ""
    words = [said.get(row.outcome, row.outcome), row.note, taken]
    return ": ".join(word for word in words if word)


def _share(details: Mapping[str, object]) -> str:
    share = details.get("roofline_fraction")
    return f"{100 * share:.0f} %" if isinstance(share, float) else ""


def _with_unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_number(value)} {unit}".strip()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
