"""Budgets that are one, written or met a little differently, and rows without a budget.

Budgets are grouped by the gaps between them, in logarithms. Of the widths of a gap that may lie
inside a group the largest is taken with which every group is narrow (`_MAX_SPREAD`) and clear of
its neighbours: FLOPs met up to 20 % below the nominal budget still leave the steps
of a ladder of quarter decades twice as wide as what is inside a group. A group is split again
where its parts are budgets in their own right: with sizes enough for an isoFLOP curve each, of one
arch and farther apart than rounding, or of any and farther apart than budgets are met.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from isoflop.arrays import Floats
from isoflop.errors import UserError, shown
from isoflop.numbers import format_flops

Budgets = Literal["given", "round", "auto"]
"""Whose budgets rows have: the table's, the table's with near-equal ones as one, or those that the
FLOPs spent gather at."""

Sizes = Mapping[float, Mapping[str, frozenset[float]]]
"""Sizes in parameters, by budget and arch."""

FLOPS_PER_PARAM_TOKEN = 6.0

# Of a group from its lowest to its highest, ln; no gap inside is wider either.
_MAX_SPREAD = math.log(1.28)
# The gap to a neighbour, over the widest gap inside either and over the spread of either.
_GAP_OVER_GAP, _GAP_OVER_SPREAD = 1.5, 1.2
# ln; budgets of their own are written as one value. Those of one arch are apart from here on, those
# of several, which may meet one budget differently, from there on.
_ONE_VALUE, _APART, _APART_OF_OTHERS = math.log(1.001), math.log(1.005), math.log(1.05)
# The share of a group's sizes that its parts with curves hold, where they are budgets of their own.
_IN_CURVES = 0.8
# Sizes that an isoFLOP curve needs.
_LEAST_SIZES = 3
# A rounded label may leave its group by this, ln.
_LABEL_ERROR = math.log(1.005)
# Widths of gaps that are tried.
_MOST_WIDTHS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Budgets, or FLOPs spent, that are taken as one budget."""

    budget_flops: float
    """What the budget is called: their geometric mean, rounded."""
    lowest: float
    highest: float
    num_budgets: int
    """Distinct values."""
    num_runs: int
    sizes: Mapping[str, int]
    """Number of sizes of each arch, archs sorted."""

    @property
    def spread(self) -> float:
        """How far the highest is above the lowest, as a share of it."""
        return self.highest / self.lowest - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Rows with their budgets."""

    rows: list[Mapping[str, Any]]
    clusters: tuple[Cluster, ...] = ()
    """By budget: all of auto, those of several budgets of round."""


def near_budgets(
    budgets: Iterable[float], sizes: Sizes | None = None
) -> tuple[tuple[float, ...], ...]:
    """Return the distinct budgets in groups that are one budget each, all ascending.

    No group holds a gap of 1.28 times or more. Order, repeats and the unit of the budgets change
    nothing.

    Args:
        budgets: in training FLOPs, above 0.
        sizes: of the runs at them, which tell budgets that lie close on purpose; None: unknown.
    """
    values: Floats = np.array(sorted(set(budgets)), dtype=np.float64)
    if not len(values):
        return ()
    logs: Floats = np.log(values)
    gaps: Floats = np.round(np.diff(logs), 12)
    found: list[tuple[float, ...]] = []
    for first, last in _runs(_breaks(logs, gaps)):
        for start, end in _parts(first, last, values, gaps, sizes or {}):
            found.append(tuple(values[start : end + 1].tolist()))
    return tuple(found)


def label_budgets(rows: Iterable[Mapping[str, Any]], budgets: Budgets) -> Labelled:
    """Return rows with the budgets asked for; see `Budgets`.

    Args:
        rows: as `isoflop.analysis.load` reads them; none is changed.
        budgets: round leaves rows without a budget as they are; auto gives every run that tells
            what it spent the budget of its cluster, whatever its row says. A row without a usable
            run keeps its place: at the cluster of the budget that it states.

    Raises:
        UserError: the FLOPs spent gather nowhere (auto).
    """
    table = list(rows)
    if budgets == "given":
        return Labelled(rows=table)
    if budgets == "round":
        given = [_positive(row.get("budget_flops")) for row in table]
        clusters = _clusters(table, given)
        merged = tuple(cluster for cluster in clusters if cluster.num_budgets > 1)
        return Labelled(rows=_relabelled(table, given, merged, given), clusters=merged)
    return _by_spent(table)


def spent_flops(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float | None], str]:
    """Return what each run spent, and by what: flops where all usable rows have it, else 6 N D."""
    is_counted = all(_positive(row.get("flops")) for row in rows if _is_run(row))
    if is_counted:
        return [_positive(row.get("flops")) for row in rows], "flops"
    return [_six_n_d(row) for row in rows], "6 · n_params · n_tokens"


def sizes_at(rows: Iterable[Mapping[str, Any]], values: Iterable[float | None]) -> Sizes:
    """Return the sizes of rows with a loss, by the value of each and its arch."""
    found: dict[float, dict[str, set[float]]] = {}
    for row, value in zip(rows, values, strict=True):
        size = _positive(row.get("n_params"))
        if value is not None and size is not None and row.get("arch") and _is_run(row):
            found.setdefault(value, {}).setdefault(str(row["arch"]), set()).add(size)
    return {
        value: {arch: frozenset(sizes) for arch, sizes in by_arch.items()}
        for value, by_arch in found.items()
    }


def gathered(rows: Sequence[Mapping[str, Any]]) -> tuple[Cluster, ...]:
    """Return the budgets that the FLOPs of runs gather at; empty where they gather nowhere."""
    clusters = _clusters(rows, _of_runs(rows, spent_flops(rows)[0]))
    return clusters if _are_gathered(clusters) else ()


def _of_runs(
    rows: Sequence[Mapping[str, Any]], spent: Sequence[float | None]
) -> list[float | None]:
    """Return what the runs spent that can enter a fit, None of the other rows."""
    return [
        value if _is_run(row) and row.get("arch") else None
        for row, value in zip(rows, spent, strict=True)
    ]


def _by_spent(rows: list[Mapping[str, Any]]) -> Labelled:
    spent, by_what = spent_flops(rows)
    of_runs = _of_runs(rows, spent)
    clusters = _clusters(rows, of_runs)
    if not _are_gathered(clusters):
        raise _no_clusters(clusters, by_what)
    given = [_positive(row.get("budget_flops")) for row in rows]
    elsewhere = [given[i] or spent[i] for i in range(len(rows))]
    return Labelled(rows=_relabelled(rows, of_runs, clusters, elsewhere), clusters=clusters)


def _are_gathered(clusters: Sequence[Cluster]) -> bool:
    """Return whether most runs are at a cluster with sizes for a curve."""
    num = sum(cluster.num_runs for cluster in clusters)
    at_curves = sum(
        cluster.num_runs
        for cluster in clusters
        if max(cluster.sizes.values(), default=0) >= _LEAST_SIZES
    )
    return 2 * at_curves > num


def _no_clusters(clusters: Sequence[Cluster], by_what: str) -> UserError:
    num = sum(cluster.num_runs for cluster in clusters)
    ends = "no run with an arch, a loss and what it spent"
    if clusters:
        low, high = clusters[0].lowest, clusters[-1].highest
        ends = f"{by_what} of {num:,} runs spread from {format_flops(low, 3)} to "
        ends += format_flops(high, 3)
    return UserError(
        "--budgets",
        shown(f"auto ({ends})"),
        f"for FLOPs that gather at budgets, {_LEAST_SIZES} sizes or more at each",
        "leave it out: the surface and the frontier over all runs need no budgets",
    )


def _clusters(
    rows: Sequence[Mapping[str, Any]], values: Sequence[float | None]
) -> tuple[Cluster, ...]:
    sizes = sizes_at(rows, values)
    num_runs: dict[float, int] = {}
    for value in values:
        if value is not None:
            num_runs[value] = num_runs.get(value, 0) + 1
    groups = near_budgets(num_runs, sizes)
    found = []
    for group, label in zip(groups, _labels(groups), strict=True):
        by_arch = _by_arch(group, sizes)
        found.append(
            Cluster(
                budget_flops=label,
                lowest=group[0],
                highest=group[-1],
                num_budgets=len(group),
                num_runs=sum(num_runs[value] for value in group),
                sizes={arch: len(by_arch[arch]) for arch in sorted(by_arch)},
            )
        )
    return tuple(found)


def _relabelled(
    rows: Sequence[Mapping[str, Any]],
    values: Sequence[float | None],
    clusters: Sequence[Cluster],
    elsewhere: Sequence[float | None],
) -> list[Mapping[str, Any]]:
    """Return rows at the cluster of their value; one without, at that of what it states else."""
    lows = np.array([cluster.lowest for cluster in clusters])
    found = []
    for row, value, other in zip(rows, values, elsewhere, strict=True):
        slack = 1.0 if value is not None else math.exp(_APART_OF_OTHERS)
        sought = other if value is None else value
        label = None
        if sought is not None and len(lows):
            place = max(int(np.searchsorted(lows, sought * slack, side="right")) - 1, 0)
            near = clusters[place]
            if near.lowest / slack <= sought <= near.highest * slack:
                label = near.budget_flops
        found.append(row if label is None else {**row, "budget_flops": label})
    return found


def _breaks(logs: Floats, gaps: Floats) -> npt.NDArray[np.bool_]:
    """Return after which of the sorted values a group ends."""
    widths = np.unique(gaps[gaps <= _MAX_SPREAD])[::-1]
    for width in widths[:_MOST_WIDTHS]:
        ends = gaps > width
        starts = np.concatenate([[0], np.flatnonzero(ends) + 1])
        spread = logs[np.append(starts[1:] - 1, len(logs) - 1)] - logs[starts]
        if spread.max() > _MAX_SPREAD:
            continue
        inside = np.maximum.reduceat(np.append(np.where(ends, 0.0, gaps), 0.0), starts)
        needed = np.maximum(_GAP_OVER_GAP * inside, _GAP_OVER_SPREAD * spread)
        if (gaps[ends] >= np.maximum(needed[:-1], needed[1:])).all():
            return np.asarray(ends)
    return np.ones(len(gaps), dtype=bool)


def _runs(ends: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first and last place of each group."""
    first = 0
    for place in np.flatnonzero(ends).tolist():
        yield first, place
        first = place + 1
    yield first, len(ends)


def _parts(
    first: int, last: int, values: Floats, gaps: Floats, sizes: Sizes
) -> Iterator[tuple[int, int]]:
    """Yield the parts of a group that are budgets of their own; the group where there are none."""
    if first == last or not any(value in sizes for value in values[first : last + 1].tolist()):
        yield first, last
        return
    bounds = _runs(gaps[first:last] > _ONE_VALUE)
    parts = [(first + start, first + end) for start, end in bounds]
    curves = [
        (part, archs)
        for part in parts
        if values[part[1]] <= values[part[0]] * math.exp(_ONE_VALUE)
        and (archs := _archs_with_curve(part, values, sizes))
    ]
    is_apart = any(
        math.log(values[other[0]] / values[one[1]])
        > (_APART if ours & theirs else _APART_OF_OTHERS)
        for (one, ours), (other, theirs) in itertools.pairwise(curves)
    )
    # Runs that meet a budget differently may come near one another, but not nearly all of them.
    in_curves = sum(_num_sizes(part, values, sizes) for part, _ in curves)
    is_whole = in_curves >= _IN_CURVES * _num_sizes((first, last), values, sizes)
    yield from parts if is_apart and is_whole else [(first, last)]


def _num_sizes(part: tuple[int, int], values: Floats, sizes: Sizes) -> int:
    return sum(
        len(of_arch)
        for value in values[part[0] : part[1] + 1].tolist()
        for of_arch in sizes.get(value, {}).values()
    )


def _archs_with_curve(part: tuple[int, int], values: Floats, sizes: Sizes) -> frozenset[str]:
    found = _by_arch(values[part[0] : part[1] + 1].tolist(), sizes)
    return frozenset(arch for arch, of_arch in found.items() if len(of_arch) >= _LEAST_SIZES)


def _by_arch(values: Iterable[float], sizes: Sizes) -> dict[str, set[float]]:
    """Return the sizes of each arch at any of the budgets."""
    found: dict[str, set[float]] = {}
    for value in values:
        for arch, of_arch in sizes.get(value, {}).items():
            found.setdefault(arch, set()).update(of_arch)
    return found


def _labels(groups: Sequence[Sequence[float]]) -> list[float]:
    """Return a name for each group: its geometric mean in as few digits as keep it in its place."""
    labels = []
    for place, group in enumerate(groups):
        low = groups[place - 1][-1] if place else 0.0
        high = groups[place + 1][0] if place + 1 < len(groups) else math.inf
        labels.append(_label(group, low, high))
    return labels


def _label(group: Sequence[float], low: float, high: float) -> float:
    """Return the rounded geometric mean; of one value the value itself."""
    if len(group) == 1:
        return group[0]
    slack = math.exp(_LABEL_ERROR)
    middle = math.exp(math.fsum(map(math.log, group)) / len(group))
    least, most = min(group[0], middle / slack), max(group[-1], middle * slack)
    for digits in range(1, 17):
        label = float(f"{middle:.{digits - 1}e}")
        if least <= label <= most and low < label < high:
            return label
    return middle


def _is_run(row: Mapping[str, Any]) -> bool:
    """Return whether a row tells of a finished run with a loss."""
    return row.get("status", "done") == "done" and _positive(row.get("loss")) is not None


def _six_n_d(row: Mapping[str, Any]) -> float | None:
    n_params, n_tokens = _positive(row.get("n_params")), _positive(row.get("n_tokens"))
    if n_params is None or n_tokens is None:
        return None
    return FLOPS_PER_PARAM_TOKEN * n_params * n_tokens


def _positive(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) and number > 0 else None
