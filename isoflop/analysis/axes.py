"""The counts that sizes are told apart by: their names, and whether the runs have them."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.analysis.points import AXES, Axis, Selection
from isoflop.errors import UserError

# Columns of runs that are no size: a budget fixes them, or they are what is fitted.
_NO_SIZES = ("arch", "budget_flops", "flops", "loss", "loss_se", "perplexity", "seed", "status")
_ALLOWED = "n_params, n_tokens, n_active, n_nonembed or another count that the runs have"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    mark: str
    words: str
    label: str


_NAMES = {
    "n_params": _Names(mark="N*", words="parameters", label="Parameters"),
    "n_tokens": _Names(mark="D*", words="tokens", label="Training tokens"),
    "n_active": _Names(mark="active*", words="active parameters", label="Active parameters"),
    "n_nonembed": _Names(
        mark="non-embedding*",
        words="non-embedding parameters",
        label="Non-embedding parameters",
    ),
    "loss": _Names(mark="L*", words="the loss", label="Loss"),
}
"""Of the counts that are known, and of the loss, which is no size but has a law."""


def axis_mark(axis: str) -> str:
    """Return what a table for a terminal calls an optimum: N*, or a column's name with a star."""
    return _names(axis).mark


def axis_words(axis: str) -> str:
    """Return what a sentence calls a count: its words where they are known, else its column."""
    return _names(axis).words


def axis_name(axis: str) -> str:
    """Return what a sentence calls an optimum: N* and D*, else the words for the count."""
    return axis_mark(axis) if axis in ("n_params", "n_tokens") else axis_words(axis)


def axis_label(axis: str) -> str:
    """Return what a figure calls a count."""
    return _names(axis).label


def axis_heading(axis: str) -> str:
    """Return what a column of a report calls an optimum."""
    names = _names(axis)
    # N* and D* are letters that need their words.
    return f"{names.mark} ({names.words})" if len(names.mark) == 2 else f"{names.label}*"


def _names(axis: str) -> _Names:
    return _NAMES.get(axis, _Names(mark=f"{axis}*", words=axis, label=axis))


def fitted_axes(axis: Axis) -> tuple[Axis, ...]:
    """Return the axes that are always fitted, and another one that was asked for."""
    return tuple(dict.fromkeys((*AXES, axis)))


def further_columns(axis: Axis) -> tuple[str, ...]:
    """Return what a table must have for an axis, beside the columns of every table."""
    return () if axis in AXES else (axis,)


def check_axis(axis: Axis) -> None:
    """Refuse a column that no size can be told apart by.

    Raises:
        UserError: it is such a column.
    """
    if axis in _NO_SIZES:
        raise UserError("--axis", axis, _ALLOWED, "name a count in which sizes differ")


def has_axis(selection: Selection, axis: Axis) -> bool:
    """Return whether any run of a budget has a count."""
    return any(p.on(axis) is not None for group in selection.groups.values() for p in group)


def require_axis(selection: Selection, axis: Axis) -> None:
    """Refuse an axis that no run of a selection has.

    Raises:
        UserError: there are runs, and none has it.
    """
    if any(selection.groups.values()) and not has_axis(selection, axis):
        allowed = f"{_ALLOWED} (no run has {axis} above 0)"
        raise UserError("--axis", axis, allowed, "name one of these, or add it to the table")
