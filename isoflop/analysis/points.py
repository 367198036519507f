"""From rows of runs to points: what may enter a fit, why a row may not, profiles by size.

A row is as `isoflop.analysis.load` reads it. One that a fit must leave out (no loss, an infinite
one, 0 FLOPs) has its reason.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.analysis.screening import Repeats, screen, screen_loose
from isoflop.arrays import Floats
from isoflop.errors import UserError
from isoflop.ingest.frames import UNREAD
from isoflop.tables import METRIC, schema_of
from isoflop.units import NATS, UNITS, loss_name

Axis = str
"""A count that sizes are told apart by: one of a point's own, or any column of the table."""
AXES: tuple[Axis, ...] = ("n_params", "n_tokens", "n_active")
"""Those that are always fitted."""
_OWN_SIZES = (*AXES, "n_nonembed")

GroupKey = tuple[str, float]
"""(arch, budget in training FLOPs)."""

# exp(709.8) is the largest float64; a loss beyond this has no perplexity and means nothing.
MAX_LOSS = 700.0

_UNFINISHED = ("diverged", "failed", "missing")


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One finished run, as a fit sees it."""

    run_id: str | None
    arch: str
    budget_flops: float
    """Nominal training FLOPs of the budget the run belongs to; without one, what the run spent."""
    n_params: float
    n_tokens: float
    flops: float | None = None
    """Training FLOPs achieved, under the table's convention."""
    loss: float
    """Nats per token, or the unit of the table; all points of a table share it."""
    seed: int | None = None
    n_active: float | None
    """Parameters used per token; None where the table does not say."""
    n_nonembed: float | None = None
    n_experts: float | None = None
    """Experts that a token is routed among; 1 of a dense run."""
    wall_s: float | None = None
    """Training time in seconds."""
    peak_mem_bytes: float | None = None
    loss_se: float | None = None
    """Standard error of the loss from its evaluation set; no seed noise."""
    declared: bool | None = None
    """Whether FLOPs and parameters are the user's own numbers, not counted; None unless a trainer
    of the user's own made the run."""
    flops_spent: float | None = None
    """FLOPs of the steps that were executed for this run alone; None where no trunks are shared."""
    batch_size: float | None = None
    """Sequences; read where trunks are shared."""
    seq_len: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Further numbers that the run reported, by name."""
    sizes: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Further counts of its size that were asked for, by their column."""

    @property
    def size_key(self) -> tuple[float, float]:
        """(n_params, n_tokens): points of one group that share it repeat one cell."""
        return self.n_params, self.n_tokens

    def on(self, axis: Axis) -> float | None:
        """Return the point's value on an axis, None where it is unknown."""
        if axis not in _OWN_SIZES:
            return self.sizes.get(axis)
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
    no_loss | bad_loss | no_params | no_tokens | no_flops | exact_dup | near_dup |
    unexplained_repeat | not_best | off_budget | outlier."""
    detail: str | None = None


EXCLUDED = schema_of("excluded", Excluded)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Points by (arch, budget) in sorted order, and the rows left out."""

    groups: dict[GroupKey, tuple[Point, ...]]
    """A group whose rows are all excluded is kept, empty, so that the fit reports it."""
    excluded: tuple[Excluded, ...]
    loose: tuple[Point, ...] = ()
    """Points without a budget: of no isoFLOP group, and in the laws through all points. Their
    ``budget_flops`` is what they spent (6 · N · D where the table does not say)."""
    notes: tuple[str, ...] = ()
    """What screening leaves to the user, a sentence each."""
    unit: str = NATS
    """Of the losses: one of isoflop.units.UNITS, or the name of another metric."""

    @property
    def archs(self) -> list[str]:
        """Sorted labels of all archs that have runs with a budget."""
        return sorted({arch for arch, _ in self.groups})

    @property
    def budgets(self) -> list[float]:
        """Sorted budgets in training FLOPs."""
        return sorted({budget for _, budget in self.groups})

    @property
    def points(self) -> list[Point]:
        """The points of all groups, then those without a budget."""
        return [*itertools.chain.from_iterable(self.groups.values()), *self.loose]

    def by_arch(self) -> dict[str, list[Point]]:
        """Return the points of each arch, archs sorted; empty where all of its runs are excluded.

        Those without a budget come last.
        """
        found: dict[str, list[Point]] = {arch: [] for arch in self.archs}
        for point in self.points:
            found.setdefault(point.arch, []).append(point)
        return {arch: found[arch] for arch in sorted(found)}

    def excluded_counts(self) -> dict[str, int]:
        """Return the number of excluded rows per reason, most frequent first."""
        counts = Counter(row.reason for row in self.excluded)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def select_points(
    rows: Iterable[Mapping[str, Any]],
    repeats: Repeats | None = None,
    *,
    screened: bool = True,
    unit: str = NATS,
    axis: Axis = "n_params",
) -> Selection:
    """Split the rows of runs.parquet, or of a table like it, into points and excluded rows.

    A row is a point when its status is ``done`` (or the table has no statuses), its
    ``excluded_reason`` is null, its loss is a finite number in (0, 700] (a named metric may be
    larger) and its parameters and tokens are positive; a table that has FLOPs must have positive
    ones. A second row that repeats a run is excluded as ``exact_dup``, so that a table read twice
    gives the fit of a table read once: the same arch, budget, run id and loss, or without run ids
    the same arch, budget, parameters, tokens, seed and loss. Other seeds of one size all count. A
    point whose row has no budget is loose; of those, `screen_loose` looks for repeats. The others
    are screened as `screen` says; unless ``screened``, outliers and runs off their budget stay.
    The result does not depend on the order of the rows.

    ``axis`` is a count that the points are to have; one that a row lacks, or that is not above 0,
    is unknown.

    Raises:
        UserError: a row has text for that count.
    """
    return _split(rows, repeats, screened, unit, axis)[0]


def entering_rows(
    rows: Iterable[Mapping[str, Any]],
    repeats: Repeats | None = None,
    *,
    screened: bool = True,
    unit: str = NATS,
) -> list[Mapping[str, Any]]:
    """Return the rows that become points of groups in `select_points`."""
    return _split(rows, repeats, screened, unit, "n_params")[1]


def _split(
    rows: Iterable[Mapping[str, Any]],
    repeats: Repeats | None,
    screened: bool,
    unit: str,
    axis: Axis,
) -> tuple[Selection, list[Mapping[str, Any]]]:
    groups: dict[GroupKey, list[Point]] = {}
    pairs: list[tuple[Mapping[str, Any], Point]] = []
    loose: list[tuple[Mapping[str, Any], Point]] = []
    excluded: list[Excluded] = []
    bad: list[Mapping[str, Any]] = []
    seen: set[tuple[object, ...]] = set()
    # Rows without a budget last: one that repeats a run of a budget is the one left out.
    for row in sorted(rows, key=lambda row: _is_absent(row.get("budget_flops"))):
        refusal = _refusal(row, unit)
        if refusal is not None:
            entry = _excluded(row, *refusal, unit)
            if entry.arch is not None and entry.budget_flops is not None:
                groups.setdefault((entry.arch, entry.budget_flops), [])
            excluded.append(entry)
            bad += [row] if entry.reason == "bad_loss" else []
            continue
        point = _point(row, axis)
        identity = _identity(point)
        has_budget = not _is_absent(row.get("budget_flops"))
        if (identity if has_budget else (None, *identity[1:])) in seen:
            why = "the same run is in the table twice"
            excluded.append(_excluded(row, "exact_dup", why, unit))
            continue
        seen.update((identity, (None, *identity[1:])))
        if has_budget:
            groups.setdefault((point.arch, point.budget_flops), [])
            pairs.append((row, point))
        else:
            loose.append((row, point))
    found = screen([point for _, point in pairs], repeats, finds_odd=screened)
    excluded += [_excluded(pairs[i][0], *why, unit) for i, why in found.refused.items()]
    swept = screen_loose([point for _, point in loose], repeats)
    excluded += [_excluded(loose[i][0], *why, unit) for i, why in swept.refused.items()]
    entering = [pair for i, pair in enumerate(pairs) if i not in found.refused]
    without_budget = [point for i, (_, point) in enumerate(loose) if i not in swept.refused]
    for _, point in entering:
        groups[point.arch, point.budget_flops].append(point)
    selection = Selection(
        groups={k: tuple(sorted(groups[k], key=_point_order)) for k in sorted(groups)},
        excluded=tuple(sorted(excluded, key=_excluded_order)),
        loose=tuple(sorted(without_budget, key=lambda point: (point.arch, *_point_order(point)))),
        notes=(
            *found.notes,
            *swept.notes,
            *_metric_notes(bad, unit),
            *_unread_notes(row for row, _ in (*pairs, *loose)),
        ),
        unit=unit,
    )
    return selection, [row for row, _ in entering]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Profile:
    """The points of one family at one budget along one axis, in ascending x."""

    points: tuple[Point, ...]
    """Those whose x is known; of equal x in their order in the group (size, then seed)."""
    x: Floats
    log_x: Floats
    loss: Floats

    @property
    def num_sizes(self) -> int:
        """Distinct sizes, as far as the logarithm tells them apart."""
        return len(np.unique(self.log_x))


def profile_of(points: Sequence[Point], axis: Axis) -> Profile:
    """Return the profile of a group; points whose x is unknown are left out."""
    known = [(x, point) for point in points if (x := point.on(axis)) is not None]
    known.sort(key=lambda pair: pair[0])
    xs = np.array([x for x, _ in known], dtype=np.float64)
    return Profile(
        points=tuple(point for _, point in known),
        x=xs,
        log_x=np.log(xs),
        loss=np.array([point.loss for _, point in known], dtype=np.float64),
    )


def _identity(point: Point) -> tuple[object, ...]:
    # In tables of others several runs may have one id.
    run = (point.run_id, point.n_params, point.n_tokens)
    seed = point.seed if point.run_id is None else None
    return point.budget_flops, point.arch, *run, seed, point.loss


def _refusal(row: Mapping[str, Any], unit: str) -> tuple[str, str | None] | None:
    """Return (reason, detail) when the row is no point, None when it is one."""
    if not row.get("arch"):
        # A run that could not even be read says why.
        why = row.get("excluded_reason")
        return ("excluded_in_table", str(why)) if _is_given(why) else ("no_arch", None)
    budget = row.get("budget_flops")
    if not _is_absent(budget) and positive(budget) is None:
        return "no_budget", _given(row, "budget_flops")
    refusal = loss_refusal(row, unit)
    if refusal is not None:
        return refusal
    if positive(row.get("n_params")) is None:
        return "no_params", _given(row, "n_params")
    if positive(row.get("n_tokens")) is None:
        return "no_tokens", _given(row, "n_tokens")
    if row.get("flops") is not None and positive(row["flops"]) is None:
        return "no_flops", f"flops is {row['flops']!r}"
    return None


def loss_refusal(row: Mapping[str, Any], unit: str) -> tuple[str, str | None] | None:
    """Return (reason, detail) where a row has no loss that can be used, None where it has."""
    status = row.get("status", "done")
    if status in _UNFINISHED:
        return str(status), row.get("status_reason")
    if status != "done":
        return "unknown_status", f"status is {status!r}"
    if _is_given(row.get("excluded_reason")):
        return "excluded_in_table", str(row["excluded_reason"])
    if row.get("loss") is None:
        return "no_loss", None
    if _usable_loss(row["loss"], unit) is None:
        return "bad_loss", f"{loss_name(unit)} is {row['loss']!r}"
    return None


def _unread_notes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence on each column that a fit does without where its cells are no numbers."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        for name, cell in (row.get(UNREAD) or {}).items():
            cells.setdefault(name, []).append(cell)
    return [
        f"{name} is no number in {len(told)} run{'s' if len(told) > 1 else ''}, as in {told[0]}, "
        "and is taken to be missing there."
        for name, told in cells.items()
    ]


def _metric_notes(excluded: Sequence[Mapping[str, Any]], unit: str) -> tuple[str, ...]:
    """Return a sentence on rows whose metric no law can have; none where there are none."""
    num = sum(row["loss"] <= 0 for row in excluded)
    if unit in UNITS or not num:
        return ()
    return (
        f"{num} {'runs have' if num > 1 else 'run has'} a {unit} of 0 or less, which enters no "
        "fit: laws are of its logarithm and have an irreducible part. Report a metric that stays "
        "above 0 and of which less is better, such as 1 - accuracy.",
    )


def _point(row: Mapping[str, Any], axis: Axis) -> Point:
    budget: Any = row.get("budget_flops")
    if _is_absent(budget):
        budget = row.get("flops") or 6.0 * float(row["n_params"]) * float(row["n_tokens"])
    return Point(
        run_id=row.get("run_id"),
        arch=row["arch"],
        budget_flops=float(budget),
        n_params=float(row["n_params"]),
        n_tokens=float(row["n_tokens"]),
        n_active=positive(row.get("n_active")),
        loss=float(row["loss"]),
        flops=positive(row.get("flops")),
        seed=_whole(row.get("seed")),
        n_nonembed=positive(row.get("n_nonembed")),
        n_experts=positive(row.get("n_experts")),
        wall_s=positive(row.get("wall_s")),
        peak_mem_bytes=positive(row.get("peak_mem_bytes")),
        loss_se=positive(row.get("loss_se")),
        declared=row.get("declared"),
        flops_spent=positive(row.get("flops_spent")),
        batch_size=positive(row.get("batch_size")),
        seq_len=positive(row.get("seq_len")),
        metrics={
            name.removeprefix(METRIC): value
            for name, value in row.items()
            if name.startswith(METRIC) and value is not None
        },
        sizes={} if axis in _OWN_SIZES else _further_size(row, axis),
    )


def _further_size(row: Mapping[str, Any], axis: Axis) -> dict[str, float]:
    try:
        size = positive(row.get(axis))
    except (TypeError, ValueError):
        raise UserError(
            axis, row[axis], "a number in every row, or nothing", "correct it"
        ) from None
    return {} if size is None else {axis: size}


def _excluded(row: Mapping[str, Any], reason: str, detail: str | None, unit: str) -> Excluded:
    return Excluded(
        run_id=row.get("run_id"),
        arch=row.get("arch") or None,
        budget_flops=positive(row.get("budget_flops")),
        n_params=positive(row.get("n_params")),
        loss=_usable_loss(row.get("loss"), unit),
        reason=reason,
        detail=detail,
    )


def _given(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return f"{name} is missing" if value is None else f"{name} is {value!r}"


def _is_given(value: Any) -> bool:
    """Return whether an excluded_reason excludes; False and a data frame's NaN do not."""
    return value is not None and value is not False and value != "" and value == value


def _is_absent(value: Any) -> bool:
    """Return whether there is no number at all, a data frame's NaN included."""
    return value is None or value != value


def positive(value: Any) -> float | None:
    """Return the value as a float when it is finite and positive, None otherwise."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) and number > 0.0 else None


def _whole(value: Any) -> int | None:
    """Return the value as an int; None where it is missing."""
    return None if _is_absent(value) else int(value)


def _usable_loss(value: Any, unit: str) -> float | None:
    number = positive(value)
    most = MAX_LOSS if unit in UNITS else math.inf
    return number if number is not None and number <= most else None


def _point_order(point: Point) -> tuple[float, float, float, float, str]:
    """Return the order by size, then seed, which pairs the cells of two families of one design."""
    seed = -1.0 if point.seed is None else float(point.seed)
    return point.n_params, point.n_tokens, seed, point.loss, point.run_id or ""


def _excluded_order(row: Excluded) -> tuple[object, ...]:
    return (
        row.arch or "",
        row.budget_flops or 0.0,
        row.n_params or 0.0,
        row.run_id or "",
        row.reason,
        row.loss or 0.0,
    )
