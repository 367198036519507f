"""The one bootstrap: its kinds, how much losses scatter, and what is drawn from that.

Three kinds, always named in the tables:

- ``residual``: relative residuals of the fit, times √(m / (m − p)) for its p coefficients, are
  drawn with replacement and put on the fitted losses.
- ``parametric``: Gaussian noise as large as the scatter of repeated cells (the same parameters and
  tokens, other seeds).
- ``case``: points are drawn with replacement. A draw with too few sizes fails, so that intervals
  are too wide with few points; meant for many.

The first two multiply the noise of each draw by √(dof / χ²_dof), the uncertainty of a variance that
was estimated from few degrees of freedom, so that intervals have Student's tails.

Two sorts of fits are drawn for. *Optima* of single budgets (``draw_optima``): ``auto`` is
parametric with ``MIN_SEED_DOF`` degrees of freedom of repeats, else residual, and a budget with
fewer than ``OWN_DOF`` residual degrees of freedom draws from those of all budgets of its family.
*Laws* of all points of a family (``draw_losses``): ``auto`` is case from ``MIN_POINTS_FOR_CASES``
points on, else residual.

Pairing: draw i of one family belongs with draw i of every other. The random numbers of a budget
come from (seed, budget) alone, and points are in the order of their sizes and seeds, so two
families with the same design draw the same cells; those of a law from the seed and the number of
points. Parametric noise is independent between families, since equal seeds need not mean equal
noise.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.optima_methods import (
    ABOVE,
    BELOW,
    INTERIOR,
    METHODS,
    MIN_DISTINCT_SIZES,
    Codes,
    FitMethod,
    Method,
    Minima,
)
from isoflop.analysis.points import (
    Axis,
    GroupKey,
    Profile,
    Selection,
    profile_of,
)
from isoflop.analysis.resources import RESOURCES, resource_at
from isoflop.arrays import Floats

Kind = Literal["residual", "parametric", "case"]
Requested = Literal["auto", "residual", "parametric", "case"]

# Degrees of freedom of repeated cells from which `auto` trusts their noise for optima.
MIN_SEED_DOF = 4
# Those that a law needs where `parametric` is requested.
MIN_SEED_DOF_OF_LAW = 3
MIN_POINTS_FOR_CASES = 60

# A budget with fewer residual degrees of freedom uses those of all budgets of its family: Student's
# 97.5 % quantile is 12.7, 3.2 and 2.3 at 1, 3 and 8, and the residuals of four points about a
# parabola are one number.
OWN_DOF = 8

# A parabola has as many coefficients as it needs sizes.
_COEFFICIENTS = MIN_DISTINCT_SIZES
_STREAM_OF_LAWS = 81_263


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampling:
    """How the intervals of a law are made."""

    n_boot: int = 1000
    """Draws; 0 makes no intervals."""
    seed: int = 0
    kind: Requested = "auto"
    confidence: float = 0.95


DEFAULT_RESAMPLING = Resampling()


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedNoise:
    """Standard deviation of ln(loss) between runs that differ in their seed alone."""

    relative_sd: float
    """0 where dof is 0."""
    dof: int
    """Repeats beyond the first, summed over the cells."""
    n_cells: int
    """Cells with repeats."""


def kind_for_optima(selection: Selection, requested: Requested = "auto") -> Kind:
    """Return the kind of bootstrap that a table supports for its optima.

    A request for ``parametric`` without any repeated cell falls back to ``residual``.
    """
    dof = seed_noise(selection).dof
    automatic: Kind = "parametric" if dof >= MIN_SEED_DOF else "residual"
    return _kind(requested, automatic, has_repeats=dof > 0)


def kind_for_law(cells: Sequence[object], requested: Requested = "auto") -> Kind:
    """Return the kind of bootstrap that points support for a law through all of them.

    ``cells`` names the cell of each point, alike for repeats. A request for ``parametric`` with
    too few repeats falls back to ``residual``.
    """
    automatic: Kind = "case" if len(cells) >= MIN_POINTS_FOR_CASES else "residual"
    dof = len(cells) - len(set(cells))
    return _kind(requested, automatic, has_repeats=dof >= MIN_SEED_DOF_OF_LAW)


def _kind(requested: Requested, automatic: Kind, *, has_repeats: bool) -> Kind:
    kind = automatic if requested == "auto" else requested
    return "residual" if kind == "parametric" and not has_repeats else kind


def seed_noise(selection: Selection, arch: str | None = None) -> SeedNoise:
    """Pool the variance of ln(loss) within the repeated cells of a table, or of one arch.

    A cell is one arch, budget, number of parameters and number of tokens.
    """
    runs = [
        ((*key, *point.size_key), float(np.log(point.loss)))
        for key, points in selection.groups.items()
        if arch in (None, key[0])
        for point in points
    ]
    return noise_of_repeats([value for _, value in runs], [cell for cell, _ in runs])


def noise_of_repeats(values: Iterable[float], cells: Iterable[object]) -> SeedNoise:
    """Pool the variance of values within cells; ``cells`` names the cell of each value."""
    by_cell: dict[object, list[float]] = {}
    for value, cell in zip(values, cells, strict=True):
        by_cell.setdefault(cell, []).append(value)
    repeated = [group for group in by_cell.values() if len(group) > 1]
    dof = sum(len(group) - 1 for group in repeated)
    # Not by sum(), which from Python 3.12 on compensates: the last bit would be another.
    squares = 0.0
    for group in repeated:
        squares += float(np.var(group)) * len(group)
    sd = float(np.sqrt(squares / dof)) if dof else 0.0
    return SeedNoise(relative_sd=sd, dof=dof, n_cells=len(repeated))


def widened(residuals: Floats, num_coefficients: int) -> Floats:
    """Return residuals centred and as wide as the noise of a fit with so many coefficients."""
    num = len(residuals)
    return (residuals - residuals.mean()) * np.sqrt(num / (num - num_coefficients))


def student_factor(chi_squared: Floats, dof: int) -> Floats:
    """Return √(dof / χ²_dof), which gives Gaussian noise Student's tails."""
    return np.asarray(np.sqrt(dof / chi_squared))


def chi_squared_at(uniform: Floats, dof: int) -> Floats:
    """Turn uniform draws into draws of χ²_dof."""
    from scipy.special import gammaincinv

    return np.asarray(2 * gammaincinv(dof / 2, np.maximum(uniform, 1e-9)))


def draw_losses(
    target: Floats,
    fitted: Floats,
    cells: Sequence[object],
    kind: Kind,
    resampling: Resampling,
    *,
    num_coefficients: int,
    arch: str,
) -> tuple[Floats, Floats]:
    """Draw the losses that a law is fitted to again.

    Args:
        target: losses of the points, in the unit that the law is fitted in [n].
        fitted: the law at the points [n].
        cells: the cell of each point, alike for repeats.
        kind: as ``kind_for_law`` gives it.
        resampling: number of draws and seed.
        num_coefficients: parameters of the law.
        arch: name of the family, for noise of its own.

    Returns:
        Targets [B, n] and weights [B, n]; either may have a single row for all draws.
    """
    num, n_boot = len(target), resampling.n_boot
    # Seeds of two archs are no pairs: their Gaussian noise must not be the same numbers.
    own = (zlib.crc32(arch.encode()),) if kind == "parametric" else ()
    rng = np.random.default_rng((_STREAM_OF_LAWS, resampling.seed, *own))
    if kind == "case":
        drawn = rng.integers(0, num, (n_boot, num))
        weights = np.stack([np.bincount(draw, minlength=num) for draw in drawn])
        return target[None], weights.astype(np.float64)
    if kind == "residual":
        dof = num - num_coefficients
        noise = widened(target - fitted, num_coefficients)[rng.integers(0, num, (n_boot, num))]
    else:
        repeats = noise_of_repeats(target.tolist(), cells)
        dof = repeats.dof
        noise = rng.normal(0.0, repeats.relative_sd, (n_boot, num))
    noise = noise * student_factor(rng.chisquare(dof, (n_boot, 1)), dof)
    return fitted + noise, np.ones((1, num))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Noise:
    """What the residual bootstrap of one group draws from."""

    curve: Floats
    """The fitted loss at each point [n], in the points' order."""
    pool: Floats
    """Relative residuals, loss / curve − 1, times √(m / (m − 3)), m being the points of the fit."""
    dof: int
    is_shared: bool
    """Whether the pool holds the residuals of the family's other budgets too."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draws:
    """The optima of all groups in every draw, for one axis and method.

    Draw i of one group belongs with draw i of every other. A group whose noise cannot be estimated
    (no residual degree of freedom) has no entry.
    """

    axis: Axis
    method: Method
    kind: Kind
    n_boot: int
    seed: int
    x_opt: dict[GroupKey, Floats]
    """[n_boot]; NaN where that draw had no interior optimum."""
    loss_opt: dict[GroupKey, Floats]
    """[n_boot], in the unit of the loss; NaN as in ``x_opt``."""
    edge: dict[GroupKey, Codes]
    """[n_boot]: 0 interior, −1 below the grid, 1 above it, 2 no minimum at all, 3 too few sizes
    were drawn."""
    resource: dict[str, dict[GroupKey, Floats]]
    """By resource: its value at the drawn optimum, interpolated in ln x between the group's sizes;
    no entry where the table lacks the resource at any of them."""


def draw_optima(
    selection: Selection,
    *,
    axis: Axis,
    method: Method,
    kind: Kind = "residual",
    n_boot: int = 1000,
    seed: int = 0,
) -> Draws:
    """Draw the optima of all groups ``n_boot`` times; the same input gives the same draws."""
    used = METHODS[method]
    profiles = {key: profile_of(points, axis) for key, points in selection.groups.items()}
    profiles = {k: p for k, p in profiles.items() if p.num_sizes >= used.min_sizes}
    noise = _residual_noise(profiles, used)
    seeds = seed_noise(selection)
    x_opt, loss_opt, edge = {}, {}, {}
    for key in noise:
        loss, weight = _losses(profiles[key], key, noise[key], seeds, kind, n_boot, seed)
        minima = used.find(profiles[key].log_x, loss, weight)
        if used.is_low and weight is None:
            minima = _about_estimate(minima, profiles[key], used)
        x_opt[key], loss_opt[key] = np.exp(minima.log_x), minima.loss
        edge[key] = minima.code
    return Draws(
        axis=axis,
        method=method,
        kind=kind,
        n_boot=n_boot,
        seed=seed,
        x_opt=x_opt,
        loss_opt=loss_opt,
        edge=edge,
        resource=_resources(profiles, x_opt, axis),
    )


def _residual_noise(
    profiles: Mapping[GroupKey, Profile], method: FitMethod
) -> dict[GroupKey, Noise]:
    """Return the noise of each group with at least one residual degree of freedom.

    Only budgets with an interior optimum lend their residuals to others: about a minimum far off
    the grid a parabola fits worst.
    """
    fitted = {key: method.residuals(p.log_x, p.loss) for key, p in profiles.items()}
    fitted = {key: pair for key, pair in fitted.items() if len(pair[1]) > _COEFFICIENTS}
    by_arch: dict[str, list[Floats]] = {}
    for key in sorted(fitted):
        if _estimate(profiles[key], method).code[0] == INTERIOR:
            by_arch.setdefault(key[0], []).append(fitted[key][1])
    noise = {}
    for key, (curve, residuals) in fitted.items():
        is_shared = len(residuals) - _COEFFICIENTS < OWN_DOF
        pools = by_arch.get(key[0], []) if is_shared else [residuals]
        if not pools:
            continue
        noise[key] = Noise(
            curve=curve,
            pool=np.concatenate([widened(pool, _COEFFICIENTS) for pool in pools]),
            dof=sum(len(pool) - _COEFFICIENTS for pool in pools),
            is_shared=is_shared,
        )
    return noise


def _estimate(profile: Profile, method: FitMethod) -> Minima:
    return method.find(profile.log_x, profile.loss[None], None)


def _losses(
    profile: Profile,
    key: GroupKey,
    noise: Noise,
    seeds: SeedNoise,
    kind: Kind,
    n_boot: int,
    seed: int,
) -> tuple[Floats, Floats | None]:
    """Return the losses [B, n] of all draws of one group and, for ``case``, the points' weights."""
    arch, budget = key
    num = len(profile.loss)
    rng = _budget_rng(seed, budget)
    own_scale = rng.random(n_boot)
    # Drawn point by point, so that two families share the draws of the points both have.
    share = rng.random((num, n_boot)).T
    if kind == "case":
        picked = (share * num).astype(np.int64)
        weight = np.stack([(picked == i).sum(axis=1) for i in range(num)], axis=1)
        return np.broadcast_to(profile.loss, (n_boot, num)), weight.astype(np.float64)
    common_scale = np.random.default_rng(seed).random(n_boot)
    if kind == "residual":
        drawn = noise.pool[(share * len(noise.pool)).astype(np.int64)]
        scale, dof = common_scale if noise.is_shared else own_scale, noise.dof
    else:
        drawn = _budget_rng(seed, budget, arch).standard_normal((num, n_boot)).T
        drawn = drawn * seeds.relative_sd
        scale, dof = common_scale, seeds.dof
    factor = student_factor(chi_squared_at(scale, dof), dof)
    return noise.curve * (1 + factor[:, None] * drawn), None


def _budget_rng(seed: int, budget_flops: float, arch: str | None = None) -> np.random.Generator:
    """Return the generator of a budget, shared by all archs unless one is named."""
    entropy = [seed, int(np.float64(budget_flops).view(np.uint64))]
    if arch is not None:
        entropy.append(zlib.crc32(arch.encode()))
    return np.random.default_rng(entropy)


def _about_estimate(minima: Minima, profile: Profile, method: FitMethod) -> Minima:
    """Shift draws made about a smooth curve so that the method's estimate is their median.

    The lowest point of a curve through noisy means lies too low; about the curve's own minimum the
    draws would show that twice.
    """
    estimate = _estimate(profile, method)
    inside = minima.code == INTERIOR
    if estimate.code[0] != INTERIOR or not inside.any():
        return minima
    shift = estimate.log_x[0] - np.median(minima.log_x[inside])
    rise = estimate.loss[0] - np.median(minima.loss[inside])
    log_x = minima.log_x + shift
    code = np.where(log_x < profile.log_x[0], BELOW, minima.code)
    code = np.where(log_x > profile.log_x[-1], ABOVE, code).astype(np.int8)
    inside = code == INTERIOR
    return Minima(
        log_x=np.where(inside, log_x, np.nan),
        loss=np.where(inside, minima.loss + rise, np.nan),
        code=code,
        curvature=minima.curvature,
    )


def _resources(
    profiles: Mapping[GroupKey, Profile], x_opt: Mapping[GroupKey, Floats], axis: Axis
) -> dict[str, dict[GroupKey, Floats]]:
    found: dict[str, dict[GroupKey, Floats]] = {}
    for name in RESOURCES:
        values = {
            key: x if name == axis else resource_at(profiles[key], name, x)
            for key, x in x_opt.items()
        }
        found[name] = {key: value for key, value in values.items() if value is not None}
    return found


def num_failed(draws: Draws, key: GroupKey) -> int:
    """Return the number of a group's draws without an interior optimum."""
    return int(np.count_nonzero(draws.edge[key] != INTERIOR))
