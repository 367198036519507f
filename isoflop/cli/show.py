"""`isoflop show`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click

from isoflop.cli.options import FOLDER, WITH_CODE, numbers_of_flops, whole_numbers, words
from isoflop.cli.plan_tables import (
    left_out_lines,
    plan_summary,
    plan_table,
    total_lines,
    trunk_lines,
)
from isoflop.cli.tables import console, print_lines
from isoflop.cli.trunk_tables import (
    HOW_TO_SWITCH_OFF,
    no_trunks_line,
    run_trunk_lines,
    trunk_table,
)
from isoflop.errors import UserError
from isoflop.numbers import format_count, format_flops
from isoflop.recipe import get_recipe

if TYPE_CHECKING:
    from isoflop.plan.estimate import PlanEstimate, RunEstimate
    from isoflop.plan.planner import Plan
    from isoflop.plan.runs import PlannedRun


@click.command()
@click.argument("folder", type=FOLDER)
@click.argument("run", required=False)
@click.option("--arch", metavar="A,B", help="Only these archs.")
@click.option("--budget", metavar="1e17,1e18", help="Only these budgets.")
@click.option("--size", metavar="3,4", help="Only these sizes.")
@click.option("--sort", metavar="COLUMN", help="Sort by a column of plan.parquet.")
@click.option("--descending", is_flag=True, help="Largest first.")
@click.option("--hardware", metavar="NAME", help="Estimate for it.  [default: as planned]")
@click.option("--trunks", is_flag=True, help="Show what runs of different length share instead.")
@click.option("--explain", is_flag=True, help="Say what each estimate assumes.")
@WITH_CODE
def show(
    folder: Path,
    run: str | None,
    arch: str | None,
    budget: str | None,
    size: str | None,
    sort: str | None,
    descending: bool,
    hardware: str | None,
    trunks: bool,
    explain: bool,
    with_code: bool,
) -> None:
    """Show the plan in FOLDER, filtered and sorted, or one RUN of it whole.

    RUN is a run id or its first digits. Estimates use FOLDER/calibration.json where
    `isoflop calibrate` has written it. Those of families from outside the package take their code,
    which looking does not import without --with-code.
    """
    from isoflop.plan.artefact import read_plan

    plan = read_plan(folder, with_code=with_code)
    estimate = _estimate(plan, folder, hardware)
    out = console()
    if run is not None:
        from isoflop.plan.edit import find_run

        if arch or budget or size or sort or trunks:
            raise UserError("run", run, "given without filters", "leave out one of them")
        entries = find_run(plan, run)
        lines = run_lines(entries) + run_trunk_lines(plan, entries[0])
        if estimate is not None:
            lines += ["", *estimate_lines(estimate.runs[entries[0].run_id])]
    else:
        filters = _Filters(
            archs=words(arch),
            budgets=numbers_of_flops("--budget", budget),
            sizes=whole_numbers("--size", size),
        )
        if trunks:
            if sort is not None or descending:
                raise UserError("--trunks", True, "given without --sort", "leave out one of them")
            lines = _show_trunks(plan, folder, filters)
        else:
            lines = _show_table(plan, folder, estimate, filters, sort, descending)
        if estimate is not None:
            lines += total_lines(estimate)
    if plan.stated_families and (hardware or (folder / "estimates.json").exists()):
        names = ", ".join(plan.stated_families)
        lines.append(f"no estimates, which take the code of {names}: --with-code imports it")
    if explain:
        lines += ["", *explain_lines(plan, estimate)]
    print_lines(out, lines)


def _estimate(plan: Plan, folder: Path, hardware: str | None) -> PlanEstimate | None:
    """Return estimates for the hardware named, else for that of the estimates beside the plan."""
    from isoflop.plan.estimate import estimate_for, load_estimates

    if plan.stated_families:
        return None
    stored = load_estimates(folder) if hardware is None else None
    if hardware is None and stored is None:
        return None
    return estimate_for(plan, folder, hardware if stored is None else stored.hardware)


class _Filters(TypedDict):
    archs: list[str]
    budgets: list[int]
    sizes: list[int]


def _show_trunks(plan: Plan, folder: Path, filters: _Filters) -> list[str]:
    """Print the table of trunks; return the lines that go below it."""
    from isoflop.plan.edit import filter_runs

    run_ids = {run.run_id for run in filter_runs(plan, **filters)}
    out = console()
    table, left_out = trunk_table(plan, out.width, run_ids)
    if table.row_count == 0:
        return [no_trunks_line(plan)]
    out.print(table)
    left_out_ones = left_out_lines(left_out, f"{folder} --trunks")
    return [*left_out_ones, *trunk_lines(plan), HOW_TO_SWITCH_OFF]


def _show_table(
    plan: Plan,
    folder: Path,
    estimate: PlanEstimate | None,
    filters: _Filters,
    sort: str | None,
    descending: bool,
) -> list[str]:
    """Print the table; return the lines that go below it."""
    import dataclasses

    from isoflop.plan.edit import filter_runs, sort_runs

    runs = filter_runs(plan, **filters)
    if sort is not None:
        runs = sort_runs(runs, sort, descending=descending)
    elif descending:
        raise UserError("--descending", True, "given together with --sort", "name a column")
    part = dataclasses.replace(plan, runs=runs)
    out = console()
    # Sorted, neighbours have no cell in common: no lines between groups.
    table, left_out = plan_table(part, estimate, out.width, sections=sort is None)
    out.print(table)
    lines = left_out_lines(left_out, folder)
    if len(runs) < len(plan.runs):
        # The lines on whole grids would be wrong of parts of them.
        part = dataclasses.replace(part, left_out=(), expected=())
        lines.append(f"{len(runs)} of {len(plan.runs)} rows")
    shared = trunk_lines(plan) if len(runs) == len(plan.runs) else []
    return lines + plan_summary(part) + shared


def run_lines(entries: Sequence[PlannedRun]) -> list[str]:
    """Return one run whole: what it is, its places in the plan, its counts, every component."""
    run = entries[0]
    spec = run.spec.to_json()
    tables = {name: value for name, value in spec.items() if isinstance(value, dict)}
    spec = {name: value for name, value in spec.items() if name not in tables}
    if "command" in spec:
        spec["command"] = shlex.join(spec["command"])
    lines = [f"run {run.run_id}", "", "in the plan as"]
    lines += [
        f"  {entry.arch} size {entry.size} at {format_flops(entry.budget_flops)}: "
        f"{format_flops(entry.flops)} FLOPs, {100 * entry.residual:.3f} % of the budget unspent"
        for entry in entries
    ]
    lines += ["", "what it is (hashed into its id)", *_aligned(spec)]
    titles = {"config": f"{spec.get('family')} configuration", "rung": "rung", "env": "environment"}
    for name, table in tables.items():
        if table:
            lines += [f"  {titles[name]}", *_aligned(table, indent=4)]
    lines += ["", "counts" + (" (declared)" if run.declared else ""), *_aligned(_counts(run))]
    if run.flops_per_token:
        lines += ["", "forward FLOPs per token", *_component_lines(run.flops_per_token)]
    warnings = list(dict.fromkeys(text for entry in entries for text in entry.warnings))
    if warnings:
        lines += ["", *(f"warning: {text}" for text in warnings)]
    return lines


def _counts(run: PlannedRun) -> dict[str, str]:
    return {
        "parameters": _exact(run.n_params),
        "active": _exact(run.n_active),
        "non-embedding": _exact(run.n_nonembed),
        "training tokens": _exact(run.n_tokens),
        "training FLOPs": f"{run.flops:,}",
        "epochs": "not known" if run.epochs is None else f"{run.epochs:g}",
    }


def _exact(count: int) -> str:
    return f"{count:,} ({format_count(count)})"


def _aligned(values: dict[str, Any], indent: int = 2) -> list[str]:
    width = max((len(name) for name in values), default=0)
    return [f"{'':{indent}}{name:<{width}}  {value}" for name, value in values.items()]


def _component_lines(flops_per_token: dict[str, int]) -> list[str]:
    total = sum(flops_per_token.values())
    rows = [*flops_per_token.items(), ("total", total)]
    width = max(len(name) for name, _ in rows)
    digits = len(f"{total:,}")
    return [
        f"  {name:<{width}}  {flops:>{digits},}  {100 * flops / total:6.2f} %"
        for name, flops in rows
    ]


def estimate_lines(estimate: RunEstimate) -> list[str]:
    """Return what one run is estimated to take."""
    from isoflop.plan.estimate.memory import format_bytes

    placement = estimate.placement
    known: dict[str, Any] = {}
    if placement is not None:
        known |= {
            "placement": placement.reason,
            "layout": f"{placement.num_devices} × {placement.parallel}, micro-batch "
            f"{placement.micro_batch}, {placement.grad_accum} accumulated, checkpointing "
            + ("on" if placement.checkpointing else "off"),
        }
    if estimate.peak_mem_bytes is not None:
        known["peak memory"] = f"{format_bytes(estimate.peak_mem_bytes)} per device"
    if estimate.step_s is not None and estimate.gpu_hours is not None:
        known_by = estimate.source if estimate.scale is None else estimate.scale.describe()
        known["step"] = f"{estimate.step_s:.3g} s ({known_by})"
        if estimate.start_s is not None:
            known["start-up"] = f"{estimate.start_s:.3g} s, with what else a run does once"
        whole = "all steps" if estimate.start_s is None else "all of it"
        known[whole] = f"{estimate.gpu_hours:,.3g} device-hours"
        if estimate.trunk_gpu_hours:
            known[whole] += f", {estimate.gpu_hours_spent:,.3g} of them for this run alone"
    parts = {name: f"{1000 * seconds:,.3g} ms" for name, seconds in estimate.parts.items()}
    if placement is None or estimate.memory is None or estimate.memory_other is None:
        return ["estimates", *_aligned(known)]
    memory = {name: format_bytes(size) for name, size in estimate.memory.parts().items()}
    other = "without" if placement.checkpointing else "with"
    memory["activations"] += (
        f" ({format_bytes(estimate.memory_other.activations)} {other} checkpointing)"
    )
    return [
        "estimates",
        *_aligned(known),
        "  memory per device by part (not all alive at once)",
        *_aligned(memory, indent=4),
        "  roofline per step",
        *_aligned(parts, indent=4),
    ]


def explain_lines(plan: Plan, estimate: PlanEstimate | None) -> list[str]:
    """Return what is exact in the plan's numbers, and what each estimate assumes."""
    lines = [
        "exact",
        f"  FLOPs: matrix products under the {plan.study.convention} convention; steps are as many "
        "whole ones as the budget pays for, the residual is what is left",
        "  parameters, tokens: counted from the shapes; epochs: tokens over those of the corpus",
        "estimates",
    ]
    if plan.expected:
        prior = get_recipe(plan.study.recipe).prior
        lines.append(
            f"  expected optima: {prior.tokens_per_param:g} tokens per active parameter outside "
            f"embedding and norms, at every budget ({prior.source})"
        )
    if estimate is None:
        lines.append("  time, memory and money: none (plan or show with --hardware)")
        return lines
    return lines + [f"  {estimate.hardware}: {text}" for text in estimate.assumptions]
