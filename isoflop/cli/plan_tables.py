"""The table of a plan, its overview by budget and arch, and the lines below them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from isoflop.cli.tables import counted, fitted_table, new_table
from isoflop.numbers import format_count, format_flops, format_seconds
from isoflop.plan.trunks import flops_executed, trunks_of, without_sharing_named
from isoflop.recipe import get_recipe
from isoflop.spec import shown_id

if TYPE_CHECKING:
    from rich.table import Table

    from isoflop.launch.prices import NewRuns
    from isoflop.plan.estimate import PlanEstimate, RunEstimate
    from isoflop.plan.planner import Plan
    from isoflop.plan.runs import PlannedRun

_HOURS = {"GPU-hours": "GPU-h", "core-hours": "core-h"}
_TEXT = ("run", "arch")
# Fewer are of no interest: about a third of a second.
_LEAST_HOURS = 1e-4

# Left out of a terminal that is too narrow for all, the first ones first.
_LEAST_WANTED = ("non-emb", "resid %", "FLOPs", "active", "est. mem", "epochs", "steps")


def plan_table(
    plan: Plan, estimate: PlanEstimate | None, width: int, *, sections: bool = True
) -> tuple[Table, tuple[str, ...]]:
    """Return the plan, one row per run; with estimates their two columns.

    Args:
        plan: the runs to show.
        estimate: of the plan, or None.
        width: characters of the terminal.
        sections: whether a line parts the cells of a budget and arch; not where rows are sorted.

    Returns:
        The table, and the names of the columns that did not fit.
    """
    rows = [_run_cells(run, estimate) for run in plan.runs]
    groups = [(run.budget_flops, run.arch) if sections else None for run in plan.runs]
    return fitted_table(rows, width, least_wanted=_LEAST_WANTED, text=_TEXT, groups=groups)


def left_out_lines(names: Sequence[str], folder: object) -> list[str]:
    """Return how to see the columns that did not fit; no line where all did."""
    if not names:
        return []
    return [f"not in this width: {', '.join(names)} (`isoflop show {folder} | less -S` has all)"]


def _run_cells(run: PlannedRun, estimate: PlanEstimate | None) -> dict[str, str]:
    cells = {
        "run": shown_id(run.run_id),
        "budget": format_flops(run.budget_flops),
        "arch": run.arch,
        "size": str(run.size),
        "params": format_count(run.n_params),
        "active": format_count(run.n_active),
        "non-emb": format_count(run.n_nonembed),
        "tokens": format_count(run.n_tokens),
        "steps": f"{run.spec.steps:,}",
        "FLOPs": format_flops(run.flops),
        "resid %": f"{100 * run.residual:.3f}",
        "epochs": "-" if run.epochs is None else f"{run.epochs:.2f}",
    }
    if estimate is not None:
        of_run = estimate.runs[run.run_id]
        memory = of_run.peak_mem_bytes
        cells["est. mem"] = "-" if memory is None else f"{memory / 1e9:.3g}G"
        cells[f"est. {_HOURS[estimate.unit]}"] = _hours([of_run])
    return cells


def _hours(
    estimates: Iterable[RunEstimate],
    spent: Callable[[RunEstimate], float] = lambda run: run.gpu_hours or 0.0,
) -> str:
    found = list(estimates)
    if not all(estimate.fits for estimate in found):
        return "no fit"
    total = sum(spent(estimate) for estimate in found)
    return f"{total:.3g}" if total == 0 or total >= _LEAST_HOURS else f"<{_LEAST_HOURS:g}"


def plan_overview(plan: Plan, estimate: PlanEstimate) -> Table:
    """Return a row for each budget and arch, with the ranges of its runs, in 80 columns.

    Hours are as they are executed, trunks under the budgets of their longest runs.
    """
    table = new_table(
        ("budget", ">"),
        ("arch", "<"),
        ("runs", ">"),
        ("sizes", ">"),
        ("params", ">"),
        ("tokens", ">"),
        ("epochs", ">"),
        (f"est. {_HOURS[estimate.unit]}", ">"),
    )
    cells: dict[tuple[int, str], list[PlannedRun]] = {}
    for run in plan.runs:
        cells.setdefault((run.budget_flops, run.arch), []).append(run)
    previous = None
    for (budget, arch), runs in cells.items():
        if previous not in (None, budget):
            table.add_section()
        previous = budget
        epochs = [run.epochs for run in runs if run.epochs is not None]
        table.add_row(
            format_flops(budget),
            arch,
            str(len(runs)),
            _range([run.size for run in runs]),
            _range([run.n_params for run in runs]),
            _range([run.n_tokens for run in runs]),
            f"≤ {max(epochs):.2f}" if epochs else "-",
            _hours((estimate.runs[run.run_id] for run in runs), lambda run: run.gpu_hours_spent),
        )
    return table


def _range(counts: Sequence[int]) -> str:
    ends = dict.fromkeys(map(format_count, (min(counts), max(counts))))
    return "–".join(ends)


def plan_summary(plan: Plan) -> list[str]:
    """Return the plan's totals and warnings as lines."""
    runs = plan.unique_runs
    total = sum(run.flops for run in runs)
    lines = [
        f"{len(runs)} runs, {format_flops(total, digits=4)} training FLOPs in all "
        f"({plan.study.convention} convention), {'; '.join(_how_trained(plan))}"
    ]
    lines += _declared_lines(plan)
    repeated = [run.epochs for run in runs if run.epochs is not None and run.epochs > 1]
    if repeated:
        lines.append(
            f"warning: {len(repeated)} runs read the corpus more than once "
            f"(at most {max(repeated):.2f} times)"
        )
    lines += [f"warning: {warning}" for warning in plan.warnings]
    lines += _expected_lines(plan)
    return lines + [f"left out: {reason}" for reason in plan.left_out]


def _how_trained(plan: Plan) -> list[str]:
    """Return by what the runs are trained, and on which data."""
    study = plan.study
    found = []
    if not all(map(study.has_trainer, study.archs)):
        found.append(f"recipe {study.recipe}, data {study.source} / {study.tokenizer}")
    if study.trainer is not None:
        commit = "" if plan.code is None or plan.code.commit is None else f" at {plan.code.commit}"
        found.append(f"trainer in {study.trainer.code}{commit}, data {study.trainer.data}")
    return found


def _declared_lines(plan: Plan) -> list[str]:
    """Return a line with the archs whose FLOPs were not counted; else none."""
    archs = dict.fromkeys(run.arch for run in plan.runs if run.declared)
    if not archs:
        return []
    return [f"declared, not counted: FLOPs and parameters of {', '.join(archs)}"]


def _expected_lines(plan: Plan) -> list[str]:
    """Return where the optima of an `auto` study are expected: a line for each arch."""
    places: dict[str, list[str]] = {}
    for optimum in plan.expected:
        budget = format_flops(optimum.budget_flops)
        places.setdefault(optimum.arch, []).append(f"{optimum.size:.2g} at {budget}")
    return [
        f"expected optimum (estimate): {arch} near size {', '.join(there)}"
        for arch, there in places.items()
    ]


def rate_lines(plan: Plan) -> list[str]:
    """Return one line with the peak learning rates of a study that sets its own; else none."""
    study = plan.study
    rates = {arch: rate for arch, rate in study.learning_rates.items() if arch in study.archs}
    if not rates:
        return []
    own = get_recipe(study.recipe).peak_lr
    rest = f", else {own:g}" if len(rates) < len(study.archs) else ""
    given = ", ".join(f"{arch} {rate:g}" for arch, rate in rates.items())
    return [f"peak learning rates: {given}{rest} ({study.recipe} has {own:g})"]


def hours_text(hours: float, digits: int = 4) -> str:
    """Return device-hours of several runs; so few that nobody plans by them are not told."""
    return f"under {_LEAST_HOURS:g}" if 0 < hours < _LEAST_HOURS else f"{hours:,.{digits}g}"


def total_lines(estimate: PlanEstimate) -> list[str]:
    """Return what the whole plan is estimated to take."""
    cost = "" if estimate.cost is None else f", {estimate.cost:,.4g} at the price given"
    # Fractions of an hour are hard to picture.
    is_short = _LEAST_HOURS <= estimate.gpu_hours < 1
    short = f" ({format_seconds(3600 * estimate.gpu_hours)})" if is_short else ""
    saved = saved_text(estimate.gpu_hours_saved, estimate.gpu_hours)
    total = f"{hours_text(estimate.gpu_hours)} {estimate.unit}{short}{saved}{cost}"
    if not any(run.fits for run in estimate.runs.values()):
        total = f"no run fits, so that there are no {estimate.unit} to tell"
    return [
        f"estimate on {estimate.hardware}: {total}; {_how_known(estimate)} "
        "(isoflop show --explain)",
        *(f"does not fit: {line}" for line in estimate.not_fitting),
        *estimate.warnings,
    ]


def _how_known(estimate: PlanEstimate) -> str:
    """Return what the times rest on."""
    num_runs, num_between = len(estimate.runs), estimate.num_of("interpolated")
    parts = []
    if estimate.num_calibrated:
        parts.append(f"step times of {estimate.num_calibrated} of {num_runs} runs measured")
    scales = [run.scale for run in estimate.runs.values() if run.scale is not None]
    if scales:
        low, high = min(each.low for each in scales), max(each.high for each in scales)
        parts.append(
            f"of {len(scales)} scaled from measured shapes ({low:.2f} to {high:.2f} times the "
            "roofline)"
        )
    if num_between:
        parts.append(f"of {num_between} between rungs that were")
    return ", ".join(parts) or "nothing measured"


def trunk_lines(plan: Plan) -> list[str]:
    """Return a line on what is saved where runs share trunks, or could; else none."""
    alone = sum(run.flops for run in plan.unique_runs)
    trunks = trunks_of(plan)
    if trunks:
        executed = alone - sum(trunk.flops_saved for trunk in trunks)
        num_branches = sum(len(trunk.branches) for trunk in trunks)
        return [
            f"trunks: {num_branches} of {counted(len(plan.unique_runs), 'run')} begin from a state "
            f"of a longer one; {flops_text(executed)} of {flops_text(alone)} FLOPs are executed, "
            f"{percent_text(alone - executed, alone)} saved (isoflop show --trunks)"
        ]
    shared = without_sharing_named(plan) if plan.study.share == "none" else plan
    saved = alone - flops_executed(shared)
    if not saved:
        if plan.study.keep_trunks and not trunks_of(plan, with_single=True):
            return ["trunks: keep_trunks = true keeps nothing, since these runs share none"]
        return []
    return [
        "trunks: not shared (share = none in the study); shared, "
        f"{percent_text(saved, alone)} of the FLOPs would be saved, with the same results"
    ]


def new_run_lines(price: NewRuns, unit: str | None) -> list[str]:
    """Return what new runs of a plan with trunks cost, and where they begin.

    Args:
        price: as :func:`isoflop.launch.prices.price_new_runs` returns it.
        unit: of its hours, with the hardware; None: there are no estimates.
    """
    hours = ""
    if price.gpu_hours is not None and unit is not None:
        hours = f", {hours_text(price.gpu_hours, digits=3)} {unit}"
    begun = [f"{price.num_there} begin at a state that is there"] if price.num_there else []
    if price.num_coming:
        begun.append(f"{price.num_coming} begin from a state that a longer run is yet to reach")
    where = f"; of {counted(price.num_runs, 'new run')} {' and '.join(begun)}"
    lines = [
        f"trunks: {flops_text(price.flops_to_execute)} FLOPs more to execute, of "
        f"{flops_text(price.flops)} if each were trained alone{hours}{where if begun else ''}"
    ]
    if price.num_left_nothing:
        lines.append(
            f"trunks: {counted(price.num_left_nothing, 'new run')} could begin where a run that is "
            "done began to decay, but that state was not kept; `keep_trunks = true` in the study "
            "keeps it from now on"
        )
    return lines


def saved_text(saved: float, rest: float) -> str:
    """Return in brackets what trunks save of hours, beside what is spent; empty: nothing."""
    return f" ({percent_text(saved, saved + rest)} saved by trunks)" if saved else ""


def flops_text(flops: int) -> str:
    """Return FLOPs with three digits."""
    return format_flops(flops, digits=3)


def percent_text(part: float, whole: float) -> str:
    """Return a share in per cent, with two digits."""
    return f"{100 * part / whole:.2g} %"
