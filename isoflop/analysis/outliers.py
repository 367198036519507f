"""Losses far from the smooth profile through the other sizes of their group, by arrays alone.

The profile is a + b·N^−k + c·N^k' in relative error, the form of a sum of two power laws at a
fixed budget, which follows wide grids where a parabola does not. The budgets of a family share k
and k'. Sizes are taken out together, not one by one, so that two bad ones do not hide each other:
a set is accepted when each of its sizes has a Student t above the threshold, as predicted by the
sizes that stay (externally studentised residuals: Cook and Weisberg 1982, section 2.2.1). Few sizes
say little about their own noise, so its variance is moderated by that of the family's other budgets
(Smyth 2004, Linear models and empirical Bayes methods, equation 1). The constants were chosen by
simulation: tests/analysis/test_screening.py repeats it in small.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isoflop.arrays import Floats

Flags = npt.NDArray[np.bool_]

_MIN_SIZES = 5
_COEFFICIENTS = 3
_EXPONENTS = (0.15, 0.3, 0.45, 0.65)
_USUAL_EXPONENT = 0.3
# Residual degrees of freedom of a family from which on it may choose its exponents.
_DOF_OF_EXPONENTS = 10
# Beyond any published exponent of a loss in parameters or tokens; and a rise beyond any noise.
_STEEPEST = 0.75
_STEP = math.log(1.2)
# At most one in so many sizes of a group is an outlier.
_MOST_CUT = 3
# Sizes up to which every set of them is tried.
_EXHAUSTIVE = 10
# Sizes up to which they are taken out one at a time; beyond, all that are far off at once.
_MANY = 60
_ROUNDS = 20
# Robust standard deviations from which on a size is far off.
_FAR = 4.0
# The median of χ² with one degree of freedom.
_MEDIAN_CHI2 = 0.4549
# Chance of an outlier in a table without any, by Bonferroni over its sizes.
_ERROR_RATE = 0.03
# Degrees of freedom that the other budgets are worth: noise often differs between budgets.
_PRIOR_DOF = 2.0
# Least standard deviation of ln(loss): what the profile misses where there is no noise.
_FLOOR = 5e-4
# What a size taken out must gain in -2·ln(likelihood) while exponents are chosen.
_PENALTY = 12.0
# No smooth curve: scatter beyond 5 %, and 5 times that of the other budgets.
_ROUGH = 0.05
_ROUGH_RATIO = 5.0
# Powers of e beyond which a grid is nonsense, kept finite.
_MOST_POWER = 60.0
_RIDGE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """The runs of one family at one budget."""

    log_x: Floats
    """ln of the size of each run [m]; runs of one cell have one size."""
    loss: Floats
    """[m], positive."""
    cell: npt.NDArray[np.intp]
    """The cell of each run [m], counted from 0; repeats of one cell share it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Odd:
    """One run off the profile."""

    expected: float
    """The loss that the other sizes give."""
    z: float | None
    """Distance over its standard deviation, the error of the profile included; None of few sizes,
    which have no such scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What one group holds."""

    odd: dict[int, Odd]
    """By the index of a run; empty where the group is rough."""
    is_rough: bool = False
    """Whether its losses follow no smooth curve, so that nobody can say which are off."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Cells:
    """A group by cell, in the order of the sizes; losses over the level about them."""

    x: Floats
    """ln of the size minus the mean [n]."""
    loss: Floats
    """Median in ln of the cell's runs [n]."""
    level: Floats
    """Loss about each size: the middle of it and its neighbours, the lower one at the ends [n]."""
    number: npt.NDArray[np.intp]
    """The cell's number in the group [n]."""

    @property
    def dof(self) -> int:
        return len(self.x) - _COEFFICIENTS


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Trimmed:
    """The best fits of one group, by how many sizes are taken out, most last."""

    design: Floats
    """Orthonormal columns [n, 3]."""
    kept: tuple[Flags, ...]
    squares: tuple[float, ...]
    """Sum of squared relative residuals of the sizes kept."""


def find_outliers(groups: Sequence[Group], num_cells: int) -> list[Found]:
    """Return what each group of one family holds.

    Three or four sizes have no scale of their own: there a loss is off that no power law reaches.

    Args:
        groups: all budgets of the family.
        num_cells: cells of the whole table, over which the error rate is shared.
    """
    cells = [_cells(group) for group in groups]
    judged = [i for i, c in enumerate(cells) if len(np.unique(c.x)) >= _MIN_SIZES]
    found = [
        Found(odd=_too_steep(c, group) if 3 <= len(c.x) < _MIN_SIZES else {})
        for c, group in zip(cells, groups, strict=True)
    ]
    if not judged:
        return found
    used = [cells[i] for i in judged]
    trims = _trimmed(used)
    kept = [t.kept[_cheapest(c, t)] for c, t in zip(used, trims, strict=True)]
    # Twice, for the variances of the second round are those of the sizes that stayed in the first.
    for _ in range(2):
        priors = _priors(used, trims, kept)
        kept = [
            _accepted(c, t, prior, num_cells)
            for c, t, prior in zip(used, trims, priors, strict=True)
        ]
    within = _within_cells([groups[i] for i in judged])
    priors = _priors(used, trims, kept)
    for i, c, t, flags, prior in zip(judged, used, trims, kept, priors, strict=True):
        judge = _Judge(c, t.design, flags, prior, num_cells)
        if judge.is_rough(prior):
            found[i] = Found(odd={}, is_rough=True)
        else:
            found[i] = Found(odd=judge.odd_runs(groups[i], within))
    return found


def _too_steep(cells: _Cells, group: Group) -> dict[int, Odd]:
    """Return the runs of the one size whose loss lies too far above that of its neighbours.

    At fixed compute a loss E + A/N^α + B/D^β cannot grow faster than with the larger exponent.
    """
    log_loss = np.log(cells.loss)
    rise = log_loss[:, None] - log_loss
    allowed = np.maximum(_STEEPEST * np.abs(cells.x[:, None] - cells.x), _STEP)
    places = np.arange(len(cells.x))
    is_near = np.abs(places[:, None] - places) == 1
    above = np.flatnonzero(np.all((rise > allowed) | ~is_near, axis=1))
    if len(above) != 1:
        return {}
    expected = float(cells.loss[is_near[above[0]]].max())
    runs = np.flatnonzero(group.cell == cells.number[above[0]])
    off = runs[np.log(group.loss[runs] / expected) > _STEP]
    return {int(run): Odd(expected=expected, z=None) for run in off}


def _cells(group: Group) -> _Cells:
    num = int(group.cell.max(initial=-1)) + 1
    order = np.argsort(group.cell, kind="stable")
    starts = np.searchsorted(group.cell[order], np.arange(num))
    x = group.log_x[order][starts]
    loss = np.exp(_medians(np.log(group.loss[order]), starts))
    by_size = np.argsort(x, kind="stable")
    x, loss = x[by_size], np.asarray(loss)[by_size]
    return _Cells(x=x - x.mean() if num else x, loss=loss, level=_level(loss), number=by_size)


def _medians(values: Floats, starts: npt.NDArray[np.intp]) -> Floats:
    """Return the median of each part of some values, those of one length at once."""
    lengths = np.diff(starts, append=len(values))
    found = np.empty(len(starts))
    for length in np.unique(lengths):
        places = lengths == length
        found[places] = np.median(values[starts[places, None] + np.arange(length)], axis=1)
    return found


def _level(loss: Floats) -> Floats:
    if len(loss) < _MIN_SIZES:
        return loss
    near = np.stack([loss[:-2], loss[1:-1], loss[2:]])
    ends = min(loss[0], loss[1]), min(loss[-1], loss[-2])
    return np.concatenate([[ends[0]], np.median(near, axis=0), [ends[1]]])


def _trimmed(cells: Sequence[_Cells]) -> list[_Trimmed]:
    """Return the best fits of the groups by the exponents that suit all of them."""
    pairs = [(_USUAL_EXPONENT, _USUAL_EXPONENT)]
    if sum(c.dof for c in cells) >= _DOF_OF_EXPONENTS:
        pairs = list(itertools.product(_EXPONENTS, _EXPONENTS))
    designs = [_designs(c, np.array(pairs)) for c in cells]
    fits = [
        (_all_sets if len(c.x) <= _EXHAUSTIVE else _in_turn)(design, c.loss / c.level)
        for c, design in zip(cells, designs, strict=True)
    ]
    costs = sum(_costs(c, kept, squares) for c, (kept, squares) in zip(cells, fits, strict=True))
    best = int(np.argmin(costs))
    return [
        _Trimmed(design=design[best], kept=tuple(kept[:, best]), squares=tuple(squares[:, best]))
        for design, (kept, squares) in zip(designs, fits, strict=True)
    ]


def _designs(cells: _Cells, pairs: Floats) -> Floats:
    """Return orthonormal columns [K, n, 3] by pair of exponents: falling term, rising term."""
    rates = np.stack([np.zeros(len(pairs)), -pairs[:, 0], pairs[:, 1]], axis=1)
    powers = np.clip(rates[:, None] * cells.x[:, None], -_MOST_POWER, _MOST_POWER)
    return np.asarray(np.linalg.qr(np.exp(powers) / cells.level[:, None])[0])


def _costs(cells: _Cells, kept: Flags, squares: Floats) -> Floats:
    """Return per pair of exponents -2·ln(likelihood) of its best number of sizes taken out."""
    return np.asarray(_cost(cells, squares, (~kept).sum(axis=-1)).min(axis=0))


def _cost(cells: _Cells, squares: Floats, num_cut: npt.NDArray[np.intp]) -> Floats:
    return np.asarray(cells.dof * np.log(squares / cells.dof + _FLOOR**2) + _PENALTY * num_cut)


def _cheapest(cells: _Cells, trim: _Trimmed) -> int:
    num_cut = np.array([(~kept).sum() for kept in trim.kept])
    return int(np.argmin(_cost(cells, np.array(trim.squares), num_cut)))


def _all_sets(design: Floats, target: Floats) -> tuple[Flags, Floats]:
    """Return per number of sizes taken out and pair the best set [R, K, n], and its squares."""
    num = len(target)
    kept, squares = [], []
    for num_cut in range(num // _MOST_CUT + 1):
        sets = _sets(num, num_cut)
        found = _squares(design[:, None], target, sets[None])
        best = found.argmin(axis=1)
        kept.append(sets[best])
        squares.append(found[np.arange(len(design)), best])
    return np.stack(kept), np.stack(squares)


@functools.cache
def _sets(num: int, num_cut: int) -> Flags:
    """Return every way to keep all but some of ``num`` sizes [S, num]."""
    chosen = list(itertools.combinations(range(num), num_cut))
    kept = np.ones((len(chosen), num), dtype=bool)
    for flags, cut in zip(kept, chosen, strict=True):
        flags[list(cut)] = False
    return kept


def _in_turn(design: Floats, target: Floats) -> tuple[Flags, Floats]:
    """Return what `_all_sets` does, by taking out the sizes that are farthest off in turn."""
    num = len(target)
    most = num // _MOST_CUT
    kept = [np.ones(design.shape[:2], dtype=bool)]
    for _ in range(most if num <= _MANY else _ROUNDS):
        beta, inverse = _solved(design, target, kept[-1])
        lever = np.einsum("kni,kij,knj->kn", design, inverse, design)
        error = (target - np.einsum("kni,ki->kn", design, beta)) ** 2
        gain = np.where(kept[-1], error / np.maximum(1 - lever, 1e-9), -1.0)
        farthest = gain == gain.max(axis=1, keepdims=True)
        if num > _MANY:
            usual = np.median(gain, axis=1, keepdims=True) / _MEDIAN_CHI2
            farthest = gain > _FAR**2 * np.maximum(usual, _FLOOR**2)
        flags = kept[-1] & ~farthest
        is_allowed = (~flags).sum(axis=1, keepdims=True) <= most
        kept.append(np.where(is_allowed, flags, kept[-1]))
    return np.stack(kept), np.stack([_squares(design, target, flags) for flags in kept])


def _solved(design: Floats, target: Floats, kept: Flags) -> tuple[Floats, Floats]:
    """Return coefficients [..., 3] and inverse normal matrix [..., 3, 3] of the sizes kept."""
    weight = kept.astype(np.float64)
    normal = np.einsum("...ni,...n,...nj->...ij", design, weight, design)
    inverse = np.linalg.inv(normal + _RIDGE * np.eye(_COEFFICIENTS))
    right = np.einsum("...ni,...n->...i", design, weight * target)
    return np.einsum("...ij,...j->...i", inverse, right), inverse


def _squares(design: Floats, target: Floats, kept: Flags) -> Floats:
    beta, _ = _solved(design, target, kept)
    error = target - np.einsum("...ni,...i->...n", design, beta)
    return np.asarray((kept * error**2).sum(axis=-1))


def _priors(
    cells: Sequence[_Cells], trims: Sequence[_Trimmed], kept: Sequence[Flags]
) -> list[float | None]:
    """Return for each group the variance of ln(loss) that the others have; None without any."""
    variances = []
    for c, t, flags in zip(cells, trims, kept, strict=True):
        squares = float(_squares(t.design, c.loss / c.level, flags))
        variances.append(squares / max(int(flags.sum()) - _COEFFICIENTS, 1))
    others = [np.delete(variances, place) for place in range(len(variances))]
    return [float(np.median(values)) if len(values) else None for values in others]


def _accepted(cells: _Cells, trim: _Trimmed, prior: float | None, num_cells: int) -> Flags:
    """Return which sizes stay: the others are all off the profile of those.

    Of sets, the largest; in groups of many sizes those that are not off come back.
    """
    if len(cells.x) > _MANY:
        kept = trim.kept[-1]
        for _ in range(_ROUNDS):
            kept = kept | ~_Judge(cells, trim.design, kept, prior, num_cells).is_off
        return kept
    for kept in reversed(trim.kept):
        if _Judge(cells, trim.design, kept, prior, num_cells).is_off[~kept].all():
            return kept
    raise AssertionError("without any taken out, all that are taken out are off")


class _Judge:
    """How far the sizes of one group are off, as predicted by the others of those that stay."""

    def __init__(
        self, cells: _Cells, design: Floats, kept: Flags, prior: float | None, num_cells: int
    ) -> None:
        from scipy.special import stdtrit

        self.cells, self.kept = cells, kept
        target = cells.loss / cells.level
        beta, inverse = _solved(design, target, kept)
        lever = np.einsum("ni,ij,nj->n", design, inverse, design)
        inside = np.maximum(1 - lever, 1e-9)
        error = target - design @ beta
        own_dof = max(int(kept.sum()) - _COEFFICIENTS, 0)
        squares = float((kept * error**2).sum())
        self.own_variance = squares / max(own_dof, 1)
        prior_dof = 0.0 if prior is None else _PRIOR_DOF
        dof = own_dof + prior_dof
        self.variance = (squares + prior_dof * (prior or 0.0)) / max(dof, 1.0) + _FLOOR**2
        tail = _ERROR_RATE / (2 * num_cells)
        self.threshold = -float(stdtrit(dof, tail)) if dof >= 1 else math.inf
        # Over the level; the variance of a difference over that of a size.
        self.error = np.where(kept, error / inside, error)
        self.spread = np.where(kept, 1 / inside, 1 + lever)
        self.expected = (target - self.error) * cells.level

    @property
    def z(self) -> Floats:
        return np.asarray(self.error / np.sqrt(self.spread * self.variance))

    @property
    def is_off(self) -> Flags:
        return np.asarray(np.abs(self.z) > self.threshold)

    def is_rough(self, prior: float | None) -> bool:
        """Return whether nobody can say which sizes are off.

        What stays is no smooth curve; or, of few sizes, two are off below it, which a fault of a
        run rarely does: the others may be the faulty ones.
        """
        num_below = int((self.error[~self.kept] < 0).sum())
        if len(self.kept) <= _EXHAUSTIVE and num_below > 1:
            return True
        ratio = math.inf if prior is None else self.own_variance / max(prior, _FLOOR**2)
        return self.own_variance > _ROUGH**2 and ratio > _ROUGH_RATIO**2

    def odd_runs(self, group: Group, within: float | None) -> dict[int, Odd]:
        """Return the runs of sizes taken out, and single ones of repeated cells that stay."""
        order = np.argsort(group.cell, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(group.cell))[:-1])
        odd: dict[int, Odd] = {}
        for place, number in enumerate(self.cells.number):
            runs, is_out = members[number], not self.kept[place]
            if not is_out and len(runs) <= 2:
                # Of two runs about a size that is not off, neither is.
                continue
            noise = self.variance * len(runs) if within is None else within
            sd = math.sqrt(self.variance * float(self.spread[place]) + (len(runs) > 1) * noise)
            expected = float(self.expected[place])
            z = (group.loss[runs] - expected) / (sd * self.cells.level[place])
            chosen = np.abs(z) > self.threshold
            if is_out and not chosen.any():
                chosen[:] = True
            for run, value in zip(runs[chosen], z[chosen], strict=True):
                odd[int(run)] = Odd(expected=expected, z=abs(float(value)))
        return odd


def _within_cells(groups: Sequence[Group]) -> float | None:
    """Return the variance of ln(loss) between runs of one cell, None with under three cells.

    By medians, which a few bad runs do not move.
    """
    variances = [variance for group in groups for variance in _cell_variances(group)]
    return float(np.median(variances)) if len(variances) >= 3 else None


def _cell_variances(group: Group) -> Iterator[float]:
    count = np.bincount(group.cell)
    values = np.log(group.loss)
    mean = np.bincount(group.cell, weights=values) / count
    squares = np.bincount(group.cell, weights=(values - mean[group.cell]) ** 2)
    repeated = count > 1
    # The median of χ² over its degrees of freedom, by Wilson and Hilferty.
    dof = count[repeated] - 1
    yield from squares[repeated] / dof / (1 - 2 / (9 * dof)) ** 3
