"""Noise that runs share: those of one trunk.

Runs of one model, seed, batch and data that differ in their steps alone are one training until the
shorter one decays (isoflop.plan.trunks), so that a lucky seed is lucky at every budget. A run's
noise is √ρ · (what its trunk has) + √(1 − ρ) · (its own): draws put the same noise of a trunk into
all its budgets, and the variance of the exponents, frontiers and multipliers follows.

ρ is measured from the table's own repeats, cell by cell between two budgets, and shrunk towards
``DEFAULT``. It is the correlation of runs of equal seed under a warm-up of fixed length: results
are the same to the last bit whether the trunk was trained once or each run alone. Which runs those
are is read from ``flops_spent``, which studies have that share trunks; of other tables nothing is
assumed.

Letters: B draws, n runs.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from isoflop.analysis.points import GroupKey, Point, Selection
from isoflop.arrays import Floats
from isoflop.numbers import format_flops

Integers = npt.NDArray[np.int64]

TrunkKey = tuple[Hashable, ...]
Source = Literal["default", "repeats and default"]

_STREAM_OF_RHO, _STREAM_OF_TRUNKS = 22_081, 22_082
# A correlation of 1 has no z.
_MOST = 0.995
# Fisher's z of so many pairs has no variance yet.
_NUM_UNTOLD = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """How alike the noise of two runs of one trunk is, as Fisher's z = artanh ρ."""

    z: float
    weight: float
    """1 / variance of z."""

    @property
    def value(self) -> float:
        """ρ, from 0 to 1."""
        return max(0.0, math.tanh(self.z))

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the ends of the central interval of ρ."""
        from scipy.special import ndtri

        reach = float(ndtri((1 + confidence) / 2)) / math.sqrt(self.weight)
        return max(0.0, math.tanh(self.z - reach)), max(0.0, math.tanh(self.z + reach))

    def draws(self, n_boot: int, seed: int) -> Floats:
        """Draw ρ [B]."""
        rng = np.random.default_rng((_STREAM_OF_RHO, seed))
        z = self.z + rng.standard_normal(n_boot) / math.sqrt(self.weight)
        return np.asarray(np.clip(np.tanh(z), 0.0, _MOST))


# results/trunks: 0.90 over 48 pairs of budgets of ten sizes (95 %: 0.71 to 0.96 by draws of sizes);
# 0.92, 0.87 and 0.84 at factors of 2, 4 and 8, so that one value stands for all. What it weighs is
# the variance of that z (0.07), and of another study's about it, for which 0.16 is assumed.
DEFAULT = Correlation(z=math.atanh(0.9), weight=4.0)
DEFAULT_SOURCE = "measured in results/trunks"


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedNoise:
    """Which points are of which trunk, and how alike the noise of one trunk is."""

    trunk_of: Mapping[Point, TrunkKey]
    """Points that share none have no entry."""
    correlation: Correlation = DEFAULT
    source: Source = "default"
    num_pairs: int = 0
    """Pairs of budgets that repeats of one size were compared at, seeds less one each."""

    @property
    def words(self) -> str:
        """Where the correlation is from."""
        default = f"the default {DEFAULT.value:.2g} ({DEFAULT_SOURCE})"
        if self.source == "default":
            return f"{default}, since too few sizes have two seeds at two budgets"
        return f"{self.num_pairs} pairs of budgets of repeated sizes, drawn towards {default}"

    def keys(self, points: Iterable[Point]) -> tuple[TrunkKey | None, ...]:
        """Return the trunk of each point; None: it shares none."""
        return tuple(self.trunk_of.get(point) for point in points)

    def worth(self, keys: Sequence[TrunkKey | None]) -> float:
        """Return how many independent runs a run is worth where their variance is measured.

        Squares of noise that is alike by ρ are alike by ρ², so that the mean square of K runs of
        one trunk varies like that of K / (1 + (K − 1) ρ²).
        """
        sizes = Counter(key for key in keys if key is not None)
        pairs = sum(num * (num - 1) for num in sizes.values())
        return len(keys) / (len(keys) + pairs * self.correlation.value**2) if pairs else 1.0

    def alike(self, groups: Mapping[GroupKey, Sequence[Point]]) -> dict[str, float]:
        """Return the correlation of the mean squares of two budgets, of the archs that share any.

        It is ρ² of the trunks that both have, in the mean over the pairs of budgets.
        """
        trunks: dict[str, list[set[TrunkKey | None]]] = {}
        for (arch, _), points in groups.items():
            trunks.setdefault(arch, []).append(set(self.keys(points)) - {None})
        found = {}
        for arch, of_budgets in trunks.items():
            shares = [
                len(one & other) / max(math.sqrt(len(one) * len(other)), 1)
                for one, other in itertools.combinations(of_budgets, 2)
            ]
            if any(shares):
                found[arch] = self.correlation.value**2 * float(np.mean(shares))
        return found

    def draws(self, n_boot: int, seed: int) -> SharedDraws:
        """Return the draws of what is shared."""
        return SharedDraws(shared=self, rho=self.correlation.draws(n_boot, seed), seed=seed)


NOTHING_SHARED = SharedNoise(trunk_of={})


def shared_noise(selection: Selection) -> SharedNoise:
    """Return what the points of a table share, and how alike it makes them."""
    trunk_of = trunks_of_points(selection.points)
    if not trunk_of:
        return NOTHING_SHARED
    repeats = repeats_of(trunk_of)
    if repeats.num_pairs <= _NUM_UNTOLD:
        return SharedNoise(trunk_of=trunk_of)
    rho = min(max(repeats.rho, -_MOST), _MOST)
    # Of K budgets alike by ρ the K (K − 1) / 2 pairs are worth fewer independent ones: so many
    # that the variance is that of the maximum likelihood estimate.
    alike = max(rho, 0.0)
    worth = ((1 + alike) / (1 + (repeats.num_budgets - 1) * alike)) ** 2
    weight = (repeats.num_pairs - _NUM_UNTOLD) * worth
    total = DEFAULT.weight + weight
    z = (DEFAULT.weight * DEFAULT.z + weight * math.atanh(rho)) / total
    return SharedNoise(
        trunk_of=trunk_of,
        correlation=Correlation(z=z, weight=total),
        source="repeats and default",
        num_pairs=repeats.num_pairs,
    )


def trunks_of_points(points: Iterable[Point]) -> dict[Point, TrunkKey]:
    """Return the trunk of each point that shares one with a run of another length.

    The shorter runs of an arch that shares trunks have spent less than they are charged. Its runs
    of equal size, batch and seed are then one training, those too that were trained alone.
    """
    told = [point for point in points if point.flops_spent is not None]
    sharing = {point.arch for point in told if _began_at_a_fork(point)}
    groups: dict[TrunkKey, list[Point]] = {}
    for point in told:
        if point.arch in sharing:
            groups.setdefault(_key(point), []).append(point)
    return {
        point: key
        for key, of_trunk in groups.items()
        if len({point.n_tokens for point in of_trunk}) > 1
        for point in of_trunk
    }


def _began_at_a_fork(point: Point) -> bool:
    return (
        point.flops is not None
        and point.flops_spent is not None
        and point.flops_spent < point.flops * (1 - 1e-9)
    )


def _key(point: Point) -> TrunkKey:
    size = point.n_params, point.n_active, point.n_nonembed
    return point.arch, *size, point.batch_size, point.seq_len, point.seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """What the repeats of a table tell of ρ: products over pairs of budgets of one size."""

    rho: float
    """0 without pairs."""
    num_pairs: int
    """Pairs of budgets, each counted as often as it has seeds beyond the first."""
    num_budgets: float
    """Of a trunk, in the mean over the pairs."""


def repeats_of(trunk_of: Mapping[Point, TrunkKey]) -> Repeats:
    """Return ρ by repeats: the correlation of seeds' deviations from their mean at two budgets.

    Each deviation counts in standard deviations of its arch and budget.
    """
    cells = _cells(trunk_of)
    sds = _pooled_sds(cells)
    cross, of_one, of_other, num_pairs, budgets = 0.0, 0.0, 0.0, 0, 0.0
    for (arch, *_), by_budget in cells.items():
        for low, high in itertools.combinations(sorted(by_budget), 2):
            seeds = sorted(by_budget[low].keys() & by_budget[high].keys(), key=repr)
            scale = sds.get((arch, low), 0.0), sds.get((arch, high), 0.0)
            if len(seeds) < 2 or not all(scale):
                continue
            one, other = (
                _deviations([by_budget[budget][seed] for seed in seeds]) / sd
                for budget, sd in zip((low, high), scale, strict=True)
            )
            cross += float(one @ other)
            of_one += float(one @ one)
            of_other += float(other @ other)
            num_pairs += len(seeds) - 1
            budgets += (len(seeds) - 1) * len(by_budget)
    return Repeats(
        rho=cross / math.sqrt(of_one * of_other) if of_one and of_other else 0.0,
        num_pairs=num_pairs,
        num_budgets=budgets / num_pairs if num_pairs else 0.0,
    )


_Cells = dict[TrunkKey, dict[float, dict[Hashable, float]]]
"""ln loss by size, budget and seed."""


def _cells(trunk_of: Mapping[Point, TrunkKey]) -> _Cells:
    cells: _Cells = {}
    for point, key in trunk_of.items():
        by_budget = cells.setdefault(key[:-1], {})
        by_budget.setdefault(point.budget_flops, {})[key[-1]] = math.log(point.loss)
    repeated = (
        (size, {budget: seeds for budget, seeds in by_budget.items() if len(seeds) > 1})
        for size, by_budget in cells.items()
    )
    return {size: by_budget for size, by_budget in repeated if by_budget}


def _pooled_sds(cells: _Cells) -> dict[tuple[Hashable, float], float]:
    """Return the standard deviation between seeds of each arch and budget."""
    squares: dict[tuple[Hashable, float], list[float]] = {}
    for (arch, *_), by_budget in cells.items():
        for budget, seeds in by_budget.items():
            off = _deviations(list(seeds.values()))
            squares.setdefault((arch, budget), []).append(float(off @ off) / (len(off) - 1))
    return {key: math.sqrt(sum(values) / len(values)) for key, values in squares.items()}


def _deviations(values: Sequence[float]) -> Floats:
    found = np.array(values, dtype=np.float64)
    return np.asarray(found - found.mean())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SharedDraws:
    """What trunks have in common, in every draw: the same at all of their budgets."""

    shared: SharedNoise
    rho: Floats
    """[B]"""
    seed: int

    def normals(self, own: Floats, keys: Sequence[TrunkKey | None]) -> Floats:
        """Return standard normal noise of runs [n, B] whose trunks have a part of it in common.

        Args:
            own: noise of each run alone [n, B].
            keys: the trunk of each run [n].
        """
        mixed = own
        for i, key in enumerate(keys):
            if key is not None:
                mixed = own.copy() if mixed is own else mixed
                of_trunk = self._rng(key).standard_normal(len(self.rho))
                mixed[i] = np.sqrt(self.rho) * of_trunk + np.sqrt(1 - self.rho) * own[i]
        return mixed

    def picks(
        self,
        own: Integers,
        keys: Sequence[TrunkKey | None],
        num: int,
        rng: np.random.Generator,
    ) -> Integers:
        """Return which of ``num`` residuals each run takes [B, n]: with √ρ the one of its trunk.

        Two runs of one trunk take the same with ρ then, and are correlated by it.

        Args:
            own: what each run takes alone [B, n].
            keys: the trunk of each run [n].
            num: residuals to take from.
            rng: of the runs alone.
        """
        mixed = own
        for i, key in enumerate(keys):
            if key is not None:
                mixed = own.copy() if mixed is own else mixed
                of_trunk = self._rng(key).integers(0, num, len(self.rho))
                takes_it = rng.random(len(self.rho)) < np.sqrt(self.rho)
                mixed[:, i] = np.where(takes_it, of_trunk, own[:, i])
        return mixed

    def _rng(self, key: TrunkKey) -> np.random.Generator:
        entropy = zlib.crc32(repr(key).encode())
        return np.random.default_rng((_STREAM_OF_TRUNKS, self.seed, entropy))


def trunk_weights(
    points: Sequence[Point], shared: SharedNoise, n_boot: int, seed: int
) -> dict[Point, Floats]:
    """Return how often each run of one arch is drawn [B], where trunks are drawn whole.

    A run without a trunk is drawn by itself. Archs of one design share the draws.
    """
    ordered = sorted(points, key=lambda p: (p.n_params, repr(p.seed), p.budget_flops, p.n_tokens))
    units: dict[Hashable, int] = {}
    unit_of = [
        units.setdefault(point if key is None else key, len(units))
        for point, key in zip(ordered, shared.keys(ordered), strict=True)
    ]
    counts = drawn_counts(len(units), n_boot, np.random.default_rng((_STREAM_OF_TRUNKS, seed)))
    return {point: counts[:, unit] for point, unit in zip(ordered, unit_of, strict=True)}


def drawn_counts(num: int, n_boot: int, rng: np.random.Generator) -> Floats:
    """Return how often each of ``num`` is drawn in as many draws with replacement [B, num]."""
    picked = (rng.random((num, n_boot)).T * num).astype(np.int64)
    return np.stack([(picked == i).sum(axis=1) for i in range(num)], axis=1).astype(np.float64)


def executed_text(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Return FLOPs and hours of all runs and those executed; None: no runs share a trunk."""
    # A run that two budgets share is a row of each; tables of others may have any names and values.
    ended = {row["run_id"]: row for row in rows if _has(row, "flops_spent", "flops")}.values()
    if not ended:
        return None
    timed = [row for row in ended if _has(row, "wall_s_spent", "wall_s")]
    flops, hours = (
        [format_flops(sum(row[name] for row in ended)) for name in ("flops_spent", "flops")],
        [f"{sum(row[name] for row in timed) / 3600:,.3g}" for name in ("wall_s_spent", "wall_s")],
    )
    took = f", {hours[0]} of {hours[1]} hours" if timed else ""
    return (
        f"{flops[0]} of {flops[1]} FLOPs{took}: what runs of a trunk share was executed once; "
        "figures of a run are as if it were trained alone"
    )


def _has(row: Mapping[str, Any], *names: str) -> bool:
    return bool(row.get("run_id")) and all(isinstance(row.get(n), float) for n in names)
