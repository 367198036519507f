"""How much the losses of a table scatter: residuals of the curves, and seed noise where measured.

Both come with their degrees of freedom, since an interval made from few of them must be wider.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.optima_methods import (
    ABOVE,
    BELOW,
    FINDERS,
    INTERIOR,
    MIN_SIZES,
    Codes,
    Method,
    Minima,
    fit_parabolas,
    fit_robust,
    size_means,
    window_of,
)
from isoflop.analysis.points import (
    RESOURCES,
    Axis,
    GroupKey,
    Profile,
    Selection,
    profile_of,
    resource_at,
)
from isoflop.arrays import Floats

# A budget with fewer residual degrees of freedom uses those of all budgets of its family: Student's
# 97.5 % quantile is 12.7, 3.2 and 2.3 at 1, 3 and 8, and the residuals of four points about a
# parabola are one number.
OWN_DOF = 8

_COEFFICIENTS = 3


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


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedNoise:
    """Standard deviation of ln(loss) between runs that differ in their seed alone."""

    relative_sd: float
    """0 where dof is 0."""
    dof: int
    """Repeats beyond the first, summed over the cells."""
    n_cells: int


def seed_noise(selection: Selection, arch: str | None = None) -> SeedNoise:
    """Pool the variance of ln(loss) within the repeated cells of a table, or of one arch.

    A cell is one arch, budget, number of parameters and number of tokens.
    """
    squares, dof, num_cells = 0.0, 0, 0
    for (name, _), points in selection.groups.items():
        if arch is not None and name != arch:
            continue
        cells: dict[tuple[float, float], list[float]] = {}
        for point in points:
            cells.setdefault(point.size_key, []).append(float(np.log(point.loss)))
        for losses in cells.values():
            if len(losses) > 1:
                squares += float(np.var(losses)) * len(losses)
                dof += len(losses) - 1
                num_cells += 1
    sd = float(np.sqrt(squares / dof)) if dof else 0.0
    return SeedNoise(relative_sd=sd, dof=dof, n_cells=num_cells)


def residual_noise(profiles: Mapping[GroupKey, Profile], method: Method) -> dict[GroupKey, Noise]:
    """Return the noise of each group with at least one residual degree of freedom.

    Only budgets with an interior optimum lend their residuals to others: about a minimum far off
    the grid a parabola fits worst.
    """
    fitted = {key: _fitted(profile, method) for key, profile in profiles.items()}
    fitted = {key: pair for key, pair in fitted.items() if len(pair[1]) > _COEFFICIENTS}
    by_arch: dict[str, list[Floats]] = {}
    for key in sorted(fitted):
        if _is_interior(profiles[key], method):
            by_arch.setdefault(key[0], []).append(fitted[key][1])
    noise = {}
    for key, (curve, residuals) in fitted.items():
        is_shared = len(residuals) - _COEFFICIENTS < OWN_DOF
        pools = by_arch.get(key[0], []) if is_shared else [residuals]
        if not pools:
            continue
        noise[key] = Noise(
            curve=curve,
            pool=np.concatenate([_corrected(pool) for pool in pools]),
            dof=sum(len(pool) - _COEFFICIENTS for pool in pools),
            is_shared=is_shared,
        )
    return noise


def student_factor(uniform: Floats, dof: int) -> Floats:
    """Turn uniform draws into √(dof / χ²_dof), which gives Gaussian noise Student's tails."""
    from scipy.special import gammaincinv

    chi_squared = 2 * gammaincinv(dof / 2, np.maximum(uniform, 1e-9))
    return np.asarray(np.sqrt(dof / chi_squared))


def budget_rng(seed: int, budget_flops: float, arch: str | None = None) -> np.random.Generator:
    """Return the generator of a budget, shared by all archs unless one is named."""
    entropy = [seed, int(np.float64(budget_flops).view(np.uint64))]
    if arch is not None:
        entropy.append(zlib.crc32(arch.encode()))
    return np.random.default_rng(entropy)


def _is_interior(profile: Profile, method: Method) -> bool:
    return bool(FINDERS[method](profile.log_x, profile.loss[None], None).code[0] == INTERIOR)


def _corrected(residuals: Floats) -> Floats:
    num = len(residuals)
    return (residuals - residuals.mean()) * np.sqrt(num / (num - _COEFFICIENTS))


def _fitted(profile: Profile, method: Method) -> tuple[Floats, Floats]:
    """Return a smooth curve at all points and the relative residuals of those it was fitted to.

    The curve is the method's own parabola. Akima's spline passes through the mean of every size
    and leaves no residual, and noise added to noisy means would count twice: the windowed parabola
    stands in.
    """
    log_x, loss = profile.log_x, profile.loss
    if method in ("parabola", "parabola_robust"):
        fit = fit_parabolas if method == "parabola" else fit_robust
        curve = fit(log_x, loss[None]).at(log_x)[0]
        return curve, loss / curve - 1
    sizes, means = size_means(log_x, loss[None])
    inside = window_of(log_x, sizes, int(np.argmin(means[0])))
    curve = fit_parabolas(log_x[inside], loss[None, inside]).at(log_x)[0]
    return curve, (loss / curve - 1)[inside]


BootstrapKind = Literal["residual", "parametric", "case"]
Requested = Literal["auto", "residual", "parametric", "case"]

# Degrees of freedom of repeated cells from which `auto` trusts their noise.
MIN_SEED_DOF = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draws:
    """The optima of all groups in every draw, for one axis and method.

    Draw i of one group belongs with draw i of every other. A group whose noise cannot be estimated
    (no residual degree of freedom) has no entry.
    """

    axis: Axis
    method: Method
    kind: BootstrapKind
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


def choose_kind(selection: Selection, requested: Requested = "auto") -> BootstrapKind:
    """Return the kind to use: as requested, or for ``auto`` what the table can support.

    ``parametric`` when repeated cells measure the seed noise with at least ``MIN_SEED_DOF``
    degrees of freedom, else ``residual``. A request for ``parametric`` without any repeated cell
    falls back to ``residual``; the tables name the kind used.
    """
    dof = seed_noise(selection).dof
    if requested == "auto":
        return "parametric" if dof >= MIN_SEED_DOF else "residual"
    return "residual" if requested == "parametric" and dof == 0 else requested


def draw_optima(
    selection: Selection,
    *,
    axis: Axis,
    method: Method,
    kind: BootstrapKind = "residual",
    n_boot: int = 1000,
    seed: int = 0,
) -> Draws:
    """Draw the optima of all groups ``n_boot`` times; the same input gives the same draws."""
    profiles = {key: profile_of(points, axis) for key, points in selection.groups.items()}
    profiles = {k: p for k, p in profiles.items() if p.num_sizes >= MIN_SIZES[method]}
    noise = residual_noise(profiles, method)
    seeds = seed_noise(selection)
    x_opt, loss_opt, edge = {}, {}, {}
    for key in noise:
        loss, weight = _losses(profiles[key], key, noise[key], seeds, kind, n_boot, seed)
        minima = FINDERS[method](profiles[key].log_x, loss, weight)
        if method == "akima" and weight is None:
            minima = _about_estimate(minima, profiles[key])
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


def _losses(
    profile: Profile,
    key: GroupKey,
    noise: Noise,
    seeds: SeedNoise,
    kind: BootstrapKind,
    n_boot: int,
    seed: int,
) -> tuple[Floats, Floats | None]:
    """Return the losses [B, n] of all draws of one group and, for ``case``, the points' weights."""
    arch, budget = key
    num = len(profile.loss)
    rng = budget_rng(seed, budget)
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
        factor = student_factor(common_scale if noise.is_shared else own_scale, noise.dof)
    else:
        drawn = budget_rng(seed, budget, arch).standard_normal((num, n_boot)).T
        drawn = drawn * seeds.relative_sd
        factor = student_factor(common_scale, seeds.dof)
    return noise.curve * (1 + factor[:, None] * drawn), None


def _about_estimate(minima: Minima, profile: Profile) -> Minima:
    """Shift Akima's draws, made about a smooth curve, so that Akima's estimate is their median.

    The lowest point of a curve through noisy means lies too low; about the curve's own minimum the
    draws would show that twice.
    """
    estimate = FINDERS["akima"](profile.log_x, profile.loss[None], None)
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
