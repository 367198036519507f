"""What `isoflop fit` shows of surfaces, tests of them, tables of optima, and merged budgets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.cli.tables import MISSING, between, console, new_table
from isoflop.errors import UserError, shown
from isoflop.numbers import format_flops, format_multiplier
from isoflop.units import loss_name

if TYPE_CHECKING:
    from rich.table import Table

    from isoflop.analysis.laws import LawRow
    from isoflop.analysis.parametric import LawTest, ParametricFit
    from isoflop.analysis.result import Fits

_MOST_NAMED = 5
_FOUR_DIGITS = "{:.4g}".format


def clusters_table(fits: Fits) -> Table:
    """Return what was taken as one budget: archs, runs, sizes, and how far apart it was."""
    names = ("budget", "values", "runs", "sizes", "spread", "archs")
    table = new_table(*((name, "<" if name == "archs" else ">") for name in names))
    for cluster in fits.clusters:
        archs = list(cluster.sizes)
        more = f" and {len(archs) - _MOST_NAMED} more" if len(archs) > _MOST_NAMED else ""
        counts = cluster.sizes.values()
        least, most = min(counts, default=0), max(counts, default=0)
        table.add_row(
            format_flops(cluster.budget_flops),
            f"{cluster.num_budgets:,}",
            f"{cluster.num_runs:,}",
            str(most) if least == most else f"{least} to {most}",
            f"{100 * cluster.spread:.2g} %",
            ", ".join(archs[:_MOST_NAMED]) + more,
        )
    return table


def rows_without_budgets(fits: Fits) -> tuple[list[dict[str, str]], ...]:
    """Return the rows of the tables of laws over all runs: surfaces, frontiers, multipliers."""
    return _surface_rows(fits), _envelope_rows(fits), _envelope_multiplier_rows(fits)


def notes_without_budgets(fits: Fits) -> list[str]:
    """Return what the tables of laws over all runs mean, and why an arch has none."""
    return [*_surface_notes(fits), *_envelope_notes(fits)]


def _surface_rows(fits: Fits) -> list[dict[str, str]]:
    """Return a row per parameter of the surface over all runs of each arch."""
    rows = [row for surface in _surfaces(fits) if surface.has_values for row in surface.rows()]
    return [_surface_row(row) for row in rows]


def _surface_notes(fits: Fits) -> list[str]:
    """Return what the table of surfaces means, and why an arch has none or a doubtful one."""
    notes = [
        "Surface: L = E + A/N^alpha + B/D^beta over all runs, Huber's criterion on ln L; a and b "
        "are the exponents of N* and D* in C = 6ND."
    ]
    notes += [
        f"{surface.arch}: surface {surface.status.replace('_', ' ')} ({surface.reason})."
        for surface in _surfaces(fits)
        if surface.reason
    ]
    drawn = [surface for surface in _surfaces(fits) if surface.draws]
    if not drawn:
        return [*notes, "No intervals (0 bootstrap draws)."] if not fits.options.n_boot else notes
    kinds = ", ".join(sorted({str(surface.bootstrap_kind) for surface in drawn}))
    level = f"{fits.options.confidence:.0%}, {kinds} bootstrap, {fits.options.n_boot:,} draws"
    return [*notes, f"Intervals: {level}."]


def _envelope_rows(fits: Fits) -> list[dict[str, str]]:
    """Return a row per family with a frontier through the runs that no cheaper run beats."""
    return [
        {
            "arch": law.arch,
            "L_inf": _value(law, "L_inf"),
            "its interval": _ends(law, "L_inf"),
            "A": _value(law, "A"),
            "alpha": _value(law, "alpha"),
            "alpha interval": _ends(law, "alpha"),
            "runs": str(law.n_points),
            "FLOPs": f"{format_flops(law.budget_lo, 3)} to {format_flops(law.budget_hi, 3)}",
            "status": law.status.replace("_", " "),
        }
        for law in _envelopes(fits)
        if law.has_values and law.budget_lo is not None and law.budget_hi is not None
    ]


def _envelope_multiplier_rows(fits: Fits) -> list[dict[str, str]]:
    """Return a row per family and compute: its frontier against the reference's."""
    return [
        {
            "arch": row.arch,
            "FLOPs": format_flops(row.budget_flops),
            "multiplier": MISSING if row.multiplier is None else format_multiplier(row.multiplier),
            "interval": between(row.ci_lo, row.ci_hi, format_multiplier),
            "status": "extrapolated" if row.extrapolated else row.status.replace("_", " "),
        }
        for row in fits.envelopes
    ]


def _envelope_notes(fits: Fits) -> list[str]:
    """Return what frontiers through all runs are, and why an arch has none."""
    laws = _envelopes(fits)
    if not laws:
        return []
    notes = [
        "Frontier: L = L_inf + A · C^-alpha through the runs that no cheaper run beats (approach "
        "1), intervals by drawing whole runs. It rests on which sizes were run, and lowest losses "
        "are lucky ones: no order is claimed by it."
    ]
    if fits.envelopes:
        reference = fits.envelopes[0].reference
        notes.append(
            f"Multiplier: compute that the frontier of {reference} needs for the "
            f"{loss_name(fits.unit)} of the arch's, over the arch's."
        )
    return notes + [
        f"{law.arch}: frontier {law.status.replace('_', ' ')} ({law.reason})."
        for law in laws
        if law.reason
    ]


def _envelopes(fits: Fits) -> list[ParametricFit]:
    return [fit for fit in fits.parametric if fit.form == "envelope"]


def _value(law: ParametricFit, parameter: str) -> str:
    return _FOUR_DIGITS(law.values[parameter])


def _ends(law: ParametricFit, parameter: str) -> str:
    low, high = law.interval(parameter) or (None, None)
    return between(low, high, _FOUR_DIGITS)


def _surfaces(fits: Fits) -> list[ParametricFit]:
    return [fit for fit in fits.parametric if (fit.form, fit.method) == ("chinchilla", "huber")]


def _surface_row(row: LawRow) -> dict[str, str]:
    return {
        "arch": row.arch,
        "parameter": row.parameter,
        "value": MISSING if row.value is None else _FOUR_DIGITS(row.value),
        "interval": between(row.ci_lo, row.ci_hi, _FOUR_DIGITS),
        "runs": str(row.n_points),
        "rmse of ln L": MISSING if row.rmse is None else f"{row.rmse:.2g}",
    }


def against_lines(fits: Fits, given: Mapping[str, float]) -> list[str]:
    """Return a line per arch: whether its surface and the given parameters can both be true."""
    from isoflop.analysis.parametric import law_test

    lines = []
    for surface in _surfaces(fits):
        if surface.has_values:
            found = law_test(surface, given, n_draws=max(fits.options.n_boot, 100))
            lines.append(f"{surface.arch} against the given surface: {_verdict(found)}.")
        else:
            status = surface.status.replace("_", " ")
            lines.append(f"{surface.arch} against the given surface: not tested ({status}).")
    return lines


def _verdict(found: LawTest) -> str:
    least = 1 / (found.n_draws + 1)
    p_value = f"p {found.p_value:.2g}" if found.p_value > least else f"p < {least:.1g}"
    words = "rejected" if found.is_rejected else "not rejected"
    words += f" by the likelihood ratio, {p_value} of {found.n_draws:,} draws"
    if found.chi2 is None:
        return words
    chi2 = f"chi-squared {found.chi2:.3g} at {found.dof} degrees of freedom"
    return f"{words}; {chi2}, p {found.chi2_p_value:.2g}"


def fit_supplied(rows: list[dict[str, Any]], out_folder: Path | None) -> None:
    """Fit laws to a table of optima, print them and write fits.parquet."""
    from isoflop.analysis.laws import FITS
    from isoflop.analysis.supplied import fit_supplied_optima, unusable_rows
    from isoflop.tables import write_table

    if out_folder is None:
        raise UserError("--out", shown("nothing"), "a folder for the results", "add --out DIR")
    laws, out = fit_supplied_optima(rows), console()
    out.print(
        "The table holds optima, not runs: laws through them, and nothing that compares runs."
    )
    for row in laws:
        value = MISSING if row.value is None else f"{row.value:.5g}"
        ends = "" if row.ci_lo is None else f" ({row.ci_lo:.5g} to {row.ci_hi:.5g})"
        name = f"{row.arch} {row.form.replace('_', ' ')} {row.axis} {row.parameter}"
        out.print(f"{name}: {value}{ends}; {row.settings}; {row.status}", soft_wrap=True)
    if not laws:
        out.print("Nothing to fit: no row has an arch, a budget and an optimum above 0.")
    unusable = unusable_rows(rows)
    if unusable:
        named = ", ".join(map(str, unusable[:_MOST_NAMED])) + ", ..." * (
            len(unusable) > _MOST_NAMED
        )
        out.print(
            f"{len(unusable)} of {len(rows)} rows hold what is no optimum, which enters no law "
            f"(data row {named}): each needs an arch, a budget and an optimum above 0.",
            soft_wrap=True,
        )
    out_folder.mkdir(parents=True, exist_ok=True)
    write_table(out_folder / "fits.parquet", laws, FITS)
    out.print(str(out_folder / "fits.parquet"), soft_wrap=True)
