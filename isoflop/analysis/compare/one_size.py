"""Families of one size each, compared by the losses that they share a seed in.

Where a budget has one size per family there is no optimum to compare: the losses themselves are.
Runs of equal seed read the same windows in the same order, so their difference is free of what the
data did; the interval is Student's, of the mean of ln(loss of A / loss of B) over the seeds.

A run that diverged, failed or is missing leaves the comparison without an interval: which seeds
survive may depend on the family.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.compare.claims import (
    Interval,
    Order,
    agreeing,
    exp_interval,
    order,
    rejected_together,
)
from isoflop.analysis.optima_methods import MIN_DISTINCT_SIZES
from isoflop.analysis.points import Excluded, GroupKey, Point, Selection
from isoflop.analysis.result import Fits
from isoflop.analysis.screening import STOOD_FOR
from isoflop.tables import schema_of

# A mean needs two seeds before it has a spread.
MIN_SEEDS = 2

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedMean:
    """The runs of one shape at one budget, over their seeds."""

    arch: str
    budget_flops: float
    n_params: float
    n_tokens: float
    n_seeds: int
    loss: float
    """Geometric mean, in the unit of the table."""
    loss_sd: float | None
    """Standard deviation between seeds; None of a single run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedMeanRow(SeedMean):
    """One row of seed_means.parquet: a mean, and its ratio to that of the reference."""

    reference: str | None = None
    """None, as all that follows, in the reference's own rows."""
    ratio: float | None = None
    ci_lo: float | None = None
    ci_hi: float | None = None
    ci_lo_simultaneous: float | None = None
    """Of the interval that holds for all comparisons of the table together."""
    ci_hi_simultaneous: float | None = None
    n_shared: int | None = None
    """Seeds that both have."""
    order_claimed: Order | None = None
    """On which side of 1 the ratio is shown to lie, at the level of all comparisons together."""
    confidence: float | None = None
    note: str | None = None


SEED_MEANS = schema_of("seed_means", SeedMeanRow, version=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedLoss:
    """The loss of one shape over that of another at one budget, paired by seed."""

    arch: str
    reference: str
    budget_flops: float
    ratio: float | None
    """Geometric mean over the shared seeds; None without one shape of each or a shared seed."""
    bounds: Interval
    """Student's interval of the ratio; (None, None) where ``problem`` says why."""
    log_ratios: tuple[float, ...]
    """ln(loss / loss) of each shared seed; empty where there is no interval."""
    seeds: tuple[int, ...]
    """The shared ones."""
    problem: str
    """Why there is no interval; empty where there is one."""
    note: str
    """Runs that have no partner; empty without any."""


def is_one_size(selection: Selection) -> bool:
    """Return whether no family has two sizes at a budget, excluded runs included.

    Nothing then has an optimum. A table without any run is not of one size.
    """
    sizes: dict[GroupKey, set[float]] = {
        key: {point.n_params for point in points} for key, points in selection.groups.items()
    }
    for row in selection.excluded:
        if row.arch is None or row.budget_flops is None or row.n_params is None:
            continue
        if row.reason not in STOOD_FOR:
            sizes[row.arch, row.budget_flops].add(row.n_params)
    return any(sizes.values()) and all(len(found) <= 1 for found in sizes.values())


def has_no_shared_budget(selection: Selection) -> bool:
    """Return whether a family has sizes enough for a profile, of which no two share a budget."""
    sizes: dict[str, set[float]] = {}
    for (arch, _), points in selection.groups.items():
        sizes.setdefault(arch, set()).update(point.n_params for point in points)
    most = max(map(len, sizes.values()), default=0)
    return is_one_size(selection) and most >= MIN_DISTINCT_SIZES


def is_scattered(selection: Selection) -> bool:
    """Return whether no budget is shared, and most runs are the only ones of theirs, of any family.

    Then there are no losses to compare either.
    """
    runs = Counter(budget for (_, budget), points in selection.groups.items() for _ in points)
    alone = sum(num == 1 for num in runs.values())
    return has_no_shared_budget(selection) and 2 * alone > len(runs)


def natural_order(key: GroupKey) -> tuple[object, ...]:
    """Return what sorts (arch, budget) as people do: experts/256 before experts/1024."""
    arch, budget = key
    numbers = [float(number) for number in _NUMBER.findall(arch)]
    # A label that ends comes before one that goes on with a number.
    parts = zip(_NUMBER.split(arch), [*numbers, -1.0], strict=True)
    return (*parts, budget)


def seed_means(selection: Selection) -> tuple[SeedMean, ...]:
    """Return the mean of every (arch, budget) that has exactly one size, in natural order."""
    keys = sorted(selection.groups, key=natural_order)
    groups = [selection.groups[key] for key in keys]
    return tuple(_seed_mean(points) for points in groups if len(_sizes(points)) == 1)


def paired_loss(fits: Fits, arch: str, reference: str, budget_flops: float) -> PairedLoss:
    """Compare two families at a budget, seed by seed."""
    sides = {name: fits.groups.get((name, budget_flops), ()) for name in (arch, reference)}
    shared, log_ratios = _log_ratios(sides[arch], sides[reference])
    problem = _problem(fits.selection, sides, budget_flops, shared)
    has_ratio = bool(shared) and all(len(_sizes(points)) == 1 for points in sides.values())
    return PairedLoss(
        arch=arch,
        reference=reference,
        budget_flops=budget_flops,
        ratio=math.exp(math.fsum(log_ratios) / len(shared)) if has_ratio else None,
        bounds=(None, None)
        if problem
        else exp_interval(_log_student(log_ratios, fits.options.confidence)),
        log_ratios=() if problem else tuple(log_ratios),
        seeds=shared,
        problem=problem,
        note=_unpaired(sides, shared),
    )


def compare_shapes(fits: Fits, reference: str) -> tuple[PairedLoss, ...]:
    """Compare the shape of every family, at each of its budgets, with the reference's."""
    return tuple(
        paired_loss(fits, arch, reference, budget)
        for arch, budget in sorted(fits.groups, key=natural_order)
        if arch != reference
    )


def _sizes(points: Sequence[Point]) -> set[tuple[float, float]]:
    return {point.size_key for point in points}


def _seed_mean(points: Sequence[Point]) -> SeedMean:
    losses = np.array([point.loss for point in points])
    return SeedMean(
        arch=points[0].arch,
        budget_flops=points[0].budget_flops,
        n_params=points[0].n_params,
        n_tokens=points[0].n_tokens,
        loss=float(np.exp(np.log(losses).mean())),
        loss_sd=float(losses.std(ddof=1)) if len(losses) >= MIN_SEEDS else None,
        n_seeds=len(losses),
    )


def _log_ratios(
    ours: Sequence[Point], theirs: Sequence[Point]
) -> tuple[tuple[int, ...], list[float]]:
    """Return the shared seeds and ln(loss / loss) of each."""
    one, other = (
        {p.seed: p.loss for p in points if p.seed is not None} for points in (ours, theirs)
    )
    shared = tuple(sorted(one.keys() & other.keys()))
    return shared, [math.log(one[seed]) - math.log(other[seed]) for seed in shared]


def _problem(
    selection: Selection,
    sides: Mapping[str, Sequence[Point]],
    budget: float,
    shared: Sequence[int],
) -> str:
    """Return why the two cannot be compared; empty where they can."""
    for arch, points in sides.items():
        if len(_sizes(points)) > 1:
            return f"{arch} has {len(_sizes(points))} sizes, of which none is meant"
        twice = [seed for seed, num in Counter(p.seed for p in points).items() if num > 1]
        if twice and twice[0] is not None:
            return f"{arch} has seed {twice[0]} more than once"
    lost = [row for row in selection.excluded if _counts_against(row, sides, budget)]
    if lost:
        return "runs left out: " + ", ".join(map(_named, lost))
    if len(shared) < MIN_SEEDS:
        return f"{len(shared) or 'no'} shared seed{'' if len(shared) == 1 else 's'}, two are needed"
    return ""


def _counts_against(row: Excluded, archs: Mapping[str, object], budget: float) -> bool:
    # A copy of a run that is there is no loss.
    return row.arch in archs and row.budget_flops == budget and row.reason not in STOOD_FOR


def _named(row: Excluded) -> str:
    run = "" if row.run_id is None else f" {row.run_id[:12]}"
    return f"{row.arch}{run} {row.reason.replace('_', ' ')}"


@dataclass(frozen=True, kw_only=True, slots=True)
class JointClaim:
    """What one comparison of a table shows at the level of all of them together."""

    bounds: Interval
    """Bonferroni's: all intervals of the table hold at once with the confidence asked for. That of
    an order which Holm's later steps claim ends at 1."""
    order: Order
    """By Holm's step-down."""


def claim_together(pairs: Sequence[PairedLoss], confidence: float) -> tuple[JointClaim, ...]:
    """Return what each comparison shows, so that any false claim at all is as rare as one alone.

    Holm (1979, "A simple sequentially rejective multiple test procedure") needs no independence,
    which families over one reference do not have.
    """
    num = sum(bool(pair.log_ratios) for pair in pairs)
    p_values = [_p_value(pair.log_ratios) if pair.log_ratios else None for pair in pairs]
    claimed = rejected_together(p_values, 1 - confidence)
    claims = []
    for pair, is_claimed in zip(pairs, claimed, strict=True):
        side: Order = order(pair.bounds, 1.0) if is_claimed else "none"
        bounds: Interval = (None, None)
        if pair.log_ratios:
            bounds = agreeing(_log_student(pair.log_ratios, 1 - (1 - confidence) / num), side)
            bounds = exp_interval(bounds)
        claims.append(JointClaim(bounds=bounds, order=side))
    return tuple(claims)


def _p_value(log_ratios: Sequence[float]) -> float:
    """Return the p value of Student's two-sided test that the mean is 0."""
    from scipy.special import stdtr

    num = len(log_ratios)
    middle = abs(math.fsum(log_ratios) / num)
    spread = float(np.std(log_ratios, ddof=1)) / math.sqrt(num)
    if spread == 0.0:
        return 1.0 if middle == 0.0 else 0.0
    return 2 * float(stdtr(num - 1, -middle / spread))


def _log_student(log_ratios: Sequence[float], confidence: float) -> Interval:
    from scipy.special import stdtrit

    num = len(log_ratios)
    middle = math.fsum(log_ratios) / num
    spread = float(np.std(log_ratios, ddof=1)) / math.sqrt(num)
    half = float(stdtrit(num - 1, (1 + confidence) / 2)) * spread
    return middle - half, middle + half


def _unpaired(sides: Mapping[str, Sequence[Point]], shared: Sequence[int]) -> str:
    alone = [
        f"{arch} seed {point.seed}"
        for arch, points in sides.items()
        for point in points
        if point.seed is not None and point.seed not in shared
    ]
    return f"no partner: {', '.join(alone)}" if alone and shared else ""
