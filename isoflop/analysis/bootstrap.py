"""The one bootstrap: its kinds, and what is drawn from the noise.

Three kinds, always named in the tables:

- ``parametric``: Gaussian noise is put on the fitted curve. For optima its size is that of
  isoflop.analysis.noise: a variance for every family and budget, drawn anew each time.
- ``residual``: residuals of the family are drawn with replacement and put on the fitted curve, for
  optima scaled to the same drawn variance.
- ``case``: points are drawn with replacement. A draw with too few sizes fails, so that intervals
  are too wide with few points; meant for many.

Two sorts of fits are drawn for. *Optima* of single budgets (``draw_optima``): ``auto`` is
parametric. *Laws* of all points of a family (``draw_losses``): ``auto`` is case from
``MIN_POINTS_FOR_CASES`` points on, else residual; their noise is pooled, and multiplied in each
draw by √(dof / χ²_dof), the uncertainty of a variance from few degrees of freedom, so that
intervals have Student's tails.

Draw i of one family belongs with draw i of every other. Noise is independent between families,
since equal seeds need not mean equal noise; with ``case`` two families of one design draw the same
cells.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from isoflop.analysis.noise import (
    MeanSquare,
    NoiseDraws,
    Scatter,
    draw_noise,
)
from isoflop.analysis.optima_methods import (
    ABOVE,
    BELOW,
    INTERIOR,
    METHODS,
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
from isoflop.arrays import Bools, Floats

Kind = Literal["residual", "parametric", "case"]
Requested = Literal["auto", "residual", "parametric", "case"]

# Degrees of freedom of repeated cells that a law needs where `parametric` is requested.
MIN_SEED_DOF_OF_LAW = 3
MIN_POINTS_FOR_CASES = 60

_STREAM_OF_LAWS = 81_263
# Of lack of fit; rounding leaves three sizes about a parabola with a little more than none.
_LEAST_DOF = 0.1


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


def kind_for_optima(requested: Requested = "auto") -> Kind:
    """Return the kind of bootstrap for optima: parametric unless another is asked for."""
    return "parametric" if requested == "auto" else requested


def kind_for_law(cells: Sequence[object], requested: Requested = "auto") -> Kind:
    """Return the kind of bootstrap that points support for a law through all of them.

    ``cells`` names the cell of each point, alike for repeats. A request for ``parametric`` with
    too few repeats falls back to ``residual``.
    """
    automatic: Kind = "case" if len(cells) >= MIN_POINTS_FOR_CASES else "residual"
    kind = automatic if requested == "auto" else requested
    dof = len(cells) - len(set(cells))
    return "residual" if kind == "parametric" and dof < MIN_SEED_DOF_OF_LAW else kind


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
    curvature: dict[GroupKey, Floats] = field(default_factory=dict)
    """[n_boot]: that of the curve at its minimum, or in its middle where it has none."""
    scatter: dict[GroupKey, Scatter] = field(default_factory=dict)
    """What each group tells of its noise."""
    noise: dict[GroupKey, NoiseDraws] = field(default_factory=dict)
    """The noise of each group, as drawn."""


def draw_optima(
    selection: Selection,
    *,
    axis: Axis,
    method: Method,
    kind: Kind = "parametric",
    n_boot: int = 1000,
    seed: int = 0,
) -> Draws:
    """Draw the optima of all groups ``n_boot`` times; the same input gives the same draws."""
    used = METHODS[method]
    profiles = {key: profile_of(points, axis) for key, points in selection.groups.items()}
    profiles = {k: p for k, p in profiles.items() if p.num_sizes >= used.min_sizes}
    fitted = {key: used.smooth(p.log_x, p.loss) for key, p in profiles.items()}
    scatter = {key: scatter_of(profiles[key], used) for key in profiles}
    noise = draw_noise(scatter, n_boot, seed)
    shapes = _standard_residuals(profiles, fitted, scatter)
    x_opt, loss_opt, edge, curvature = {}, {}, {}, {}
    for key, drawn in noise.items():
        rng = _budget_rng(seed, key[1], key[0])
        if kind == "case":
            loss, weight = _draw_cases(profiles[key].loss, n_boot, _budget_rng(seed, key[1]))
        elif kind == "residual":
            loss, weight = _draw_shapes(fitted[key][0], shapes[key[0]], drawn, rng), None
        else:
            loss, weight = _draw_gaussian(profiles[key], fitted[key][0], drawn, rng), None
        minima = used.find(profiles[key].log_x, loss, weight)
        if used.is_low and weight is None:
            minima = _about_estimate(minima, profiles[key], used)
        x_opt[key], loss_opt[key] = np.exp(minima.log_x), minima.loss
        edge[key], curvature[key] = minima.code, minima.curvature
    return Draws(
        axis=axis,
        method=method,
        kind=kind,
        n_boot=n_boot,
        seed=seed,
        scatter={key: scatter[key] for key in noise},
        noise=noise,
        x_opt=x_opt,
        loss_opt=loss_opt,
        edge=edge,
        resource=_resources(profiles, x_opt, axis),
        curvature=curvature,
    )


def scatter_of(profile: Profile, method: FitMethod) -> Scatter:
    """Return the mean squares of ln loss in a profile, about a method's smooth curve.

    Only a profile with a minimum inside its grid tells of lack of fit: about one far off the grid
    the curve fits worst.
    """
    curve, used = method.smooth(profile.log_x, profile.loss)
    repeats = noise_of_repeats(
        np.log(profile.loss).tolist(), [point.size_key for point in profile.points]
    )
    pure = MeanSquare(value=repeats.relative_sd**2, dof=repeats.dof)
    _, size_of, num = np.unique(profile.log_x[used], return_inverse=True, return_counts=True)
    dof = method.lack_of_fit_dof(profile.log_x, used)
    if dof < _LEAST_DOF or _estimate(profile, method).code[0] != INTERIOR:
        return Scatter(lack_of_fit=MeanSquare(value=0.0, dof=0), pure_error=pure, repeats=1.0)
    residuals = (profile.loss / curve - 1)[used]
    sums = np.bincount(size_of, weights=residuals)
    total = num.sum()
    return Scatter(
        lack_of_fit=MeanSquare(value=float(np.sum(sums**2 / num)) / dof, dof=dof),
        pure_error=pure,
        repeats=float((total - np.sum(num**2) / total) / (len(num) - 1)),
    )


def _standard_residuals(
    profiles: Mapping[GroupKey, Profile],
    fitted: Mapping[GroupKey, tuple[Floats, Bools]],
    scatter: Mapping[GroupKey, Scatter],
) -> dict[str, Floats]:
    """Return the residuals of each family, of unit mean square, of the groups that tell of any."""
    by_arch: dict[str, list[Floats]] = {}
    for key, (curve, used) in fitted.items():
        residuals = (profiles[key].loss / curve - 1)[used]
        size = float(np.sqrt(np.mean(residuals**2)))
        shape = residuals / size if scatter[key].lack_of_fit.dof and size > 0 else np.zeros(1)
        by_arch.setdefault(key[0], []).append(shape)
    return {arch: np.concatenate(shapes) for arch, shapes in by_arch.items()}


def _estimate(profile: Profile, method: FitMethod) -> Minima:
    return method.find(profile.log_x, profile.loss[None], None)


def _draw_cases(loss: Floats, n_boot: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the losses [B, n], alike in all draws, and how often each point was drawn."""
    num = len(loss)
    # Drawn point by point, so that two families share the draws of the points both have.
    # The first row of numbers is left out: the draws stay those of earlier versions.
    picked = (rng.random((num + 1, n_boot))[1:].T * num).astype(np.int64)
    weight = np.stack([(picked == i).sum(axis=1) for i in range(num)], axis=1)
    return np.broadcast_to(loss, (n_boot, num)), weight.astype(np.float64)


def _draw_shapes(
    curve: Floats, shapes: Floats, noise: NoiseDraws, rng: np.random.Generator
) -> Floats:
    """Return losses [B, n] about a curve, with residuals of the family and drawn sizes of them."""
    sd = np.sqrt(noise.between_sizes**2 + noise.between_runs**2)
    drawn = shapes[rng.integers(0, len(shapes), (len(sd), len(curve)))]
    return np.asarray(curve * (1 + sd[:, None] * drawn))


def _draw_gaussian(
    profile: Profile, curve: Floats, noise: NoiseDraws, rng: np.random.Generator
) -> Floats:
    """Return losses [B, n] about a curve, with noise of sizes and of runs."""
    sizes, size_of = np.unique(profile.log_x, return_inverse=True)
    n_boot = len(noise.between_runs)
    of_sizes = rng.standard_normal((len(sizes), n_boot))[size_of]
    of_runs = rng.standard_normal((len(curve), n_boot))
    return np.asarray(
        curve * (1 + (noise.between_sizes * of_sizes + noise.between_runs * of_runs).T)
    )


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
