"""One finding of a check of validity: a row of validity.parquet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from isoflop.tables import VALIDITY

Check = Literal[
    "selection",
    "held_out",
    "method",
    "convention",
    "seed_noise",
    "achieved_budget",
    "off_centre",
    "duplicate_size",
    "ranking",
]

FindingStatus = Literal["ok", "moves", "attention", "not_measured", "info"]
"""ok: the answer does not depend on it, or the design is as it should be; moves: the answer leaves
its interval, or an order that is claimed turns round; attention: a property of the design that
biases or weakens the answer; not_measured: the table does not say, or there is no interval to hold
it against; info: a number to know, without a judgement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one variant of one check gave."""

    check: Check
    quantity: str
    """What `value` is: exponent, multiplier, log_loss_sd, ..."""
    status: FindingStatus
    arch: str | None = None
    reference: str | None = None
    axis: str | None = None
    method: str | None = None
    budget_flops: float | None = None
    variant: str | None = None
    """What was done differently."""
    value: float | None = None
    ci_lo: float | None = None
    ci_hi: float | None = None
    baseline: float | None = None
    """The same quantity in the fit itself."""
    n_points: int | None = None
    detail: str | None = None

    def row(self) -> dict[str, Any]:
        """Return the row of validity.parquet."""
        return {name: getattr(self, name) for name in VALIDITY.names}
