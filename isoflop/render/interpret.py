"""What `isoflop interpret` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from isoflop.render.tables import new_table

if TYPE_CHECKING:
    from isoflop.interpret.linear import Linearity


def linearity_table(checks: Sequence[Linearity]) -> Table:
    """How far each layer is from its matrix and from the sum of its experts."""
    table = new_table(("layer", ">"), ("tokens", ">"), ("y - Wx", ">"), ("y - sum", ">"))
    for check in checks:
        matrix = "not linear" if check.matrix_error is None else f"{check.matrix_error:.1e}"
        table.add_row(str(check.layer), str(check.num_tokens), matrix, f"{check.sum_error:.1e}")
    return table


def attribution_table(rows: Sequence[Mapping[str, Any]], num_shown: int) -> Table:
    """The parts with the largest direct shares of a logit."""
    names = ("part", "layer", "channel", "expert", "score", "direct", "gradient")
    table = new_table(*((name, "<" if name == "part" else ">") for name in names))
    for row in sorted(rows, key=lambda row: -abs(row["direct"]))[:num_shown]:
        table.add_row(*(_cell(row[name]) for name in names))
    return table


def verdict_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What gates have in common with their neighbours, by layer and label."""
    table = new_table(("layer", ">"), ("label", "<"), ("verdict", "<"))
    for row in rows:
        layer = "all" if row["layer"] is None else str(row["layer"])
        table.add_row(layer, row["label"], row["verdict"])
    return table


def effects_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The effect of each patch and control with its interval; excluded pairs have none."""
    table = new_table(
        ("layers", "<"),
        ("control", "<"),
        ("pairs", ">"),
        ("excluded", ">"),
        ("NIE", ">"),
        ("interval", ">"),
        ("above control", ">"),
        ("interval", ">"),
        ("answers cf", ">"),
    )
    for row in rows:
        counts = (str(row["n_pairs"]), str(row["n_excluded"]))
        cells = (
            *(_cell(row["nie"]), _interval(row, "nie")),
            *(_cell(row["gap"]), _interval(row, "gap"), _cell(row["answers_cf"])),
        )
        table.add_row(row["layers"], row["control"], *counts, *cells)
    return table


def _interval(row: Mapping[str, Any], name: str) -> str:
    if row[f"{name}_lo"] is None:
        return "-"
    return f"{row[f'{name}_lo']:.3g} to {row[f'{name}_hi']:.3g}"


def usage_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How evenly each table of experts is used."""
    names = ("layer", "channel", "num_experts", "fraction_used", "num_dead", "entropy", "cv")
    table = new_table(*((name.replace("num_", ""), ">") for name in names))
    for row in rows:
        cells = {name: _cell(row[name]) for name in names}
        table.add_row(*({**cells, "channel": "all"} if row["channel"] is None else cells).values())
    return table


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
