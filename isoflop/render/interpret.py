"""What `isoflop interpret` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from isoflop.render.tables import new_table

if TYPE_CHECKING:
    from isoflop.interpret.linear import Linearity
    from isoflop.interpret.window import Look

LINEARITY_NOTE = (
    "Largest errors of a layer's outputs y, relative to their size: against its\n"
    "matrix W times its inputs x, and against the sum of what its experts add."
)
ATTRIBUTION_NOTE = (
    "direct: what a part adds to the logit past all later layers; in all, the logit.\n"
    "gradient: what it adds to first order, with what later layers make of it."
)
VERDICT_NOTE = (
    "Do tokens with like gates share the label? Beyond token identity: more than\n"
    "every control, among other tokens or in other contexts (purity.parquet)."
)
USAGE_NOTE = (
    "used: share of experts that were chosen; dead: number of those that never were.\n"
    "entropy: of the choices, over that of even use. cv: deviation over mean."
)
_SHOWN_BEFORE = 50


def linearity_table(checks: Sequence[Linearity]) -> Table:
    """Return how far each layer is from its matrix and from the sum of its experts."""
    table = new_table(("layer", ">"), ("tokens", ">"), ("y - Wx", ">"), ("y - sum", ">"))
    for check in checks:
        matrix = "not linear" if check.matrix_error is None else f"{check.matrix_error:.1e}"
        table.add_row(str(check.layer), str(check.num_tokens), matrix, f"{check.sum_error:.1e}")
    return table


def logit_line(found: Look) -> str:
    """Return which logit is taken apart."""
    before = found.before[-_SHOWN_BEFORE:]
    return (
        f"after {before!r}, position {found.position}:\n"
        f"logit {found.logit:.4f} of token {found.token}, {found.text!r}"
    )


def attribution_table(rows: Sequence[Mapping[str, Any]], num_shown: int) -> Table:
    """Return the parts with the largest direct shares of a logit."""
    names = ("part", "layer", "channel", "expert", "score", "direct", "gradient")
    table = new_table(*((name, "<" if name == "part" else ">") for name in names))
    for row in sorted(rows, key=lambda row: -abs(row["direct"]))[:num_shown]:
        table.add_row(*(_cell(row[name]) for name in names))
    return table


def verdict_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what gates have in common with their neighbours, by layer and label."""
    table = new_table(("layer", ">"), ("label", "<"), ("verdict", "<"))
    for row in rows:
        layer = "all" if row["layer"] is None else str(row["layer"])
        table.add_row(layer, row["label"], row["verdict"])
    return table


def effects_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the effect of each patch and control with its interval; excluded pairs have none."""
    table = new_table(
        ("layer", "<"),
        ("control", "<"),
        ("NIE (interval)", ">"),
        ("above control", ">"),
        ("cf %", ">"),
    )
    for row in rows:
        share = f"{100 * row['answers_cf']:.1f}"
        measures = (_with_interval(row, "nie"), _with_interval(row, "gap"))
        table.add_row(row["layers"], row["control"], *measures, share)
    return table


def effects_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the columns of :func:`effects_table` are, and of how many pairs."""
    first = rows[0]
    excluded = max(row["n_excluded"] for row in rows)
    return (
        f"{first['n_pairs']} pairs of {first['n_nouns']} nouns, {excluded} without an NIE; "
        f"{100 * first['confidence']:.0f} % intervals over nouns.\n"
        "NIE: how far the answer moves to the other noun's, from 0 to 1. Merely\n"
        "destroying it reaches about 0.5: read by how much the NIE is above each control.\n"
        "cf %: pairs that then give the counterfactual answer, before all other tokens.\n"
        "The last layer's gates at a noun reach no later token: alone they do nothing."
    )


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    if row[f"{name}_lo"] is None:
        return f"{row[name]:.3f}"
    return f"{row[name]:.3f} ({row[f'{name}_lo']:.3f} to {row[f'{name}_hi']:.3f})"


def usage_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return how evenly each table of experts is used."""
    heads = {
        "layer": "layer",
        "channel": "channel",
        "num_experts": "experts",
        "fraction_used": "used",
        "num_dead": "dead",
        "entropy": "entropy",
        "cv": "cv",
    }
    table = new_table(*((head, ">") for head in heads.values()))
    for row in rows:
        cells = {name: _cell(row[name]) for name in heads}
        table.add_row(*({**cells, "channel": "all"} if row["channel"] is None else cells).values())
    return table


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
