"""What a report says of registered predictions: what was predicted, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from isoflop.analysis.points import Axis
from isoflop.analysis.predict import Prediction
from isoflop.analysis.registered import Registered
from isoflop.analysis.report.document import (
    ARCH,
    BUDGET,
    NO_VALUE,
    Cell,
    Items,
    Section,
    interval,
    label_column,
    number_column,
    table,
)
from isoflop.analysis.result import Fits
from isoflop.numbers import format_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A registered prediction beside what was measured."""

    prediction: Prediction
    measured: float | None
    """None: nothing was, yet or for good."""

    @property
    def is_inside(self) -> bool | None:
        """Whether the interval held what was measured; None without either."""
        low, high = self.prediction.pi_lo, self.prediction.pi_hi
        if self.measured is None or low is None or high is None:
            return None
        return low <= self.measured <= high


def score(fits: Fits, registered: Sequence[Registered]) -> tuple[Scored, ...]:
    """Return each prediction that has a value, with what the fits measured."""
    return tuple(
        Scored(prediction=row, measured=_measured(fits, row, entry.reference))
        for entry in registered
        for row in entry.predictions
        if row.is_predicted
    )


def _measured(fits: Fits, row: Prediction, reference: str | None) -> float | None:
    """Return what the new study measured of a quantity, found as the prediction says."""
    if row.quantity == "multiplier":
        if fits.options.method != row.method:
            return None
        for found in fits.compare:
            place = (found.arch, found.budget_flops, found.resource, found.reference)
            if place == (row.arch, row.budget_flops, "flops", reference):
                return found.multiplier if found.status == "estimate" else None
        return None
    axis: Axis = "n_tokens" if row.quantity == "n_tokens" else "n_params"
    for optimum in fits.optima_of(row.arch, axis, row.method):
        if optimum.budget_flops == row.budget_flops and optimum.is_point:
            return optimum.loss_opt if row.quantity == "loss" else optimum.x_opt
    return None


def predictions_section(registered: Sequence[Registered], fits: Fits) -> Section:
    """Return the predictions beside what was measured, and the count of those that held."""
    scored = score(fits, registered)
    known = [one for one in scored if one.is_inside is not None]
    num_inside = sum(bool(one.is_inside) for one in known)
    levels = sorted({one.prediction.confidence for one in scored})
    level = " and ".join(f"{confidence:.0%}" for confidence in levels)
    sentences = [
        "Registered in predictions.json before any run of their budgets had begun. An interval is "
        f"of what is measured ({level})."
    ]
    if known:
        sentences.append(f"{num_inside} of {len(known)} intervals held what was measured.")
    if len(known) < len(scored):
        sentences.append(f"Not measured: {len(scored) - len(known)}.")
    columns = (
        ARCH,
        BUDGET,
        label_column("quantity", "Of"),
        number_column("predicted", "Predicted"),
        number_column("interval", "Interval"),
        number_column("measured", "Measured"),
        label_column("inside", "Inside"),
    )
    rows = [_row(one) for one in scored]
    return Section(
        key="predictions",
        title="Predictions",
        blocks=(
            " ".join(sentences),
            table("Predictions and what was measured", columns, rows),
            Items(items=tuple(_origin(entry) for entry in registered)),
        ),
    )


def _origin(entry: Registered) -> str:
    """Return when, from what and by which version the predictions of a budget were made."""
    when = datetime.fromtimestamp(entry.registered_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{format_flops(entry.budget_flops)}: registered {when}, by isoflop {entry.isoflop}, from "
        f"{entry.num_points} runs (sha256 {entry.points_sha256[:12]})"
    )


def _row(one: Scored) -> dict[str, object]:
    row = one.prediction
    return {
        "arch": row.arch,
        "budget_flops": row.budget_flops,
        "quantity": row.name,
        "predicted": _cell(row, row.value),
        "interval": interval(row.pi_lo, row.pi_hi, row.written),
        "measured": _cell(row, one.measured),
        "inside": one.is_inside,
    }


def _cell(row: Prediction, value: float | None) -> Cell:
    return Cell(text=NO_VALUE) if value is None else Cell(text=row.written(value), value=value)
