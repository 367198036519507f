"""Select the points that may enter a fit, and say why every other row may not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Axis = Literal["n_params", "n_tokens", "n_active"]
AXES: tuple[Axis, ...] = ("n_params", "n_tokens", "n_active")

GroupKey = tuple[str, float]
"""(arch, budget in training FLOPs)."""

# exp(709.8) is the largest float64; a loss beyond this has no perplexity and means nothing.
MAX_LOSS_NATS = 700.0

_UNFINISHED = ("diverged", "failed", "missing")


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One finished run, as a fit sees it."""

    run_id: str | None
    arch: str
    budget_flops: float
    """Nominal training FLOPs of the budget the run belongs to."""
    n_params: float
    n_tokens: float
    n_active: float | None
    """Parameters used per token; None where the table does not say."""
    loss: float
    """Nats per token."""

    def on(self, axis: Axis) -> float | None:
        """Return the point's value on an axis, None where it is unknown."""
        value: float | None = getattr(self, axis)
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Excluded:
    """One row that enters no fit, with the reason as a word and, where known, in words."""

    run_id: str | None
    arch: str | None
    budget_flops: float | None
    n_params: float | None
    loss: float | None
    """The row's loss where it is a usable number, for drawing only."""
    reason: str
    """diverged | failed | missing | unknown_status | excluded_in_table | no_arch | no_budget |
    no_loss | bad_loss | no_params | no_tokens | exact_dup."""
    detail: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Points by (arch, budget) in sorted order, and the rows left out."""

    groups: dict[GroupKey, tuple[Point, ...]]
    """A group whose rows are all excluded is kept, empty, so that the fit reports it."""
    excluded: tuple[Excluded, ...]

    def excluded_counts(self) -> dict[str, int]:
        """Return the number of excluded rows per reason, most frequent first."""
        counts = Counter(row.reason for row in self.excluded)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def select_points(rows: Iterable[Mapping[str, Any]]) -> Selection:
    """Split the rows of runs.parquet into points and excluded rows.

    A row is a point when its status is ``done``, its ``excluded_reason`` is null, its loss is a
    finite number in (0, 700] nats per token and its parameters and tokens are positive. A second
    row that repeats a run (same arch, budget, run id and loss) is excluded as ``exact_dup``, so
    that a table read twice gives the fit of a table read once; other seeds of one size have
    other run ids and all count. The result does not depend on the order of the rows.
    """
    groups: dict[GroupKey, list[Point]] = {}
    excluded: list[Excluded] = []
    seen: set[tuple[str, float, str, float]] = set()
    for row in rows:
        refusal = _refusal(row)
        if refusal is not None:
            entry = _excluded(row, *refusal)
            if entry.arch is not None and entry.budget_flops is not None:
                groups.setdefault((entry.arch, entry.budget_flops), [])
            excluded.append(entry)
            continue
        point = _point(row)
        if point.run_id is not None:
            identity = (point.arch, point.budget_flops, point.run_id, point.loss)
            if identity in seen:
                excluded.append(_excluded(row, "exact_dup", "the same run is in the table twice"))
                continue
            seen.add(identity)
        groups.setdefault((point.arch, point.budget_flops), []).append(point)
    return Selection(
        groups={key: _sorted_points(groups[key]) for key in sorted(groups)},
        excluded=tuple(sorted(excluded, key=_excluded_order)),
    )


def _refusal(row: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return (reason, detail) when the row is no point, None when it is one."""
    if not row.get("arch"):
        return "no_arch", None
    if _positive(row.get("budget_flops")) is None:
        return "no_budget", f"budget_flops is {row.get('budget_flops')!r}"
    status = row.get("status")
    if status in _UNFINISHED:
        return str(status), row.get("status_reason")
    if status != "done":
        return "unknown_status", f"status is {status!r}"
    if row.get("excluded_reason") is not None:
        return "excluded_in_table", str(row["excluded_reason"])
    if row.get("loss") is None:
        return "no_loss", None
    if _usable_loss(row["loss"]) is None:
        return "bad_loss", f"loss is {row['loss']!r}"
    if _positive(row.get("n_params")) is None:
        return "no_params", f"n_params is {row.get('n_params')!r}"
    if _positive(row.get("n_tokens")) is None:
        return "no_tokens", f"n_tokens is {row.get('n_tokens')!r}"
    return None


def _point(row: Mapping[str, Any]) -> Point:
    return Point(
        run_id=row.get("run_id"),
        arch=row["arch"],
        budget_flops=float(row["budget_flops"]),
        n_params=float(row["n_params"]),
        n_tokens=float(row["n_tokens"]),
        n_active=_positive(row.get("n_active")),
        loss=float(row["loss"]),
    )


def _excluded(row: Mapping[str, Any], reason: str, detail: str | None) -> Excluded:
    return Excluded(
        run_id=row.get("run_id"),
        arch=row.get("arch") or None,
        budget_flops=_positive(row.get("budget_flops")),
        n_params=_positive(row.get("n_params")),
        loss=_usable_loss(row.get("loss")),
        reason=reason,
        detail=detail,
    )


def _positive(value: Any) -> float | None:
    """Return the value as a float when it is finite and positive, None otherwise."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) and number > 0.0 else None


def _usable_loss(value: Any) -> float | None:
    number = _positive(value)
    return number if number is not None and number <= MAX_LOSS_NATS else None


def _sorted_points(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda p: (p.n_params, p.n_tokens, p.loss, p.run_id or "")))


def _excluded_order(row: Excluded) -> tuple[str, float, float, str, str]:
    return (
        row.arch or "",
        row.budget_flops or 0.0,
        row.n_params or 0.0,
        row.run_id or "",
        row.reason,
    )
