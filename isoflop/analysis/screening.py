"""Which points of a table do not enter a fit although each alone could: copies, repeats, odd runs.

`select_points` (points.py) makes the points of a table; `screen` names those that a fit must not
take as they stand. In this order, each rule on what the ones before it left:

- ``near_dup``: one run exported twice, in other digits.
- ``unexplained_repeat``: runs of one cell (family, budget, parameters, tokens) that no seed tells
  apart, such as a sweep of learning rates. Nothing is assumed of them: the user says whether their
  mean or the best of them counts (the others are then ``not_best``).
- ``off_budget``: a run that spent other FLOPs than the runs of its group.
- ``outlier``: a loss far from the smooth profile through the other sizes (outliers.py).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from isoflop.analysis.outliers import Found, Group, find_outliers
from isoflop.arrays import Floats
from isoflop.numbers import format_count, format_flops

if TYPE_CHECKING:
    from isoflop.analysis.points import GroupKey, Point

Repeats = Literal["seeds", "best"]

Refused = dict[int, tuple[str, str]]
"""(reason, detail) by the index of a point."""

STOOD_FOR = frozenset({"exact_dup", "near_dup", "not_best"})
"""Reasons of rows whose cell another row stands for."""

# Sizes and tokens that differ by less may be the same, written with few digits.
_SAME = math.log(1.01)
# A number of fewer digits is taken as one of three whose last are zeros.
_MIN_DIGITS = 3
# Of two measured losses one may end in a zero; a rounded one lacks more digits than one.
_DIGITS_LOST = 2
# Losses this near are one number in float32 and float64.
_FLOAT32 = 2e-7

_OFF_BUDGET = math.log(1.2)
# Of two runs nobody can say which is off.
_LEAST_SPENDERS = 3
# Sizes between which slopes are taken.
_MOST_SIZES_OF_A_LINE = 200
# Of more groups than this a sentence gives the number.
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Screened:
    """What screening found."""

    refused: Refused
    notes: tuple[str, ...]
    """What the user has to decide, and groups that could not be judged, a sentence each."""


def screen(points: Sequence[Point], repeats: Repeats | None, *, finds_odd: bool) -> Screened:
    """Return which points enter no fit and why; it does not depend on their order.

    Args:
        points: those of a whole table.
        repeats: what the runs of one cell are that no seed tells apart: ``seeds`` (all count) or
            ``best`` (the lowest loss counts, of each seed where there are seeds); None where the
            user has not said, and none of them counts.
        finds_odd: whether ``off_budget`` and ``outlier`` are looked for.
    """
    groups: dict[GroupKey, list[int]] = {}
    for index in sorted(range(len(points)), key=lambda i: _order(points[i])):
        groups.setdefault((points[index].arch, points[index].budget_flops), []).append(index)
    refused: Refused = {}

    def left() -> dict[GroupKey, list[int]]:
        return {key: [i for i in group if i not in refused] for key, group in groups.items()}

    for group in left().values():
        refused.update(_near_duplicates(points, group))
    unexplained = [
        cell
        for group in left().values()
        for cell in _cells(points, group)
        if not _is_told_apart(points, cell)
    ]
    notes = []
    if repeats is None and unexplained:
        notes.append(_repeats_note(unexplained))
    for cell in unexplained:
        refused.update(_repeats(points, cell, repeats))
    if finds_odd:
        for group in left().values():
            refused.update(_off_budget(points, group))
        odd, rough = _outliers(points, left())
        refused.update(odd)
        notes += rough
    return Screened(refused=refused, notes=tuple(notes))


def screen_loose(points: Sequence[Point], repeats: Repeats | None) -> Screened:
    """Return which points without a budget enter no law, and why, by what `screen` says of repeats.

    Tokens of one cell are equal: those of a run's steps may be near each other.
    """
    cells: dict[tuple[object, ...], list[int]] = {}
    for index in sorted(range(len(points)), key=lambda i: _order(points[i])):
        cells.setdefault((points[index].arch, *points[index].size_key), []).append(index)
    unexplained = [cell for cell in cells.values() if not _is_told_apart(points, cell)]
    refused: Refused = {}
    for cell in unexplained:
        refused.update(_repeats(points, cell, repeats))
    has_note = repeats is None and unexplained
    notes = (_repeats_note(unexplained, "number of tokens"),) if has_note else ()
    return Screened(refused=refused, notes=notes)


def _order(point: Point) -> tuple[object, ...]:
    seed = -math.inf if point.seed is None else point.seed
    size = point.n_params, point.n_tokens
    return point.arch, point.budget_flops, *size, seed, point.loss, point.run_id or ""


def _near_duplicates(points: Sequence[Point], group: Sequence[int]) -> Refused:
    """Return the copies among runs of about one size; that of most digits stays."""
    refused: Refused = {}
    for near in _chains(group, [points[i].n_params for i in group]):
        if len(near) > 1:
            refused.update(_copies(points, near))
    return refused


def _copies(points: Sequence[Point], near: Sequence[int]) -> Refused:
    refused: Refused = {}
    originals: dict[tuple[object, ...], int] = {}
    for i in near:
        same = (*points[i].size_key, points[i].seed, points[i].loss)
        if same in originals:
            refused[i] = "near_dup", _copy_of(points[originals[same]])
        else:
            originals[same] = i
    by_loss = sorted(originals.values(), key=lambda i: (points[i].loss, *_order(points[i])))
    losses = [points[i].loss for i in by_loss]
    digits = {i: _digits(points[i].loss) for i in by_loss}
    # Those of fewest digits first, so that what remains is what says most.
    for i in sorted(by_loss, key=lambda i: digits[i]):
        half = _half_unit(points[i].loss, digits[i])
        place = bisect_left(losses, points[i].loss - half)
        while place < len(losses) and losses[place] <= points[i].loss + half:
            other = by_loss[place]
            if other != i and other not in refused and _is_copy(points, i, other, digits):
                refused[i] = "near_dup", _copy_of(points[other])
                break
            place += 1
    return refused


def _is_copy(points: Sequence[Point], one: int, other: int, digits: Mapping[int, int]) -> bool:
    """Return whether one may be the other with fewer digits.

    With one seed stated and equal losses, sizes that are counted a little differently are one.
    """
    a, b = points[one], points[other]
    if a.seed != b.seed:
        return False
    sizes = list(zip(a.size_key, b.size_key, strict=True))
    if any(abs(math.log(mine / theirs)) > _SAME for mine, theirs in sizes):
        return False
    is_equal = abs(a.loss - b.loss) <= _FLOAT32 * a.loss
    if is_equal and a.seed is not None:
        return True
    is_rounded = digits[other] >= max(digits[one], _MIN_DIGITS) + _DIGITS_LOST
    return (is_equal or is_rounded) and all(_is_one_number(*pair) for pair in sizes)


def _is_one_number(mine: float, theirs: float) -> bool:
    """Return whether one may be the other with fewer digits."""
    return abs(mine - theirs) <= _half_unit(mine, min(_digits(mine), _digits(theirs)))


def _digits(number: float) -> int:
    """Return the significant digits of a number, zeros at its end not counted."""
    mantissa = repr(number).partition("e")[0]
    return len(mantissa.replace(".", "").strip("0"))


def _half_unit(number: float, digits: int) -> float:
    """Return how far a rounded number may be from what it was."""
    unit = 10.0 ** (math.floor(math.log10(number)) + 1 - max(digits, _MIN_DIGITS))
    return max(0.5 * unit * (1 + 1e-9), _FLOAT32 * number)


def _copy_of(point: Point) -> str:
    run = "" if point.run_id is None else f" (run {point.run_id[:12]})"
    return f"the run of {format_count(point.n_params, 4)} parameters with loss {point.loss!r}{run}"


def _chains(group: Sequence[int], values: Sequence[float]) -> list[list[int]]:
    """Split ascending values where the next is more than 1 % larger."""
    if not group:
        return []
    # Most cells of a large table hold one run, or runs of one size.
    if values[0] == values[-1]:
        return [list(group)]
    breaks = np.flatnonzero(np.diff(np.log(values)) > _SAME) + 1
    ends = [0, *breaks.tolist(), len(group)]
    return [list(group[start:end]) for start, end in itertools.pairwise(ends)]


def _cells(points: Sequence[Point], group: Sequence[int]) -> list[list[int]]:
    """Return the runs of each cell: of the same parameters, and tokens within 1 %."""
    by_size: dict[float, list[int]] = {}
    for i in group:
        by_size.setdefault(points[i].n_params, []).append(i)
    return [
        chain
        for same in by_size.values()
        for chain in _chains(same, [points[i].n_tokens for i in same])
    ]


def _is_told_apart(points: Sequence[Point], cell: Sequence[int]) -> bool:
    seeds = {points[i].seed for i in cell}
    return len(cell) == 1 or (len(seeds) == len(cell) and None not in seeds)


def _repeats(points: Sequence[Point], cell: Sequence[int], repeats: Repeats | None) -> Refused:
    if repeats is None:
        return {i: ("unexplained_repeat", f"one of {len(cell)} runs of a cell") for i in cell}
    if repeats == "seeds":
        return {}
    best: dict[int | None, int] = {}
    for i in sorted(cell, key=lambda i: (points[i].loss, *_order(points[i]))):
        best.setdefault(points[i].seed, i)
    return {
        i: ("not_best", f"{points[best[points[i].seed]].loss:.4f} is the lowest of its cell")
        for i in cell
        if best[points[i].seed] != i
    }


def _repeats_note(cells: Sequence[Sequence[int]], other: str = "budget") -> str:
    where = f"1 cell of one size and {other} holds"
    if len(cells) > 1:
        where = f"{len(cells):,} cells of one size and {other} hold"
    return (
        f"{where} {sum(map(len, cells)):,} runs that no seed tells apart, and none of them enters "
        "a fit: say --repeats seeds (their mean counts) or --repeats best (the lowest loss of each "
        "cell counts)."
    )


def _off_budget(points: Sequence[Point], group: Sequence[int]) -> Refused:
    """Return the runs that spent other FLOPs than their group, a trend over sizes allowed for.

    Where most of a group spends something else it is a matter of how FLOPs are counted; so is a
    share that grows with the size.
    """
    known = [i for i in group if points[i].flops is not None]
    if len(known) < _LEAST_SPENDERS:
        return {}
    spent = np.array([points[i].flops for i in known], dtype=np.float64)
    share = np.log(spent / points[known[0]].budget_flops)
    middle = float(np.median(share))
    trend = _trend(np.log([points[i].n_params for i in known]), share)
    is_off = (np.abs(share - middle) > _OFF_BUDGET) & (np.abs(share - trend) > _OFF_BUDGET)
    if 2 * is_off.sum() >= len(known):
        return {}
    usual = format_flops(math.exp(middle) * points[known[0]].budget_flops, 3)
    return {
        known[place]: (
            "off_budget",
            f"{format_flops(spent[place], 3)} FLOPs where the others spend {usual}",
        )
        for place in np.flatnonzero(is_off)
    }


def _trend(log_x: Floats, y: Floats) -> Floats:
    """Return the line of Theil (1950) and Sen (1968): the median slope, through the medians."""
    x, where = np.unique(log_x, return_index=True)
    if len(x) < _LEAST_SPENDERS:
        return np.full(len(y), np.median(y))
    place = np.linspace(0, len(x) - 1, min(len(x), _MOST_SIZES_OF_A_LINE)).astype(int)
    x, level = x[place], y[where[place]]
    low, high = np.triu_indices(len(x), 1)
    slope = float(np.median((level[high] - level[low]) / (x[high] - x[low])))
    return np.asarray(np.median(y - slope * log_x) + slope * log_x)


def _outliers(
    points: Sequence[Point], groups: Mapping[GroupKey, Sequence[int]]
) -> tuple[Refused, list[str]]:
    cells = {key: _cells(points, group) for key, group in groups.items() if group}
    num_cells = sum(map(len, cells.values()))
    refused: Refused = {}
    rough = []
    for arch in sorted({arch for arch, _ in cells}):
        keys = [key for key in cells if key[0] == arch]
        found = find_outliers([_group(points, cells[key]) for key in keys], num_cells)
        for key, each in zip(keys, found, strict=True):
            refused.update(_odd(points, cells[key], each))
            if each.is_rough:
                rough.append(f"{arch} at {format_flops(key[1])}")
    return refused, [_rough_note(rough)] * bool(rough)


def _rough_note(groups: Sequence[str]) -> str:
    more = f" and {len(groups) - _MOST_NAMED} more" if len(groups) > _MOST_NAMED else ""
    return (
        f"The losses of {', '.join(groups[:_MOST_NAMED])}{more} follow no smooth curve of size, "
        "and which of them are off cannot be said: none is left out as an outlier."
    )


def _group(points: Sequence[Point], cells: Sequence[Sequence[int]]) -> Group:
    runs = [points[i] for cell in cells for i in cell]
    return Group(
        log_x=np.log([run.n_params for run in runs]),
        loss=np.array([run.loss for run in runs], dtype=np.float64),
        cell=np.repeat(np.arange(len(cells)), [len(cell) for cell in cells]),
    )


def _odd(points: Sequence[Point], cells: Sequence[Sequence[int]], found: Found) -> Refused:
    runs = [i for cell in cells for i in cell]
    refused: Refused = {}
    for place, odd in found.odd.items():
        loss = f"loss {points[runs[place]].loss:.4g}"
        words = f"{loss} beside a size of {odd.expected:.4g}"
        if odd.z is not None:
            words = f"{loss} where the other sizes give {odd.expected:.4g} (z {odd.z:.0f})"
        refused[runs[place]] = "outlier", words
    return refused
