"""Bootstrap draws of the optima, paired between families, and the intervals read off them.

Three kinds, always named in the tables:

- ``residual``: relative residuals of the fitted curve, times √(m / (m − 3)) for its three
  coefficients, are drawn with replacement and put on the curve. A budget with fewer than
  ``noise.OWN_DOF`` residual degrees of freedom draws from those of all budgets of its family.
- ``parametric``: Gaussian noise of the seed noise that repeated cells of the table measure.
- ``case``: points are drawn with replacement; a draw with fewer than three sizes fails. Too wide
  with few sizes per budget; meant for many points.

The first two multiply the noise of each draw by √(dof / χ²_dof), the uncertainty of a variance that
was estimated from few degrees of freedom, so that intervals have Student's tails.

Pairing: the random numbers of a budget come from (seed, budget) alone and points are in the order
of their sizes and seeds, so two families with the same design draw the same cells. Parametric noise
is independent between families, since equal seeds need not mean equal noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.noise import (
    Noise,
    SeedNoise,
    budget_rng,
    residual_noise,
    seed_noise,
    student_factor,
)
from isoflop.analysis.optima import Profile, profile_of
from isoflop.analysis.optima_methods import (
    ABOVE,
    BELOW,
    FINDERS,
    INTERIOR,
    MIN_SIZES,
    Codes,
    Floats,
    Method,
    Minima,
)
from isoflop.analysis.points import Axis, GroupKey, Selection

BootstrapKind = Literal["residual", "parametric", "case"]
Requested = Literal["auto", "residual", "parametric", "case"]
Resource = Literal["n_params", "n_tokens", "n_active", "flops", "wall_s", "peak_mem_bytes"]
RESOURCES: tuple[Resource, ...] = (
    "n_params",
    "n_tokens",
    "n_active",
    "flops",
    "wall_s",
    "peak_mem_bytes",
)

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


def resource_at(profile: Profile, name: Resource, x: Floats) -> Floats | None:
    """Return a resource at some x of a profile, interpolated in ln resource over ln x.

    Points of one size count with their geometric mean. None where a point lacks the resource; NaN
    stays NaN.
    """
    values = [getattr(point, name) for point in profile.points]
    if not values or None in values:
        return None
    log_values = np.log(np.array(values, dtype=np.float64))
    sizes, size_of = np.unique(profile.log_x, return_inverse=True)
    means = np.bincount(size_of, weights=log_values) / np.bincount(size_of)
    return np.asarray(np.exp(np.interp(np.log(x), sizes, means)))


def num_failed(draws: Draws, key: GroupKey) -> int:
    """Return the number of a group's draws without an interior optimum."""
    return int(np.count_nonzero(draws.edge[key] != INTERIOR))


def percentiles(draws: Floats, confidence: float) -> tuple[float, float] | None:
    """Return the central interval of the draws; None when more than half are NaN."""
    finite = draws[np.isfinite(draws)]
    if 2 * len(finite) < len(draws) or not len(finite):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)
