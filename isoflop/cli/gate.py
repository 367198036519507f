"""`isoflop gate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.cli.fit_options import LOSS_UNIT, screening_options
from isoflop.cli.options import FOLDER_OR_TABLE, OUT_FOLDER
from isoflop.cli.rows import read_rows
from isoflop.cli.tables import MISSING, console, counted, fitted_table, print_lines
from isoflop.numbers import format_flops, format_multiplier
from isoflop.units import format_loss, loss_column, loss_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isoflop.analysis.gate import Gate, GateRow
    from isoflop.analysis.gate.rule import GateRule
    from isoflop.analysis.result import Fits
    from isoflop.api.rows import Rows

_ANSWERS = ("pass", "fail", "undecided")
_MOST_REASONS = 8
# From here on a run is named as off the reference's best size: a factor.
_OFF_SIZE = 2.0
_TEXT = ("run", "arch", "verdict")
_LEAST_WANTED = ("arch", "all at once", "by time")


@click.command()
@click.argument("reference", metavar="REFERENCE", type=FOLDER_OR_TABLE)
@click.argument("runs", metavar="RUNS", type=FOLDER_OR_TABLE)
@click.option(
    "--reference",
    "arch",
    metavar="ARCH",
    help="Whose frontier.  [default: swiglu, else mlp, else the first]",
)
@click.option(
    "--rule",
    "rule_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file that says what passes.  [default: a multiplier above 1 at 95 %]",
)
@click.option(
    "--undecided-is",
    type=click.Choice(("pass", "fail")),
    default="fail",
    show_default=True,
    help="How an undecided verdict ends.",
)
@click.option("--out", type=OUT_FOLDER, help="Folder for gate.parquet.  [default: nothing written]")
@LOSS_UNIT
@screening_options
def gate(
    reference: Path,
    runs: Path,
    arch: str | None,
    rule_file: Path | None,
    undecided_is: str,
    out: Path | None,
    loss_unit: str | None,
    **chosen: Any,
) -> None:
    """Judge one run or a few against the frontier of a finished study.

    REFERENCE is a study folder or a table that `isoflop fit` takes. RUNS is a study folder or such
    a table with the columns loss and flops; wall_s, arch, run_id, n_params, n_tokens and seed are
    used where they are there, and seeds of the same arch, size, tokens and FLOPs are averaged.

    The multiplier is the compute (or time) that the reference's frontier needs for a run's loss,
    over what the run took. Its interval holds the uncertainty of the frontier and the noise of one
    run. The run is judged as it is: one off its best size has a lower multiplier than its family.
    --budgets, --repeats and --screen are about the reference's runs, as in `isoflop fit`.

    Exit code 0: pass. 1: fail or undecided. 2: a mistake in what was typed.
    """
    from isoflop.analysis.fit import fit_optima, select_runs
    from isoflop.analysis.gate import GATE, gate
    from isoflop.analysis.gate.rule import default_rule, load_rule
    from isoflop.analysis.result import FitOptions, pick_reference, write_fitted

    rule = default_rule() if rule_file is None else load_rule(rule_file)
    options = FitOptions(reference=arch, confidence=rule.confidence, **chosen)
    read = read_rows(reference, loss_unit=loss_unit)
    judged = read_rows(runs, ("loss", "flops"), loss_unit=loss_unit)
    _check_same_losses(read, judged)
    options = read.options(options)
    _, selection = select_runs(read.rows, options, unit=read.unit)
    pick_reference(selection.archs, options.reference)
    fits = fit_optima(selection, options, methods=(options.method,), axes=(options.axis,))
    made = gate(fits, judged.rows, rule)
    _show(made, fits, rule_file)
    if out is not None:
        path = out / "gate.parquet"
        out.mkdir(parents=True, exist_ok=True)
        declared = {str(row["arch"]) for row in judged.rows if row.get("declared")}
        write_fitted(path, made.rows, GATE, fits, declared)
        print_lines(console(), [str(path)])
    if made.verdict != "pass" and (made.verdict, undecided_is) != ("undecided", "pass"):
        click.get_current_context().exit(1)


def _check_same_losses(reference: Rows, runs: Rows) -> None:
    """Refuse two studies whose losses or FLOPs are not of one kind; of tables, other units alone.

    Raises:
        UserError: another unit, other data or another FLOP convention.
    """
    from isoflop.errors import UserError, shown
    from isoflop.spec import RunSpec
    from isoflop.units import unit_words

    if reference.unit != runs.unit:
        raise UserError(
            "RUNS",
            shown(f"losses in {unit_words(runs.unit)}"),
            f"losses in {unit_words(reference.unit)}, as REFERENCE",
            "name a table of runs that compare, or say by --loss-unit what a table's losses are",
        )
    if reference.plan is None or runs.plan is None:
        return
    kinds = []
    for plan in (reference.plan, runs.plan):
        specs = [run.spec for run in plan.runs]
        data = sorted({s.data_id if isinstance(s, RunSpec) else s.data for s in specs})
        kinds.append(f"FLOPs by {plan.study.convention}, data {', '.join(data)}")
    if kinds[0] != kinds[1]:
        raise UserError(
            "RUNS",
            shown(kinds[1]),
            f"as REFERENCE: {kinds[0]}",
            "name a table of runs that compare",
        )


def _show(made: Gate, fits: Fits, rule_file: Path | None) -> None:
    from isoflop.analysis.result import excluded_note, source_notes

    out = console()
    rows = made.along(made.rule.resource)
    other = made.along("wall_s" if made.rule.resource == "flops" else "flops")
    names = _names(rows)
    cells = [_cells(*each, fits.unit) for each in zip(names, rows, other, strict=True)]
    if len(rows) == 1:
        cells[0].pop("all at once")
    table, left_out = fitted_table(
        cells, out.width, least_wanted=_LEAST_WANTED, text=_TEXT, groups=[0] * len(rows)
    )
    out.print(table)
    lines = [f"Not in this width: {', '.join(left_out)}; --out has all."] if left_out else []
    reasons = [
        f"{name}: {row.verdict}, {row.reason}"
        for name, row in zip(names, rows, strict=True)
        if row.reason
    ]
    reasons += [
        f"{name}: {row.size_ratio:.2g} times the optimal size of {row.reference} at these FLOPs"
        for name, row in zip(names, rows, strict=True)
        if row.size_ratio is not None and not 1 / _OFF_SIZE < row.size_ratio < _OFF_SIZE
    ]
    lines += reasons[:_MOST_REASONS]
    if len(reasons) > _MOST_REASONS:
        lines.append(f"and {len(reasons) - _MOST_REASONS} more; --out has all")
    of_reference = [*fits.selection.notes, excluded_note(fits)]
    lines += [f"Reference: {note}" for note in of_reference if fits.excluded]
    lines += source_notes(fits)
    lines += [_reading(rows, fits), _rule_line(made.rule, rule_file), _last_line(made, rows)]
    for line in lines:
        out.print(line, soft_wrap=not out.is_terminal)


def _names(rows: Sequence[GateRow]) -> list[str]:
    """Return what to call the runs: short ids, else their arch and place in the table."""
    from isoflop.spec import shown_id

    found = []
    for number, row in enumerate(rows, start=1):
        ids = [shown_id(one) if len(one) == 64 else one for one in (row.run_id or "").split(", ")]
        name = ids[0] or f"{row.arch or 'run'} {number}"
        more = counted(row.num_runs - 1, "more seed")
        found.append(name if row.num_runs == 1 else f"{name} and {more}")
    return found


def _cells(name: str, row: GateRow, other: GateRow, unit: str) -> dict[str, str]:
    return {
        "run": name,
        "arch": row.arch or MISSING,
        "FLOPs": MISSING if row.flops is None else format_flops(row.flops, digits=3),
        loss_column(unit): MISSING if row.loss is None else format_loss(row.loss, unit),
        "multiplier": _factor(row),
        "interval": _between(row.ci_lo, row.ci_hi),
        "all at once": _between(row.ci_lo_simultaneous, row.ci_hi_simultaneous),
        "by time" if row.resource == "flops" else "by compute": _factor(other),
        "verdict": row.verdict,
    }


def _factor(row: GateRow) -> str:
    if row.multiplier is None:
        if row.claim_lo is not None:
            return f"> {_end(row.claim_lo)}"
        return MISSING if row.claim_hi is None else f"< {_end(row.claim_hi)}"
    return _end(row.multiplier) + (" (extrapolated)" if row.extrapolated else "")


def _between(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return MISSING
    return f"{_end(low)} to {_end(high)}"


def _end(value: float | None) -> str:
    return "no end" if value is None else format_multiplier(value, digits=3)


def _reading(rows: Sequence[GateRow], fits: Fits) -> str:
    """Return what the reference is and what the numbers mean."""
    reference = fits.reference
    words = {"flops": "compute", "wall_s": "time"}[rows[0].resource]
    optima = [] if reference is None else [o for o in fits.optima_of(reference) if o.is_point]
    at = ", ".join(format_flops(o.budget_flops, digits=3) for o in optima)
    noise = sorted({f"{row.noise_sd:.2g}" for row in rows if row.noise_sd is not None}, key=float)
    scatter = " to ".join(dict.fromkeys((noise[0], noise[-1]))) if noise else ""
    loss = loss_name(fits.unit)
    of_noise = f"; runs like these scatter by {scatter} in ln {loss}" if noise else ""
    of_all = " All at once: intervals that hold together." if len(rows) > 1 else ""
    return (
        f"Multiplier: {words} that {reference} needs for the run's {loss}, over the run's own; "
        f"above 1 the run, as it is, is better.{of_all} {reference}: optima at {at or 'no budget'}"
        f"{of_noise}."
    )


def _rule_line(rule: GateRule, rule_file: Path | None) -> str:
    from isoflop.analysis.gate.rule import words_of

    tests = f"pass where its {words_of(rule.passes)}, fail where its {words_of(rule.fails)}"
    return (
        f"Rule {rule_file or 'by default'} (sha256 {rule.sha[:12]}): multiplier along "
        f"{rule.resource}, {tests}, at {100 * rule.confidence:.4g} %, up to "
        f"{rule.max_extrapolation:g} times beyond the reference's optima."
    )


def _last_line(made: Gate, rows: Sequence[GateRow]) -> str:
    if len(rows) == 1:
        return f"Verdict: {made.verdict}."
    counts = {answer: sum(row.verdict == answer for row in rows) for answer in _ANSWERS}
    shown = ", ".join(f"{number} {answer}" for answer, number in counts.items() if number)
    return (
        f"Verdict, {made.rule.runs} of {len(rows)} to pass: {made.verdict} (each alone: {shown})."
    )
