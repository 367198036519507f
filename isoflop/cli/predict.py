"""`isoflop predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.cli.fit_options import LOSS_UNIT, REFERENCE, screening_options
from isoflop.cli.options import FOLDER_OR_TABLE, OUT_FOLDER
from isoflop.cli.rows import read_rows
from isoflop.cli.tables import MISSING, between, console, fitted_table, print_lines
from isoflop.errors import UserError, shown
from isoflop.numbers import format_flops
from isoflop.units import loss_name

if TYPE_CHECKING:
    from isoflop.analysis.predict import Prediction, Status
    from isoflop.analysis.result import Fits
    from isoflop.plan.planner import Plan

_TEXT = ("arch", "of", "by")


@click.command()
@click.argument("source", metavar="FOLDER_OR_TABLE", type=FOLDER_OR_TABLE)
@click.option(
    "--budget", required=True, metavar="1e19", help="Training FLOPs per run, not run yet."
)
@click.option(
    "--arch", "archs", multiple=True, metavar="ARCH", help="Only this family; may repeat."
)
@REFERENCE
@click.option(
    "--plan",
    "is_planned",
    is_flag=True,
    help="Plan that budget's runs about N*, and register the prediction.",
)
@click.option(
    "--axis",
    metavar="COUNT",
    default="n_params",
    help="Another count to predict the optimum of: n_active, n_nonembed or a column of the table.",
)
@click.option("--out", type=OUT_FOLDER, help="Write the table as predictions.parquet there.")
@LOSS_UNIT
@screening_options
def predict(
    source: Path,
    budget: str,
    archs: tuple[str, ...],
    is_planned: bool,
    out: Path | None,
    loss_unit: str | None,
    **chosen: Any,
) -> None:
    """Predict what a study at a larger budget would measure, with prediction intervals.

    Per family: N* and D*, the optimum along --axis, the loss there, the learning rate where there
    is a law of it, and the compute multiplier over the reference. An interval holds what a new
    study of as many sizes as the largest budget's measures, in 95 of 100 studies: the error of the
    law and the noise of the new runs. Up to 10 times the largest budget measured; beyond, nothing
    is predicted.

    Looking writes nothing. --plan adds that budget to the study's plan, with sizes about each N*,
    and writes the prediction into predictions.json, where it stays: `isoflop report` compares it
    with what is measured.
    """
    from isoflop.analysis.fit import fit_optima, select_runs
    from isoflop.analysis.predict import SIZE_AXES, size_axes
    from isoflop.analysis.predict import predict as predicted
    from isoflop.analysis.result import FitOptions
    from isoflop.study import parse_flops

    budget_flops = parse_flops(budget, "--budget")
    if is_planned and archs:
        do = "leave --arch out"
        raise UserError("--plan", shown("with --arch"), "for all families of the study", do)
    if is_planned and not (source / "plan.json").is_file():
        do = "leave --plan out, or plan a study first"
        raise UserError("--plan", shown(str(source)), "for a study's folder, with plan.json", do)
    options = FitOptions(**chosen)
    if is_planned and options.axis not in SIZE_AXES:
        allowed = "left out: what is registered is N*, D*, the loss and the multiplier"
        raise UserError("--axis with --plan", options.axis, allowed, "predict it without --plan")
    read = read_rows(source, with_code=is_planned, loss_unit=loss_unit, axis=options.axis)
    plan, rows = read.plan, read.rows
    if is_planned:
        from isoflop.analysis.registered import check_open

        check_open(source, budget_flops, rows)
    options = read.options(options)
    _, selection = select_runs(rows, options, unit=read.unit)
    fits = fit_optima(selection, options, methods=(options.method,), axes=size_axes(options.axis))
    predictions = predicted(fits, budget_flops, archs)
    # Before anything is printed or written: a plan that cannot grow is refused as a whole.
    grown = _grown(plan, budget_flops, predictions) if plan is not None and is_planned else None
    _show(fits, predictions)
    if out is not None:
        _write_table(fits, predictions, out)
    if not is_planned:
        return
    from isoflop.analysis.registered import register

    # The plan first: cut off in between, the same command finds the budget planned and no run of it
    # begun, and registers.
    if grown is not None:
        _write_plan(grown, source)
    path = register(source, budget_flops, fits, predictions)
    click.echo(f"registered in {path}; run `isoflop run {source}`, then `isoflop report {source}`")


def _grown(plan: Plan, budget_flops: int, predictions: Sequence[Prediction]) -> Plan | None:
    """Return the plan with the budget's runs about each N*; None if it has runs of the budget."""
    from isoflop.analysis.predict import MEANINGS
    from isoflop.plan.grow import add_budget

    sizes = {row.arch: row for row in predictions if row.quantity == "n_params"}
    for arch in plan.study.archs:
        if arch not in sizes or sizes[arch].value is None:
            why = (
                "the table has no row of it" if arch not in sizes else MEANINGS[sizes[arch].status]
            )
            allowed = f"for families with a predicted N* (not {arch}: {why})"
            do = (
                f"use `isoflop extend --budgets {format_flops(budget_flops)}`, without a prediction"
            )
            raise UserError("--plan", shown(format_flops(budget_flops)), allowed, do)
    if budget_flops in plan.study.budgets:
        return None
    return add_budget(
        plan, budget_flops, {arch: row.value for arch, row in sizes.items() if row.value}
    )


def _write_plan(grown: Plan, folder: Path) -> None:
    from isoflop.plan.artefact import replace_plan
    from isoflop.plan.estimate import refresh_estimates

    replace_plan(grown, folder)
    refresh_estimates(grown, folder)
    click.echo(f"written to {folder}/plan.json and plan.parquet")


def _write_table(fits: Fits, predictions: Sequence[Prediction], out: Path) -> None:
    from isoflop.analysis.predict import PREDICTIONS
    from isoflop.analysis.result import write_fitted

    path = out / f"{PREDICTIONS.table}.parquet"
    write_fitted(path, predictions, PREDICTIONS, fits)
    click.echo(str(path))


def _show(fits: Fits, predictions: Sequence[Prediction]) -> None:
    """Print the predictions, what the intervals are of, and why there is none of a quantity."""
    from isoflop.analysis.result import excluded_note, source_notes

    out = console()
    rows = [_cells(row) for row in predictions if row.quantity != "learning_rate"]
    archs = [row["arch"] for row in rows]
    table, absent = fitted_table(rows, out.width, least_wanted=("by",), text=_TEXT, groups=archs)
    out.print(table)
    first = predictions[0]
    notes = [f"Not in this width: {', '.join(absent)}."] if absent else []
    notes.append(
        f"At {format_flops(first.budget_flops)} FLOPs. {first.confidence:.0%} prediction "
        "intervals: of what a new study there measures, with as many sizes and seeds as at the "
        "largest budget. Beyond: times the family's largest budget with a minimum inside its grid."
    )
    if any(row.quantity == "multiplier" for row in predictions):
        loss = loss_name(fits.unit)
        notes.append(
            f"Multiplier: compute that {fits.reference} needs for the family's {loss}, over the "
            "budget. No order is claimed beyond the data."
        )
    notes += [*source_notes(fits), *_missing_notes(predictions), *fits.selection.notes]
    print_lines(out, [*notes, excluded_note(fits)])


def _missing_notes(predictions: Sequence[Prediction]) -> list[str]:
    """Return why quantities are not predicted: a line for families that lack the same."""
    from isoflop.analysis.predict import MEANINGS

    lacking: dict[tuple[str, Status], list[str]] = {}
    for row in predictions:
        if not row.is_predicted:
            lacking.setdefault((row.arch, row.status), []).append(row.name)
    alike: dict[tuple[Status, str], list[str]] = {}
    for (arch, status), names in lacking.items():
        alike.setdefault((status, ", ".join(names)), []).append(arch)
    every = list(dict.fromkeys(row.arch for row in predictions))
    notes = []
    for (status, what), archs in alike.items():
        whose = "" if archs == every else f" of {', '.join(archs)}"
        notes.append(f"No {what}{whose}: {MEANINGS[status]}.")
    return notes


def _cells(row: Prediction) -> dict[str, str]:
    return {
        "arch": row.arch,
        "of": row.name,
        "predicted": MISSING if row.value is None else row.written(row.value),
        "interval": between(row.pi_lo, row.pi_hi, row.written),
        "beyond": MISSING if row.ratio is None else f"{row.ratio:.3g} ×",
        "by": row.law or row.status.replace("_", " "),
    }
