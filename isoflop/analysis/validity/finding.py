"""What a check of validity found, a row of validity.parquet, and the findings of all checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isoflop.tables import schema_of

Check = Literal[
    "selection",
    "held_out",
    "method",
    "convention",
    "seed_noise",
    "shared_noise",
    "lack_of_fit",
    "unequal_noise",
    "achieved_budget",
    "near_budget",
    "off_centre",
    "selected_optima",
    "duplicate_size",
    "ranking",
]

FindingStatus = Literal["ok", "moves", "attention", "not_measured", "info"]
"""ok: the answer does not depend on it, or the design is as it should be; moves: the answer leaves
its interval, or an order that is claimed turns round; attention: a property of the design that
biases or weakens the answer, or a prediction that failed; not_measured: the table does not say, or
there is no interval to hold it against; info: a number to know, without a judgement."""

_VARIANTS: tuple[Check, ...] = ("selection", "method", "convention")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one variant of one check gave, a row of validity.parquet."""

    check: Check
    arch: str | None = None
    reference: str | None = None
    axis: str | None = None
    method: str | None = None
    budget_flops: float | None = None
    variant: str | None = None
    """What was done differently."""
    quantity: str
    """What `value` is: exponent, multiplier, log_loss_sd, ..."""
    value: float | None = None
    ci_lo: float | None = None
    ci_hi: float | None = None
    baseline: float | None = None
    """The same quantity in the fit itself."""
    n_points: int | None = None
    status: FindingStatus
    detail: str | None = None


VALIDITY = schema_of("validity", Finding, version=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Validity:
    """The findings of all checks."""

    findings: tuple[Finding, ...]

    def of(self, check: Check, quantity: str | None = None) -> tuple[Finding, ...]:
        """Return the findings of one check, of one quantity where it is named."""
        return tuple(
            f for f in self.findings if f.check == check and quantity in (None, f.quantity)
        )

    @property
    def varied(self) -> tuple[Finding, ...]:
        """Answers of variants of the fit that could be held against its own."""
        return tuple(
            f for f in self.findings if f.check in _VARIANTS and f.status in ("ok", "moves")
        )

    @property
    def moved(self) -> tuple[Finding, ...]:
        """Variants in which an answer leaves its interval, or a claimed order turns round."""
        return tuple(f for f in self.findings if f.status == "moves")

    def heldout_error(self, arch: str, axis: str | None) -> float | None:
        """Return |error| at the arch's largest budget that was held out, None where there is none.

        Of the power law of ``axis``, or for None of the surface (mean over the runs).
        """
        scored = [
            f
            for f in self.of("held_out")
            if f.arch == arch and f.axis == axis and f.value is not None
        ]
        last = max(scored, key=lambda f: f.budget_flops or 0.0, default=None)
        return None if last is None or last.value is None else abs(last.value)
