"""How much the losses of a table scatter: residuals of the curves, and seed noise where measured.

Both come with their degrees of freedom, since an interval made from few of them must be wider.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.optima import Profile
from isoflop.analysis.optima_methods import (
    FINDERS,
    INTERIOR,
    Floats,
    Method,
    fit_parabolas,
    fit_robust,
    size_means,
    window_of,
)
from isoflop.analysis.points import GroupKey, Selection

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
