"""`isoflop plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.cli.options import OUT_FOLDER
from isoflop.cli.plan_tables import (
    left_out_lines,
    plan_overview,
    plan_summary,
    plan_table,
    rate_lines,
    total_lines,
    trunk_lines,
)
from isoflop.cli.tables import MISSING, console, new_table, print_lines
from isoflop.errors import UserError
from isoflop.numbers import format_flops

if TYPE_CHECKING:
    from rich.table import Table

    from isoflop.analysis.power import PowerReport
    from isoflop.plan.estimate import PlanEstimate
    from isoflop.plan.planner import Plan
    from isoflop.study import Study


@click.command()
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--budgets", metavar="1e17,1e18", help="Training FLOPs per run, ascending.")
@click.option("--out", type=OUT_FOLDER, help="Folder for the plan.  [default: results/NAME]")
@click.option(
    "--hardware",
    metavar="NAME",
    help="Estimate for h100, h200, a100, mi300x, cpu2 or a .toml.  [default: h100, or cpu2 for "
    "fp32 recipes]",
)
@click.option("--price", type=float, help="Price of a device-hour, for the estimated cost.")
@click.option("--max-gpu-hours", type=float, help="Refuse a plan estimated to take more.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Step times of isoflop calibrate.  [default: calibration.json in the plan's folder]",
)
@click.option("--power", is_flag=True, help="Show the intervals to expect, by simulation.")
@click.option(
    "--noise",
    type=float,
    default=0.005,
    show_default=True,
    help="With --power: standard deviation of the log loss between seeds.",
)
def plan(
    study: Path | None,
    budgets: str | None,
    out: Path | None,
    hardware: str | None,
    price: float | None,
    max_gpu_hours: float | None,
    calibration: Path | None,
    power: bool,
    noise: float,
) -> None:
    """Plan matched-budget runs and write them for review.

    STUDY is a study file (.toml; experiments/README.md has a first one and all keys). Without one,
    the paper's grid is planned at the given budgets: its ladder, batch and sequence length, all
    five families. Times and memory are estimates. Planned again, the same study changes nothing;
    only its [placement] may differ, and how results are read before there are any.
    """
    from isoflop.plan.estimate import estimate_for, write_with_estimates
    from isoflop.plan.planner import make_plan

    planned = make_plan(read_study(study, budgets))
    folder = out or Path("results") / planned.study.name
    # Before anything is written: a plan over the cap leaves nothing behind.
    estimate = estimate_for(planned, folder, hardware, price, max_gpu_hours, calibration)
    report = None
    if power:
        from isoflop.analysis.power import estimate_power

        report = estimate_power(planned, noise=noise)
    is_new = write_with_estimates(planned, estimate, folder)
    show_plan(planned, estimate, folder)
    _tell_default_data(study, planned)
    if report is not None:
        _show_power(report)
    click.echo(f"{'written to' if is_new else 'unchanged:'} {folder}/plan.json and plan.parquet")
    click.echo(f"next: isoflop run {folder}   # here; or to a cluster: isoflop submit {folder}")


def _tell_default_data(file: Path | None, planned: Plan) -> None:
    """Print which data are taken, where a study file leaves it open."""
    from isoflop.study.file import names_data

    is_own = all(map(planned.study.has_trainer, planned.study.archs))
    if file is not None and not is_own and not names_data(file):
        print_lines(
            console(),
            [f"no source in [data] of {file}: {planned.study.source} is taken, the default"],
        )


def read_study(path: Path | None, budgets: str | None) -> Study:
    """Return the study of a file, or the paper's, with the budgets of the command line if given.

    Raises:
        UserError: neither is given, or either is wrong.
    """
    import dataclasses

    from isoflop.study import paper_study, parse_flops
    from isoflop.study.file import load_study

    parsed = () if budgets is None else tuple(map(parse_flops, budgets.split(",")))
    if path is not None:
        study = load_study(path)
        return dataclasses.replace(study, budgets=parsed) if parsed else study
    if not parsed:
        raise UserError(
            "--budgets", None, "given where there is no study file", "add --budgets 1e17,1e18"
        )
    return paper_study(parsed)


def show_plan(planned: Plan, estimate: PlanEstimate, folder: Path, *, whole: bool = True) -> None:
    """Print the plan's table, or its overview, with totals, estimates and warnings."""
    out = console()
    if whole:
        table, left_out = plan_table(planned, estimate, out.width)
        lines = left_out_lines(left_out, folder)
    else:
        table = plan_overview(planned, estimate)
        lines = [f"every run: isoflop show {folder}"]
    out.print(table)
    lines += plan_summary(planned) + trunk_lines(planned) + rate_lines(planned)
    lines += total_lines(estimate)
    lines += _unread_rules(planned) + _unused_variants(planned)
    print_lines(out, lines)


def _unread_rules(planned: Plan) -> list[str]:
    """Return a line for each hypothesis whose rule the report cannot judge."""
    if not planned.study.hypotheses:
        return []
    from isoflop.analysis.rules import parse_rule

    return [
        f"hypothesis {hypothesis.id}: `decide` is none of the rules of experiments/README.md; the "
        "report will leave it undecided"
        for hypothesis in planned.study.hypotheses
        if parse_rule(hypothesis.decide) is None
    ]


def _unused_variants(planned: Plan) -> list[str]:
    """Return a line for each variant that is described and then not compared."""
    study = planned.study
    used = {*study.archs, study.match_reference}
    return [
        f"variant {variant.arch}: planned nowhere; name it under archs to compare it"
        for variant in study.variants
        if variant.arch not in used
    ]


def _show_power(report: PowerReport) -> None:

    out = console()
    out.print(power_table(report))
    out.print(design_table(report))
    print_lines(out, power_lines(report))


def power_table(report: PowerReport) -> Table:
    """Return what to expect for each arch: a row each."""
    budgets = sorted({b for power in report.archs for b in power.multipliers})
    outer = list(dict.fromkeys([*budgets[:1], *budgets[-1:]]))
    table = new_table(
        ("arch", "<"),
        ("runs", ">"),
        ("exponent a ±", ">"),
        *((f"multiplier at {format_flops(budget)} ×/÷", ">") for budget in outer),
        ("lost at edges %", ">"),
    )
    for power in report.archs:
        multipliers = [power.multipliers.get(budget) for budget in outer]
        is_reference = power.arch == report.reference
        table.add_row(
            power.arch,
            f"{power.num_runs:,}",
            _number(power.exponent_halfwidth),
            *("reference" if is_reference else _factor(value) for value in multipliers),
            f"{100 * power.edge_share:.1f}",
        )
    return table


def design_table(report: PowerReport) -> Table:
    """Return what one seed, size or budget more would buy: a row each, the widest of all archs."""
    table = new_table(
        ("design", "<"),
        ("runs", ">"),
        ("FLOPs", ">"),
        ("exponent a ±", ">"),
        ("multiplier ×/÷", ">"),
    )
    for design in report.designs:
        table.add_row(
            design.label,
            f"{design.num_runs:,}",
            f"× {design.cost:.2f}",
            _number(design.exponent_halfwidth),
            _factor(design.multiplier),
        )
    return table


def power_lines(report: PowerReport) -> list[str]:
    """Return what the tables of a power report mean and rest on."""
    return [
        "95 % intervals to expect (estimates): the exponent a of N* ∝ C^a is its value ±, the "
        f"compute multiplier against {report.reference} its value × or ÷",
        "FLOPs: those executed, as a multiple of the plan's",
        *(f"assumes: {text}" for text in report.assumptions),
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _factor(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}" if value < 100 else "> 100"
