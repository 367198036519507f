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

Runs of one trunk have noise in common (isoflop.analysis.shared_noise), at all of its budgets in
one draw; ``case`` draws trunks whole.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    Point,
    Profile,
    Selection,
    profile_of,
)
from isoflop.analysis.resources import RESOURCES, resource_at
from isoflop.analysis.shared_noise import (
    NOTHING_SHARED,
    SharedDraws,
    SharedNoise,
    TrunkKey,
    drawn_counts,
    shared_noise,
    trunk_weights,
)
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
    shared: SharedNoise = NOTHING_SHARED
    """What runs of one trunk have in common."""


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
    effective_dof: float = 0.0
    """Degrees of freedom that the variance has: fewer than ``dof`` where trunks are shared."""


def kind_for_optima(requested: Requested = "auto") -> Kind:
    """Return the kind of bootstrap for optima: parametric unless another is asked for."""
    return "parametric" if requested == "auto" else requested


def kind_for_law(
    cells: Sequence[object],
    requested: Requested = "auto",
    trunks: Sequence[TrunkKey | None] = (),
) -> Kind:
    """Return the kind of bootstrap that points support for a law through all of them.

    ``cells`` names the cell of each point, alike for repeats; ``trunks`` its trunk: cases are
    trunks, and of no trunk points. A request for ``parametric`` with too few repeats falls back to
    ``residual``.
    """
    of_trunks = [key for key in trunks if key is not None]
    num_cases = len(cells) - len(of_trunks) + len(set(of_trunks))
    automatic: Kind = "case" if num_cases >= MIN_POINTS_FOR_CASES else "residual"
    kind = automatic if requested == "auto" else requested
    dof = len(cells) - len(set(cells))
    return "residual" if kind == "parametric" and dof < MIN_SEED_DOF_OF_LAW else kind


def seed_noise(selection: Selection, arch: str | None = None) -> SeedNoise:
    """Pool the variance of ln(loss) within the repeated cells of a table, or of one arch.

    A cell is one arch, budget, number of parameters and number of tokens.
    """
    runs = [
        ((*key, *point.size_key), point)
        for key, points in selection.groups.items()
        if arch in (None, key[0])
        for point in points
    ]
    cells = [cell for cell, _ in runs]
    noise = noise_of_repeats([float(np.log(point.loss)) for _, point in runs], cells)
    num_of = Counter(cells)
    shared = shared_noise(selection)
    keys = shared.keys(point for cell, point in runs if num_of[cell] > 1)
    return replace(noise, effective_dof=noise.dof * shared.worth(keys))


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


def student_factor(chi_squared: Floats, dof: float) -> Floats:
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
    trunks: Sequence[TrunkKey | None] = (),
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
        trunks: the trunk of each point; empty: none shares any.

    Returns:
        Targets [B, n] and weights [B, n]; either may have a single row for all draws.
    """
    num, n_boot = len(target), resampling.n_boot
    trunks = trunks or (None,) * num
    shared = resampling.shared.draws(n_boot, resampling.seed)
    # Seeds of two archs are no pairs: their Gaussian noise must not be the same numbers.
    own = (zlib.crc32(arch.encode()),) if kind == "parametric" else ()
    rng = np.random.default_rng((_STREAM_OF_LAWS, resampling.seed, *own))
    if kind == "case":
        return target[None], _drawn_units(trunks, n_boot, rng)
    if kind == "residual":
        dof: float = num - num_coefficients
        picked = shared.picks(rng.integers(0, num, (n_boot, num)), trunks, num, rng)
        noise = widened(target - fitted, num_coefficients)[picked]
    else:
        repeats = noise_of_repeats(target.tolist(), cells)
        dof = repeats.dof
        normals = rng.standard_normal((n_boot, num)).T
        noise = (repeats.relative_sd * shared.normals(normals, trunks)).T
    dof *= resampling.shared.worth(trunks)
    noise = noise * student_factor(rng.chisquare(dof, (n_boot, 1)), dof)
    return fitted + noise, np.ones((1, num))


def _drawn_units(
    trunks: Sequence[TrunkKey | None], n_boot: int, rng: np.random.Generator
) -> Floats:
    """Return how often each point is drawn [B, n]: trunks whole, points of none by themselves."""
    units: dict[object, int] = {}
    unit_of = [
        units.setdefault((i,) if key is None else key, len(units)) for i, key in enumerate(trunks)
    ]
    drawn = rng.integers(0, len(units), (n_boot, len(units)))
    counts = np.stack([np.bincount(draw, minlength=len(units)) for draw in drawn])
    return counts[:, unit_of].astype(np.float64)


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
    shared = shared_noise(selection).draws(n_boot, seed)
    noise = draw_noise(scatter, n_boot, seed, shared.shared.alike(selection.groups))
    shapes = _standard_residuals(profiles, fitted, scatter)
    weights = _trunk_weights(selection, shared, n_boot) if kind == "case" else {}
    x_opt, loss_opt, edge, curvature = {}, {}, {}, {}
    for key, drawn in noise.items():
        rng = _budget_rng(seed, key[1], key[0])
        runs = profiles[key].points
        weight = None
        if kind == "case" and key[0] in weights:
            loss = np.broadcast_to(profiles[key].loss, (n_boot, len(runs)))
            weight = np.stack([weights[key[0]][point] for point in runs], axis=1)
        elif kind == "case":
            loss, weight = _draw_cases(profiles[key].loss, n_boot, _budget_rng(seed, key[1]))
        elif kind == "residual":
            loss = _draw_shapes(profiles[key], fitted[key][0], shapes[key[0]], drawn, rng, shared)
        else:
            loss = _draw_gaussian(profiles[key], fitted[key][0], drawn, rng, shared)
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


def _trunk_weights(
    selection: Selection, shared: SharedDraws, n_boot: int
) -> dict[str, dict[Point, Floats]]:
    """Return how often each run is drawn [B], of the archs with trunks, which are drawn whole."""
    archs = {point.arch for point in shared.shared.trunk_of}
    return {
        arch: trunk_weights(
            [p for key, points in selection.groups.items() if key[0] == arch for p in points],
            shared.shared,
            n_boot,
            shared.seed,
        )
        for arch in sorted(archs)
    }


def _draw_cases(loss: Floats, n_boot: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the losses [B, n], alike in all draws, and how often each point was drawn."""
    num = len(loss)
    # Drawn point by point, so that two families share the draws of the points both have.
    # The first row of numbers is left out: the draws stay those of earlier versions.
    rng.random(n_boot)
    return np.broadcast_to(loss, (n_boot, num)), drawn_counts(num, n_boot, rng)


def _draw_shapes(
    profile: Profile,
    curve: Floats,
    shapes: Floats,
    noise: NoiseDraws,
    rng: np.random.Generator,
    shared: SharedDraws,
) -> Floats:
    """Return losses [B, n] about a curve, with residuals of the family and drawn sizes of them."""
    sd = np.sqrt(noise.between_sizes**2 + noise.between_runs**2)
    picked = rng.integers(0, len(shapes), (len(sd), len(curve)))
    picked = shared.picks(picked, shared.shared.keys(profile.points), len(shapes), rng)
    return np.asarray(curve * (1 + sd[:, None] * shapes[picked]))


def _draw_gaussian(
    profile: Profile,
    curve: Floats,
    noise: NoiseDraws,
    rng: np.random.Generator,
    shared: SharedDraws,
) -> Floats:
    """Return losses [B, n] about a curve, with noise of sizes and of runs."""
    sizes, size_of = np.unique(profile.log_x, return_inverse=True)
    n_boot = len(noise.between_runs)
    of_sizes = rng.standard_normal((len(sizes), n_boot))[size_of]
    of_runs = rng.standard_normal((len(curve), n_boot))
    of_runs = shared.normals(of_runs, shared.shared.keys(profile.points))
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
