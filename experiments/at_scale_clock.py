"""The parts of at_scale.py on time: seconds per FLOP, where they go, and who wins by the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seconds_per_flop import CellKey, SecondsPerFlop, by_cell, cells, centre, markdown_table

from isoflop.analysis.compare.multipliers import COMPARE
from isoflop.analysis.validity import VALIDITY
from isoflop.numbers import format_flops
from isoflop.plan.estimate import Hardware, PlanEstimate
from isoflop.plan.estimate.memory import model_shape
from isoflop.plan.planner import Plan
from isoflop.tables import read_table

REFERENCE = "swiglu"
SUBJECT = "sgatlin"

Change = Literal["as estimated", "head in bf16", "head in bf16, gathers free"]
CHANGES: tuple[Change, ...] = ("as estimated", "head in bf16", "head in bf16, gathers free")

DeviceSeconds = Mapping[str, Mapping[Change, Mapping[CellKey, SecondsPerFlop]]]
"""By device and by what is changed of its estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiplier:
    """A compute multiplier over the reference, measured where both optima lie inside."""

    budget_flops: float
    value: float
    ci_lo: float | None
    """Of all comparisons of the study together."""
    ci_hi: float | None

    def verdict(self, needed: float) -> str:
        """Return how the family does by the clock where ``needed`` breaks even."""
        if self.ci_lo is not None and self.ci_lo > needed:
            return "faster"
        return "slower" if self.ci_hi is not None and self.ci_hi < needed else "undecided"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a fitted study says."""

    noise: float | None
    """Standard deviation of ln loss between seeds; None where it is not measured."""
    multipliers: Mapping[str, Multiplier]
    """By family, at the largest budget that has one; empty where none is measured."""


def measured_in(folder: Path) -> Measured:
    """Read the seed noise and the multipliers of a study; nothing where it is not fitted."""
    noise, compared = None, []
    if (folder / "validity.parquet").is_file():
        checks = read_table(folder / "validity.parquet", VALIDITY)
        pooled = (r["value"] for r in checks if r["check"] == "seed_noise" and r["arch"] is None)
        noise = next(pooled, None)
    if (folder / "compare.parquet").is_file():
        compared = read_table(folder / "compare.parquet", COMPARE)
    return Measured(noise=noise, multipliers=_multipliers(compared))


def _multipliers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Multiplier]:
    return {
        row["arch"]: Multiplier(
            budget_flops=row["budget_flops"],
            value=row["multiplier"],
            ci_lo=row["ci_lo_simultaneous"],
            ci_hi=row["ci_hi_simultaneous"],
        )
        for row in sorted(rows, key=lambda row: row["budget_flops"])
        if (row["resource"], row["reference"], row["status"]) == ("flops", REFERENCE, "estimate")
        and row["arch"] != REFERENCE
    }


def device_seconds(
    plan: Plan, estimate: PlanEstimate, hardware: Hardware, change: Change = "as estimated"
) -> dict[str, float]:
    """Return the seconds of all devices for each run that fits, by run id."""
    found = {}
    for run in plan.unique_runs:
        of_run = estimate.runs[run.run_id]
        if of_run.step_s is None:
            continue
        parts = dict(of_run.parts)
        if change != "as estimated":
            made = hardware.matmul_rate(hardware.float32_products)
            parts["head"] *= made / hardware.matmul_rate("bf16")
        if change == "head in bf16, gathers free" and model_shape(run.spec).gathered_values:
            parts["experts"] = parts["sort"] = 0.0
        found[run.run_id] = sum(parts.values()) * run.spec.steps * of_run.placement.num_devices
    return found


def seconds_of_devices(
    plan: Plan, estimates: Mapping[str, PlanEstimate], devices: Sequence[Hardware]
) -> DeviceSeconds:
    """Return seconds per FLOP on every device, as estimated and with the changes."""
    return {
        device.name: {
            change: by_cell(plan, device_seconds(plan, estimates[device.name], device, change))
            for change in CHANGES
        }
        for device in devices
    }


def clock_section(plan: Plan, of: DeviceSeconds) -> str:
    """Return the seconds per FLOP of every family over the reference's, by device and budget."""
    others = [arch for arch in plan.study.archs if arch != REFERENCE]
    rows = []
    for device, by_change in of.items():
        found = by_change["as estimated"]
        for budget in plan.study.budgets:
            reference = found[REFERENCE, budget]
            values = [found[arch, budget].over(reference) for arch in others]
            rows.append([f"{device}, {format_flops(budget)}", *values])
    return "\n\n".join(
        [
            "## Seconds per FLOP",
            f"Device-seconds per training FLOP over {REFERENCE}'s at the centres of both grids; in "
            "brackets the fastest and the slowest size of the family's grid, over the same. It is "
            f"the compute multiplier over {REFERENCE} at which a family breaks even by the clock, "
            f"with {REFERENCE}'s seconds per FLOP at the same budget: the larger budget that "
            f"{REFERENCE} would need goes a little faster per FLOP, which asks for a little more.",
            markdown_table(["device, budget", *others], rows),
            "![Seconds per FLOP against budget, a panel a device](seconds_per_flop.png)",
        ]
    )


def parts_section(plan: Plan, estimate: PlanEstimate) -> str:
    """Return where the time per FLOP goes at the largest budget, in percent of the reference's."""
    archs, budget = plan.study.archs, max(plan.study.budgets)
    by_arch = {arch: _parts_per_flop(plan, estimate, arch, budget) for arch in archs}
    whole = sum(by_arch[REFERENCE].values())
    names = [name for name in by_arch[REFERENCE] if any(of[name] for of in by_arch.values())]
    rows = [
        [name.replace("_", " "), *(f"{100 * by_arch[arch][name] / whole:.1f}" for arch in archs)]
        for name in names
    ]
    total = [f"{100 * sum(by_arch[arch].values()) / whole:.0f}" for arch in archs]
    return "\n\n".join(
        [
            "## Where the time goes",
            f"On the {estimate.hardware} at {format_flops(budget)} FLOPs: seconds per FLOP of each "
            f"part, in percent of all of {REFERENCE}'s, as the mean of the middle two sizes. The "
            f"head is not counted in FLOPs (convention {plan.study.convention}), yet multiplies "
            "50,257 logits in TF32 (float32 on the mi300x): whoever reads more tokens "
            "for a FLOP pays more for it.",
            markdown_table(["part", *archs], [*rows, ["**all**", *total]]),
        ]
    )


def _parts_per_flop(plan: Plan, estimate: PlanEstimate, arch: str, budget: int) -> dict[str, float]:
    runs = cells(plan)[arch, budget]
    per_flop = []
    for run in runs:
        of_run = estimate.runs[run.run_id]
        scale = run.spec.steps * of_run.placement.num_devices / run.flops
        per_flop.append({name: seconds * scale for name, seconds in of_run.parts.items()})
    return {name: centre([parts[name] for parts in per_flop]) for name in per_flop[0]}


def answer_section(of: DeviceSeconds, measured: Measured, budget: int) -> str:
    """Return whether the subject still wins by the clock, as far as anything was measured."""
    archs = [arch for arch, at in next(iter(of.values()))["as estimated"] if at == budget]
    rows = [
        [
            f"{arch}, {change}",
            _shown(measured.multipliers.get(arch)),
            *(_cell(by[change], arch, budget, measured) for by in of.values()),
        ]
        for arch in archs
        if arch != REFERENCE
        for change in CHANGES
    ]
    head = ["family", "multiplier measured", *(f"needed on {device}" for device in of)]
    return "\n\n".join(
        [
            f"## By the clock, does {SUBJECT} still win?",
            answer(of, measured, budget),
            f"Needed is the compute multiplier over {REFERENCE} that breaks even by the clock at "
            f"{format_flops(budget)} FLOPs (next section); measured is the one of the study on the "
            "CPU at its largest budget, orders of magnitude below: that it carries over is an "
            "assumption too. *Faster* and *slower* are said where its whole interval lies on "
            "that side. Head in bf16: its matrix products at the rate of the others. Gathers free: "
            "also the expert layers of peer and sgatlin take no time, nor does the sort of their "
            "choices, a bound on any kernel.",
            markdown_table(head, rows),
        ]
    )


def answer(of: DeviceSeconds, measured: Measured, budget: int) -> str:
    """Return the answer in a sentence or two."""
    needed = {
        change: [_needed(by[change], SUBJECT, budget) for by in of.values()] for change in CHANGES
    }
    spans = "; ".join(f"{min(v):.2f} to {max(v):.2f} {change}" for change, v in needed.items())
    start = f"To break even with {REFERENCE} by the clock {SUBJECT} needs a compute multiplier of"
    found = measured.multipliers.get(SUBJECT)
    if found is None:
        return f"{start} {spans}. Not measured yet: results/cpu_reference has no multiplier of it."
    verdicts = {found.verdict(value) for value in needed["as estimated"]}
    words = {
        frozenset({"faster"}): "Yes on every device, if that multiplier holds at scale.",
        frozenset({"slower"}): "No on every device, unless the multiplier grows with scale.",
    }
    verdict = words.get(frozenset(verdicts), "Undecided, or different from device to device.")
    return f"{start} {spans}. Measured on the CPU: {_shown(found)}. {verdict}"


def _needed(found: Mapping[CellKey, SecondsPerFlop], arch: str, budget: int) -> float:
    return found[arch, budget].relative(found[REFERENCE, budget])


def _cell(
    found: Mapping[CellKey, SecondsPerFlop], arch: str, budget: int, measured: Measured
) -> str:
    needed = _needed(found, arch, budget)
    multiplier = measured.multipliers.get(arch)
    verdict = "" if multiplier is None else f": {multiplier.verdict(needed)}"
    return f"{needed:.2f}{verdict}"


def _shown(multiplier: Multiplier | None) -> str:
    if multiplier is None:
        return "not measured yet"
    at = format_flops(multiplier.budget_flops, 3)
    if multiplier.ci_lo is None or multiplier.ci_hi is None:
        return f"{multiplier.value:.2f} at {at}, no interval"
    return f"{multiplier.value:.2f} ({multiplier.ci_lo:.2f} to {multiplier.ci_hi:.2f}) at {at}"
