"""Tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from isoflop.numbers import format_count, format_flops
from isoflop.plan.identity import shown_id
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun

if TYPE_CHECKING:
    from isoflop.analysis.fit import Fits
    from isoflop.plan.estimate import PlanEstimate, RunEstimate

# Where output goes to a file or pipe there is no width to obey; this holds the widest table.
_PIPE_WIDTH = 140

_HOURS = {"GPU-hours": "GPU-h", "core-hours": "core-h"}


def console(stderr: bool = False) -> Console:
    """A console that never folds tables in a pipe."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH)
    return made


def new_table(*columns: tuple[str, str]) -> Table:
    """An empty table in the house's form; each column is a name and ``<`` or ``>``."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name, align in columns:
        table.add_column(
            name, justify="right" if align == ">" else "left", no_wrap=True, overflow="ellipsis"
        )
    return table


def plan_table(plan: Plan, estimate: PlanEstimate | None = None) -> Table:
    """The plan, one row per run; with estimates their two columns."""
    table = new_table(
        ("run", "<"),
        ("budget", ">"),
        ("arch", "<"),
        ("size", ">"),
        ("params", ">"),
        ("active", ">"),
        ("non-emb", ">"),
        ("tokens", ">"),
        ("steps", ">"),
        ("FLOPs", ">"),
        ("resid %", ">"),
        ("epochs", ">"),
        *(() if estimate is None else (("est. mem", ">"), (f"est. {_HOURS[estimate.unit]}", ">"))),
    )
    previous = None
    for run in plan.runs:
        cell = (run.budget_flops, run.arch)
        if previous is not None and cell != previous:
            table.add_section()
        previous = cell
        estimated = () if estimate is None else _estimate_cells(estimate.runs[run.run_id])
        table.add_row(*_plan_row(run), *estimated)
    return table


def _estimate_cells(estimate: RunEstimate) -> tuple[str, str]:
    memory = f"{estimate.peak_mem_bytes / 1e9:.3g}G"
    hours = "no fit" if estimate.gpu_hours is None else f"{estimate.gpu_hours:.3g}"
    return memory, hours


def _plan_row(run: PlannedRun) -> tuple[str, ...]:
    return (
        shown_id(run.run_id),
        format_flops(run.budget_flops),
        run.arch,
        str(run.size),
        format_count(run.n_params),
        format_count(run.n_active),
        format_count(run.n_nonembed),
        format_count(run.n_tokens),
        f"{run.spec.steps:,}",
        format_flops(run.flops),
        f"{100 * run.residual:.3f}",
        "-" if run.epochs is None else f"{run.epochs:.2f}",
    )


def plan_summary(plan: Plan) -> list[str]:
    """The plan's totals and warnings as lines."""
    runs = plan.unique_runs
    total = sum(run.flops for run in runs)
    lines = [
        f"{len(runs)} runs, {format_flops(total, digits=4)} training FLOPs in all "
        f"({plan.study.convention} convention), recipe {plan.study.recipe}, "
        f"data {plan.study.source} / {plan.study.tokenizer}"
    ]
    repeated = [run.epochs for run in runs if run.epochs is not None and run.epochs > 1]
    if repeated:
        lines.append(
            f"warning: {len(repeated)} runs read the corpus more than once "
            f"(at most {max(repeated):.2f} times)"
        )
    lines.extend(f"warning: {warning}" for warning in plan.warnings)
    lines.extend(
        f"expected (estimate): {o.arch} at {format_flops(o.budget_flops)} optimal near size "
        f"{o.size:.2g}"
        for o in plan.expected
    )
    lines.extend(f"left out: {reason}" for reason in plan.left_out)
    return lines


def optima_table(fits: Fits) -> Table:
    """The fitted optimum of each arch at each budget, with its intervals."""
    from isoflop.analysis.summary import optima_rows_for_display

    headings = {
        "arch": ("arch", "<"),
        "budget": ("budget", ">"),
        "n_opt": ("params N*", ">"),
        "n_ci": ("N* interval", ">"),
        "d_opt": ("tokens D*", ">"),
        "loss": ("loss", ">"),
        "loss_ci": ("loss interval", ">"),
        "perplexity": ("perplexity", ">"),
        "status": ("status", "<"),
    }
    return _by_arch(headings, optima_rows_for_display(fits))


def seed_means_table(fits: Fits) -> Table:
    """The mean loss over the seeds of each arch that has one size at a budget."""
    from isoflop.analysis.compare_sizes import seed_means

    names = ("arch", "budget", "params", "tokens", "seeds", "loss", "sd")
    table = new_table(*((name, "<" if name == "arch" else ">") for name in names))
    for mean in seed_means(fits.selection):
        table.add_row(
            mean.arch,
            format_flops(mean.budget_flops),
            format_count(mean.n_params),
            format_count(mean.n_tokens),
            str(mean.n_seeds),
            f"{mean.loss:.4f}",
            "-" if mean.loss_sd is None else f"{mean.loss_sd:.4f}",
        )
    return table


def laws_table(fits: Fits) -> Table:
    """The power laws of each arch, with the intervals of their exponents."""
    from isoflop.analysis.summary import law_rows_for_display

    headings = {
        "arch": ("arch", "<"),
        "law": ("law", "<"),
        "exponent": ("exponent", ">"),
        "ci": ("interval", ">"),
        "coefficient": ("coefficient", ">"),
        "n": ("budgets", ">"),
        "rmse": ("rmse", ">"),
    }
    return _by_arch(headings, law_rows_for_display(fits))


def _by_arch(headings: dict[str, tuple[str, str]], rows: list[dict[str, str]]) -> Table:
    table = new_table(*headings.values())
    previous = None
    for row in rows:
        if previous is not None and row["arch"] != previous:
            table.add_section()
        previous = row["arch"]
        table.add_row(*(row[key] for key in headings))
    return table
