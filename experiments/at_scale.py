"""What the paper's study would take on GPUs, how sharp it would be, and what the clock would say.

Predictions from data sheets, by the functions of `isoflop plan`; nothing is measured on a GPU.
From the repository's root:

    isoflop plan experiments/paper.toml
    python experiments/at_scale.py > results/paper/README.md

It reads results/paper/plan.json and, where they exist, two tables of results/cpu_reference: the
seed noise and the compute multipliers measured there. The same files give the same bytes. Beside
the text it draws results/paper/seconds_per_flop.png, unless --no-figure is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from at_scale_clock import (
    REFERENCE,
    DeviceSeconds,
    Measured,
    answer_section,
    clock_section,
    measured_in,
    parts_section,
    seconds_of_devices,
)
from seconds_per_flop import markdown_table

from isoflop.analysis.power import DEFAULT_NOISE, PowerReport, estimate_power
from isoflop.numbers import format_flops
from isoflop.plan.artefact import read_plan
from isoflop.plan.estimate import (
    Hardware,
    PlanEstimate,
    estimate_plan,
    hardware_names,
    load_hardware,
)
from isoflop.plan.planner import Plan

RESULTS = Path(__file__).resolve().parents[1] / "results"
# A round number, no quote: cost is proportional to it.
PRICE_PER_HOUR = 2.0
# The profile that tables of one device are about.
USUAL = "h100"


def page(
    plan: Plan,
    estimates: Mapping[str, PlanEstimate],
    of: DeviceSeconds,
    measured: Measured,
    *,
    price: float,
    noise: float | None,
) -> str:
    """Return results/paper/README.md."""
    report = estimate_power(
        plan, noise=noise or measured.noise or DEFAULT_NOISE, reference=REFERENCE
    )
    return "\n\n".join(
        [
            _head(list(estimates)),
            answer_section(of, measured, max(plan.study.budgets)),
            clock_section(plan, of),
            parts_section(plan, estimates[USUAL]),
            hours_section(plan, estimates, price),
            precision_section(report, plan.study.budgets, _source(noise, measured)),
            _assumptions(estimates[USUAL], report),
        ]
    )


def gpus() -> list[Hardware]:
    """Return the built-in profiles of GPUs."""
    return [device for device in map(load_hardware, hardware_names()) if device.kind == "cuda"]


def _head(devices: Sequence[str]) -> str:
    return "\n".join(
        [
            "# The paper's study on GPUs, predicted",
            "",
            "**Nothing on this page was measured on a GPU.** Times come from a roofline over data "
            f"sheets ({', '.join(devices)}; slurm/hardware_*.toml) with efficiencies that are "
            "assumed, for kernels and a compiler that ran on no GPU yet; bytes and FLOPs are those "
            "counted in executed steps on the CPU. How far off the times are, nobody has "
            "checked. Ratios between families are better than absolute times, and no better than "
            "the assumptions at the end. No run of this plan was trained.",
            "",
            "Made, with the figure, from `plan.json` by",
            "",
            "```sh",
            "isoflop plan experiments/paper.toml",
            "python experiments/at_scale.py > results/paper/README.md",
            "```",
        ]
    )


def _source(noise: float | None, measured: Measured) -> str:
    if noise is not None:
        return "as given by --noise"
    if measured.noise is not None:
        return "measured between seeds in results/cpu_reference; byte models of up to a minute"
    return "the default of `isoflop plan --power`; no study on the CPU has measured it yet"


def hours_section(plan: Plan, estimates: Mapping[str, PlanEstimate], price: float) -> str:
    """Return the device-hours by profile and family, and by budget on the usual one."""
    archs = plan.study.archs
    rows = [
        [
            name,
            *(_hours(plan, e, arch) for arch in archs),
            f"{e.gpu_hours:,.0f}",
            f"{price * e.gpu_hours:,.0f}",
        ]
        for name, e in estimates.items()
    ]
    usual = estimates[USUAL]
    by_budget = [
        [
            format_flops(budget),
            *(_hours(plan, usual, arch, budget) for arch in archs),
            f"{usual.gpu_hours_by_budget[budget]:,.1f}",
        ]
        for budget in plan.study.budgets
    ]
    return "\n\n".join(
        [
            "## GPU-hours and cost",
            f"Training steps of all {len(plan.unique_runs)} runs, as `isoflop plan "
            f"experiments/paper.toml --hardware NAME --price {price:g}` sums them: no start-up, "
            f"loading or evaluation. What runs of different length share is executed once, by the "
            f"longest of them, and counts there: {_saved(usual)} are saved. The price is "
            f"{price:g} an hour for every device, a round number and no quote; cost is "
            "proportional to it.",
            markdown_table(["device", *archs, "GPU-hours", f"cost at {price:g} an hour"], rows),
            f"By budget on the {USUAL}:",
            markdown_table(["budget", *archs, "GPU-hours"], by_budget),
        ]
    )


def _saved(estimate: PlanEstimate) -> str:
    saved = estimate.gpu_hours_saved
    share = saved / (estimate.gpu_hours + saved)
    return f"{saved:,.0f} hours ({share:.1%}) on the {estimate.hardware}"


def _hours(plan: Plan, estimate: PlanEstimate, arch: str, budget: int | None = None) -> str:
    chosen = {
        run.run_id
        for run in plan.runs
        if run.arch == arch and (budget is None or run.budget_flops == budget)
    }
    return f"{sum(estimate.runs[run_id].gpu_hours_spent for run_id in sorted(chosen)):,.1f}"


def precision_section(report: PowerReport, budgets: Sequence[int], source: str) -> str:
    """Return the intervals that the plan could reach, and what more runs would buy."""
    rows = [
        [
            power.arch,
            _plus_minus(power.exponent_halfwidth),
            *(_factor(power.multipliers.get(float(budget))) for budget in budgets),
            f"{power.edge_share:.1%}",
        ]
        for power in report.archs
    ]
    designs = [
        [
            design.label,
            str(design.num_runs),
            f"{design.cost:.2f}",
            _plus_minus(design.exponent_halfwidth),
            _factor(design.multiplier),
        ]
        for design in report.designs
    ]
    head = ["family", "exponent of N*", *(f"at {format_flops(b)}" for b in budgets)]
    return "\n\n".join(
        [
            "## Precision",
            f"95 % intervals to expect, from {report.num_draws:,} simulated studies with a seed "
            f"noise of {report.noise:.2g} of the loss ({source}): half the interval of the "
            f"exponent of N*, and the factor by which the compute multiplier over "
            f"{report.reference} is uncertain either way at each budget. The plan has one seed a "
            "run, as the paper.",
            markdown_table([*head, "optima lost"], rows),
            "What more runs would buy (widest of all families, outer budgets):",
            markdown_table(
                ["design", "runs", "FLOPs over the plan's", "exponent of N*", "multiplier"], designs
            ),
        ]
    )


def _plus_minus(value: float | None) -> str:
    return "–" if value is None else f"±{value:.2g}"


def _factor(value: float | None) -> str:
    return "–" if value is None else f"× or ÷ {value:.3g}"


def _assumptions(estimate: PlanEstimate, report: PowerReport) -> str:
    lines = [*estimate.assumptions, *(f"precision: {line}" for line in report.assumptions)]
    start = f"## Assumptions\n\nOf the {estimate.hardware}; the other devices differ in numbers."
    return start + "\n\n" + "\n".join(f"- {line}" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page and draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=RESULTS / "paper", help="of plan.json")
    parser.add_argument("--measured", type=Path, default=RESULTS / "cpu_reference")
    parser.add_argument("--price", type=float, default=PRICE_PER_HOUR, help="of a device-hour")
    parser.add_argument("--noise", type=float, help="standard deviation of ln loss between seeds")
    parser.add_argument("--no-figure", action="store_true")
    chosen = parser.parse_args(arguments)
    plan, measured = read_plan(chosen.folder), measured_in(chosen.measured)
    devices = gpus()
    estimates = {device.name: estimate_plan(plan, device) for device in devices}
    of = seconds_of_devices(plan, estimates, devices)
    print(page(plan, estimates, of, measured, price=chosen.price, noise=chosen.noise))
    if not chosen.no_figure:
        from at_scale_figure import write_figure

        write_figure(plan, of, measured, chosen.folder)


if __name__ == "__main__":
    main()
