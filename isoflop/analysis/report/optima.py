"""What a report says of the optima and of the laws through them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from isoflop.analysis.axes import axis_heading, fitted_axes
from isoflop.analysis.envelope import ENVELOPE, envelopes, spent
from isoflop.analysis.laws import LawRow
from isoflop.analysis.misallocation import misallocation
from isoflop.analysis.optima import Optimum
from isoflop.analysis.parametric import ParametricFit
from isoflop.analysis.points import Axis
from isoflop.analysis.report.document import (
    ARCH,
    BUDGET,
    Block,
    Cell,
    Items,
    Picture,
    Section,
    bounded,
    count_column,
    flops_column,
    interval,
    label_column,
    loss_column,
    number_column,
    perplexity_columns,
    table,
    text_column,
)
from isoflop.analysis.result import Fits
from isoflop.numbers import format_count, format_multiplier
from isoflop.units import (
    UNITS,
    format_loss,
    has_perplexity,
    loss_heading,
    loss_name,
    measure_name,
)

_FORMS = {
    "chinchilla": "L = E + A/N^alpha + B/D^beta, a and b the exponents of N* and D*",
    "frontier": "L = L_inf + A · C^-alpha through the optima",
    "envelope": "L = L_inf + A · C^-alpha through the runs that no cheaper run beats",
    "joint": "with A · N_active^-alpha · (N / N_active)^-gamma for A/N^alpha",
    "routed": "log10 L = a log10 N + b log10 Ê + c log10 N · log10 Ê + d, Ê from E_start at one "
    "expert to E_max at most",
}
_STATUS_MEANING = (
    "A status of edge low or edge high is a bound: the minimum lies beyond the sizes measured "
    "(< below, > above), and the optimum enters no law. Not convex, flat and too few have no "
    "optimum at all. An interval marked (edge) ends at an end of the grid and may reach further."
)


def optima_section(fits: Fits) -> Section:
    """Return the optimum of each family and budget, by the chosen method."""
    blocks: list[Block] = [
        *_cluster_blocks(fits),
        f"Method: {fits.options.method.replace('_', ' ')}. {_bootstrap(fits)} {_STATUS_MEANING}",
        Picture(
            stem="isoflop_profiles",
            caption=f"IsoFLOP profiles: {loss_name(fits.unit)} against size at equal training "
            "compute.",
        ),
    ]
    axes = [axis for axis in fitted_axes(fits.options.axis) if _is_measured(fits, axis)]
    blocks += [_optima_table(fits, axis) for axis in axes]
    blocks += [
        Picture(
            stem="frontier",
            caption=f"{measure_name(fits.unit)} at the optimum of each family and budget.",
        ),
        Picture(stem="optimum_size", caption="Compute-optimal parameters N* against compute."),
        Picture(stem="optimum_tokens", caption="Compute-optimal tokens D* against compute."),
    ]
    return Section(key="optima", title="Optima", blocks=tuple(blocks))


def _cluster_blocks(fits: Fits) -> list[Block]:
    """Return what was taken as one budget; nothing where budgets are the table's."""
    rows = [
        {
            "budget_flops": cluster.budget_flops,
            "lowest": cluster.lowest,
            "spread": 100 * cluster.spread,
            "values": cluster.num_budgets,
            "runs": cluster.num_runs,
            "sizes": max(cluster.sizes.values(), default=0),
            "archs": ", ".join(cluster.sizes),
        }
        for cluster in fits.clusters
    ]
    columns = [
        BUDGET,
        flops_column("lowest", "Lowest"),
        number_column("spread", "Spread (%)", 2),
        number_column("values", "Values"),
        number_column("runs", "Runs"),
        number_column("sizes", "Sizes of a family, at most"),
        label_column("archs", "Families"),
    ]
    said = {
        "round": "Budgets that nearly agree are taken as one (--round-budgets).",
        "auto": "Budgets are those that the FLOPs spent gather at (--budgets auto).",
    }
    how = fits.options.budgets
    return [said[how], table("Budgets", columns, rows)] if how != "given" and rows else []


def _is_measured(fits: Fits, axis: Axis) -> bool:
    return axis != "n_active" or any(
        point.n_active is not None for points in fits.groups.values() for point in points
    )


def _bootstrap(fits: Fits) -> str:
    draws = fits.draws_of()
    if draws is None:
        return "No intervals were computed."
    return (
        f"Intervals: {100 * fits.options.confidence:g} %, {draws.kind} bootstrap, "
        f"{draws.n_boot} draws, seed {draws.seed}."
    )


def _optima_table(fits: Fits, axis: Axis) -> Block:
    columns = [
        ARCH,
        BUDGET,
        count_column("x_opt", axis_heading(axis)),
        count_column("x_interval", "Interval"),
        loss_column("loss_opt", loss_heading(fits.unit)),
        loss_column("loss_interval", "Interval"),
        *perplexity_columns(fits.unit),
        text_column("status", "Status"),
        number_column("n_points", "Runs"),
        number_column("n_failed", "Failed draws"),
    ]
    rows = [_optimum_row(o, fits.unit) for arch in fits.archs for o in fits.optima_of(arch, axis)]
    return table(f"Optima: {axis_heading(axis)}", columns, rows)


def _optimum_row(optimum: Optimum, unit: str) -> dict[str, Any]:
    loss, form = optimum.loss_opt, functools.partial(format_loss, unit=unit)
    perplexity = math.exp(loss) if loss is not None and has_perplexity(unit) else None
    at_most = "≤ " if optimum.is_bound else ""
    side = {"edge_low": "< ", "edge_high": "> "}.get(optimum.status, "")
    return {
        "arch": optimum.arch,
        "budget_flops": optimum.budget_flops,
        "x_opt": bounded(side, optimum.x_opt, format_count),
        "x_interval": _ends(optimum),
        "loss_opt": bounded(at_most, loss, form),
        "loss_interval": interval(optimum.loss_ci_lo, optimum.loss_ci_hi, form),
        "perplexity": bounded(at_most, perplexity, "{:.4g}".format),
        "status": optimum.status,
        "n_points": optimum.n_points,
        "n_failed": optimum.n_failed,
    }


def _ends(optimum: Optimum) -> Cell:
    cell = interval(optimum.ci_lo, optimum.ci_hi, format_count)
    if optimum.ci_at_edge is None:
        return cell
    return Cell(text=f"{cell.text} (edge)", value=cell.value)


def laws_section(fits: Fits) -> Section:
    """Return the power laws, the parametric laws, and what is wrong with any of them."""
    blocks: list[Block] = [
        "y = coefficient · C^exponent by least squares of ln y on ln C through the interior "
        f"optima; {_c_of_laws(fits)} Coefficients are rounded here; the parquet tables hold full "
        "precision.",
        _law_table(
            f"Power laws through the optima, method {fits.options.method}",
            [row for law in fits.shown_laws for row in law.rows()],
            left_out=("form", "method"),
        ),
    ]
    blocks += _parametric_blocks(fits.parametric)
    blocks += _misallocation_blocks(fits)
    blocks.append(
        Picture(
            stem="sensitivity",
            caption="Exponents under every method of finding the optima, and of the surfaces.",
        )
    )
    blocks.append(Picture(stem="residuals", caption="Residuals of the isoFLOP curves, in percent."))
    return Section(key="laws", title="Laws", blocks=tuple(blocks))


def surface_section(fits: Fits) -> Section:
    """Return the laws over all runs, for a table without isoFLOP profiles."""
    laws = [fit for fit in fits.parametric if fit.form in ("chinchilla", ENVELOPE)]
    why = "No run has a budget" if not fits.budgets else "No two sizes of a family share a budget"
    blocks: list[Block] = [
        f"{why}, so there are no isoFLOP profiles and no optima. A surface is fitted to all runs "
        "of a family and needs neither; nor does a frontier through the runs that no cheaper run "
        "beats.",
        *_parametric_blocks(laws),
        *_envelope_blocks(fits),
        Picture(stem="resources", caption="Runs against each resource."),
    ]
    return Section(key="surface", title="Laws over all runs", blocks=tuple(blocks))


def _envelope_blocks(fits: Fits) -> list[Block]:
    """Return the runs of every family's envelope, and its frontier against the reference's."""
    unit = fits.unit
    flops = flops_column("flops", "FLOPs spent")
    rows = [
        {
            "arch": arch,
            "flops": spent(point),
            "n_params": point.n_params,
            "n_tokens": point.n_tokens,
            "loss": point.loss,
        }
        for arch, points in envelopes(fits.selection).items()
        for point in points
    ]
    of_runs = [
        ARCH,
        flops,
        count_column("n_params", "Parameters"),
        count_column("n_tokens", "Tokens"),
        loss_column("loss", loss_heading(unit), unit),
    ]
    blocks: list[Block] = [
        f"A frontier (approach 1) rests on which sizes were run, and the lowest {loss_name(unit)} "
        "of several is a lucky one; its intervals, by drawing whole runs, hold the first alone. No "
        "order of families is claimed by it.",
        table("Runs that no cheaper run beats", of_runs, rows),
    ]
    compared = [
        {
            "arch": row.arch,
            "reference": row.reference,
            "flops": row.budget_flops,
            "multiplier": row.multiplier,
            "interval": interval(row.ci_lo, row.ci_hi, format_multiplier),
            "extrapolated": row.extrapolated,
            "status": row.status,
        }
        for row in fits.envelopes
    ]
    columns = [
        ARCH,
        label_column("reference", "Reference"),
        flops_column("flops", "FLOPs"),
        number_column("multiplier", "Multiplier", 3),
        number_column("interval", "Interval"),
        label_column("extrapolated", "Extrapolated"),
        text_column("status", "Status"),
    ]
    what = loss_name(unit)
    caption = f"Compute that the reference's frontier needs for the family's {what}, over its own"
    return [*blocks, *[table(caption, columns, compared)] * bool(compared)] if rows else []


def _misallocation_blocks(fits: Fits) -> list[Block]:
    """Return what sizes off the optimum cost, as a table; nothing without a surface."""
    form = functools.partial(format_loss, unit=fits.unit)
    rows = [
        {
            "arch": row.arch,
            "budget_flops": row.budget_flops,
            "factor": row.factor,
            "loss_cost": row.loss_cost,
            "loss_interval": interval(row.loss_cost_lo, row.loss_cost_hi, form),
            "wasted": 100 * row.compute_wasted,
            "wasted_interval": _percent(row.compute_wasted_lo, row.compute_wasted_hi),
            "profile": row.profile_loss_cost,
        }
        for row in misallocation(fits)
    ]
    columns = [
        ARCH,
        BUDGET,
        number_column("factor", "N / N*", 2),
        loss_column("loss_cost", f"{_capital(fits.unit)} cost", fits.unit),
        number_column("loss_interval", "Interval"),
        number_column("wasted", "Compute wasted (%)", 3),
        number_column("wasted_interval", "Interval"),
        loss_column("profile", f"{_capital(fits.unit)} cost by the profile", fits.unit),
    ]
    return [table("What a size off the optimum costs, by the surface", columns, rows)] * bool(rows)


def _capital(unit: str) -> str:
    return "Loss" if unit in UNITS else unit


def _percent(low: float | None, high: float | None) -> Cell:
    ends = [None if end is None else 100 * end for end in (low, high)]
    return interval(ends[0], ends[1], "{:.3g}".format)


def _parametric_blocks(fitted: Sequence[ParametricFit]) -> list[Block]:
    """Return what the parametric laws are, their parameters, and what is wrong with any of them."""
    if not fitted:
        return ["No parametric law was fitted."]
    forms = dict.fromkeys(fit.form for fit in fitted)
    said = "; ".join(f"{form}: {_FORMS[form]}" for form in _FORMS if form in forms)
    blocks: list[Block] = [
        f"{said}. huber: Huber's criterion on ln L; vpnls: least squares on L. Points are runs, "
        "of a frontier optima.",
        _law_table("Parametric laws", [row for fit in fitted for row in fit.rows()]),
    ]
    doubts = [
        f"{fit.arch}, {fit.form} by {fit.method}: {fit.status.replace('_', ' ')}"
        + (f" ({fit.reason})." if fit.reason else ".")
        for fit in fitted
        if fit.status != "ok"
    ]
    return [*blocks, Items(items=tuple(doubts))] if doubts else blocks


def _c_of_laws(fits: Fits) -> str:
    """Return what C of the laws is, and how far exponents are from those with the other kind."""
    if fits.law_budget == "nominal":
        return (
            "C is the nominal budget in training FLOPs (not every optimum tells the FLOPs that its "
            "runs achieved, or they do not rise with the budget)."
            if fits.options.law_budget == "auto"
            else "C is the nominal budget in training FLOPs."
        )
    both = [(law, fits.law(law.arch, law.axis, budget="nominal")) for law in fits.shown_laws]
    apart = [
        abs(law.exponent - nominal.exponent)
        for law, nominal in both
        if law.exponent is not None and nominal.exponent is not None
    ]
    sentence = "C is the mean of the training FLOPs that the runs of an optimum achieved."
    if apart:
        sentence += f" With the nominal budgets exponents differ by at most {max(apart):.2g}."
    return sentence


def _law_table(caption: str, rows: Sequence[LawRow], left_out: Sequence[str] = ()) -> Block:
    """Return the parameters with the columns that hold anything and are not left out."""
    form = "{:.5g}".format
    columns = [
        ARCH,
        text_column("form", "Form"),
        label_column("axis", "Of"),
        label_column("method", "Method"),
        label_column("parameter", "Parameter"),
        number_column("value", "Value", 5),
        number_column("interval", "Interval"),
        number_column("n_points", "Points"),
        number_column("rmse", "RMSE (ln)", 3),
        text_column("bootstrap_kind", "Bootstrap"),
        number_column("n_failed", "Failed draws"),
        number_column("share_of_starts_at_optimum", "Starts at optimum", 2),
        text_column("status", "Status"),
    ]
    used = [c for c in columns if any(getattr(row, c.key, None) is not None for row in rows)]
    keys = {c.key for c in used} | {"arch", "value", "interval", "status"}
    return table(
        caption,
        [c for c in columns if c.key in keys and c.key not in left_out],
        [{**asdict(row), "interval": interval(row.ci_lo, row.ci_hi, form)} for row in rows],
    )
