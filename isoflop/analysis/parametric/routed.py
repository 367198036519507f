"""The law of routed experts, whose number saturates (Clark et al. 2022, arXiv 2202.01169, eq. 7).

    log10 L = a · log10 N + b · log10 Ê + c · log10 N · log10 Ê + d
    1 / Ê = 1 / (E − 1 + (1 / E_start − 1 / E_max)^−1) + 1 / E_max

N is the parameters that a token uses, E the number of experts that it is routed to one (or a few)
of. Ê goes from E_start at one expert to E_max at infinitely many. L has no floor and no tokens:
the law is one of runs on equally many tokens, as Clark's are.

For given E_start and E_max the law is linear, and those two are found by Gauss-Newton steps on what
the other four cannot explain (variable projection: Golub and Pereyra 1973). Per N the law is any
line in log10 Ê, so that two numbers of experts are spent on the line and two more on the shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.analysis.bootstrap import DEFAULT_RESAMPLING, Resampling, draw_losses, kind_for_law
from isoflop.analysis.parametric.fitting import ParametricFit, context_of
from isoflop.analysis.parametric.solve import MAX_CONDITION, WITH_VALUES, Status, is_on_a_line
from isoflop.analysis.points import Point
from isoflop.arrays import Bools, Floats

ROUTED = "routed"
PARAMETERS = ("a", "b", "c", "d", "E_start", "E_max")

MIN_NUMBERS_OF_EXPERTS = 4
MIN_SIZES = 2
# More are a mistake in the table, such as a number of parameters.
_MOST_EXPERTS = 1e12
# Runs in whole steps do not meet a number of tokens exactly.
_SAME_TOKENS = 1.05

# E_start, and E_max as a multiple of the largest number of experts measured.
_LEAST_START = 0.1
_LARGEST_MAX = 1000.0
# Starts are this many values of each.
_GRID = 5

_MAX_STEPS = 200
# A step this small (in ln E_start and in 1 / E_max) ends the search.
_SMALL_STEP = 1e-9
_MAX_DAMPING = 1e10
# Two starts are at the same optimum when their sums of squares agree to this share, or this far.
_SAME_VALUE = 1e-6
_SAME_VALUE_ABSOLUTE = 1e-18
# Experts that change nothing seem to change something with this probability.
_MAX_CHANCE = 0.05
# Draws refitted together: bounds memory at about 100 MB.
_BATCH_ELEMENTS = 500_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedLaw:
    """A law of routed experts, or one per draw where the fields are arrays; methods broadcast."""

    a: float | Floats
    b: float | Floats
    c: float | Floats
    d: float | Floats
    E_start: float | Floats
    E_max: float | Floats

    def effective_experts(self, n_experts: Any) -> Any:
        """Return Ê, the number of experts after saturation."""
        shift = 1 / (1 / self.E_start - 1 / self.E_max)
        return 1 / (1 / (n_experts - 1 + shift) + 1 / self.E_max)

    def loss(self, n_active: Any, n_experts: Any) -> Any:
        """Return the loss in the table's unit."""
        size, experts = np.log10(n_active), np.log10(self.effective_experts(n_experts))
        return 10.0 ** (self.a * size + self.b * experts + self.c * size * experts + self.d)


def routed_of(fit: ParametricFit) -> RoutedLaw:
    """Return the fitted law; ValueError where the fit has none."""
    if fit.form != ROUTED or not fit.has_values:
        raise ValueError(f"{fit.arch}: no {ROUTED} law ({fit.status})")
    return RoutedLaw(**fit.values)


def has_numbers_of_experts(points: Sequence[Point]) -> bool:
    """Return whether some point says how many experts it has."""
    return any(point.n_experts is not None for point in points)


def fit_routed(
    points: Sequence[Point], *, arch: str, resampling: Resampling = DEFAULT_RESAMPLING
) -> ParametricFit:
    """Fit the law of routed experts by least squares of ln L.

    Takes the points that tell their number of experts and their size (n_active; with one expert
    that is n_params where the table does not say). Points that do not allow the law give a status
    and no values: fewer than four numbers of experts, one size, unequal tokens.
    """
    ordered = sorted(
        (p for p in points if _is_counted(p) and _size(p) is not None),
        key=lambda p: (p.budget_flops, _size(p), p.n_experts, p.n_params, p.n_tokens, p.loss),
    )
    known = context_of(
        ROUTED,
        PARAMETERS,
        arch=arch,
        method="least_squares",
        budgets=[point.budget_flops for point in ordered],
        confidence=resampling.confidence,
        settings="sum of squares of ln L residuals",
    )
    cells = [(_size(point), point.n_experts, *point.size_key) for point in ordered]
    data = _Data(
        log_size=np.log10(np.array([_size(point) for point in ordered], dtype=np.float64)),
        experts=np.array([point.n_experts for point in ordered], dtype=np.float64),
        tokens=np.array([point.n_tokens for point in ordered], dtype=np.float64),
        target=np.log10(np.array([point.loss for point in ordered], dtype=np.float64)),
    )
    refusal = _refusal(data, len(set(cells)))
    if refusal is not None:
        return ParametricFit(**known, status=refusal[0], reason=refusal[1])
    found, verdict = _solve(data)
    known.update(verdict)
    if verdict["status"] not in WITH_VALUES:
        return ParametricFit(**known)
    mean_square = float(found.value[0]) / len(ordered) * np.log(10) ** 2
    known.update(
        values={name: float(value[0]) for name, value in _natural(data, found).items()},
        objective=mean_square * len(ordered),
        rmse=float(np.sqrt(mean_square)),
    )
    if resampling.n_boot:
        trunks = resampling.shared.keys(ordered)
        kind = kind_for_law(cells, resampling.kind, trunks)
        targets, weights = draw_losses(
            data.target,
            found.fitted[0],
            cells,
            kind,
            resampling,
            num_coefficients=len(PARAMETERS),
            arch=arch,
            trunks=trunks,
        )
        known.update(
            draws=_refit(data, found.shape[0], targets, weights, resampling.n_boot),
            bootstrap_kind=kind,
            n_boot=resampling.n_boot,
        )
    return ParametricFit(**known)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Data:
    log_size: Floats
    """log10 N [n]."""
    experts: Floats
    tokens: Floats
    target: Floats
    """log10 L [n]."""

    @property
    def centred(self) -> Floats:
        """log10 N about its mean, which leaves the linear parameters nearly independent."""
        return np.asarray(self.log_size - self.log_size.mean())

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """The least and the largest shape: (ln E_start, 1 / E_max)."""
        most = self.experts.max()
        least = np.array([np.log(_LEAST_START), 1 / (_LARGEST_MAX * most)])
        return least, np.array([np.log(most), 1.0 / _LEAST_START])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """Where a batch of B searches ended."""

    shape: Floats
    """(ln E_start, 1 / E_max) [B, 2]."""
    linear: Floats
    """Coefficients of 1, centred log10 N, log10 Ê and the product of the two [B, 4]."""
    value: Floats
    """Weighted sum of squares of log10 L residuals [B]."""
    fitted: Floats
    """log10 L by the law [B, n]."""
    converged: Bools


def _is_counted(point: Point) -> bool:
    return point.n_experts is not None and 1 <= point.n_experts <= _MOST_EXPERTS


def _size(point: Point) -> float | None:
    if point.n_active is None and point.n_experts == 1:
        return point.n_params
    return point.n_active


def _refusal(data: _Data, distinct: int) -> tuple[Status, str] | None:
    """Return why no fit is tried."""
    needed = len(PARAMETERS) + 1
    if distinct < needed:
        return "too_few", f"{distinct} distinct points; {ROUTED} needs {needed}"
    numbers = len(np.unique(data.experts))
    if numbers < MIN_NUMBERS_OF_EXPERTS:
        reason = f"{numbers} numbers of experts; {ROUTED} needs {MIN_NUMBERS_OF_EXPERTS}"
        return "sparsity_not_varied", reason
    if len(np.unique(data.log_size)) < MIN_SIZES or is_on_a_line([10**data.log_size, data.experts]):
        return "degenerate", "one size, or the number of experts follows from the size"
    spread = float(data.tokens.max() / data.tokens.min())
    if spread > _SAME_TOKENS:
        return "tokens_varied", f"tokens differ {spread:.3g} times; {ROUTED} takes equal ones"
    return None


def _solve(data: _Data) -> tuple[_Found, dict[str, Any]]:
    """Return the best of all starts, as a batch of one, and the fields of a fit on the search."""
    _, high = data.bounds
    start, largest = np.meshgrid(
        np.linspace(np.log(0.5), high[0], _GRID),
        np.log(data.experts.max()) + np.linspace(-2.0, 4.0, _GRID),
    )
    shapes = np.column_stack([start.ravel(), np.exp(-largest.ravel())])
    shapes = shapes[np.exp(-shapes[:, 0]) > 1.1 * shapes[:, 1]]
    found = _search(data, shapes, data.target[None], np.ones((1, len(data.target))))
    best = int(np.argmin(found.value))
    limit = found.value[best] * (1 + _SAME_VALUE) + _SAME_VALUE_ABSOLUTE
    num_close = int(np.count_nonzero(found.converged & (found.value <= limit)))
    one = _Found(
        **{
            name: getattr(found, name)[best : best + 1]
            for name in ("shape", "linear", "value", "fitted", "converged")
        }
    )
    status, reason = _verdict(data, one, num_close, len(shapes))
    return one, {
        "status": status,
        "reason": reason,
        "n_starts": len(shapes),
        "share_of_starts_at_optimum": num_close / len(shapes),
    }


def _verdict(
    data: _Data, found: _Found, num_close: int, num_starts: int
) -> tuple[Status, str | None]:
    (log_start, inverse), (low, high) = found.shape[0], data.bounds
    if _experts_change_nothing(data, found):
        return (
            "ill_conditioned",
            "losses change with the number of experts no more than they scatter",
        )
    if num_close == 0:
        return "not_converged", f"none of {num_starts} starts settled at the best objective"
    if inverse <= low[1] * (1 + 1e-6):
        return "at_bound", "E_max goes to infinity: more experts do not saturate"
    if log_start <= low[0] + 1e-6 or log_start >= high[0] - 1e-6:
        return "at_bound", f"E_start goes to {np.exp(log_start):.3g}"
    condition = _conditioning(data, found)
    if condition > MAX_CONDITION:
        return "ill_conditioned", f"condition {condition:.1g}: other parameters fit as well"
    if num_close == 1:
        return "single_start", f"1 of {num_starts} starts reached the best objective"
    return "ok", None


def _experts_change_nothing(data: _Data, found: _Found) -> bool:
    """Return whether a line in log10 N fits no worse than the law does, by the F statistic."""
    from scipy.special import fdtrc

    line = np.column_stack([np.ones_like(data.centred), data.centred])
    residual = data.target - line @ np.linalg.lstsq(line, data.target, rcond=None)[0]
    by_line, by_law = float(residual @ residual), float(found.value[0])
    if by_line <= _SAME_VALUE_ABSOLUTE * len(residual):
        return True
    num_more, dof = len(PARAMETERS) - 2, len(residual) - len(PARAMETERS)
    gain = (by_line - by_law) / num_more
    return bool(fdtrc(num_more, dof, gain / max(by_law / dof, 1e-300)) > _MAX_CHANCE)


def _conditioning(data: _Data, found: _Found) -> float:
    """Return √condition of the correlation of all six parameters."""
    design, slopes = _design(data, found.shape)
    jacobian = np.concatenate(
        [design, slopes * _slope_of_experts(data, found.linear)[..., None]], axis=2
    )[0]
    lengths = np.linalg.norm(jacobian, axis=0)
    singular = np.linalg.svd(jacobian / np.where(lengths > 0, lengths, 1.0), compute_uv=False)
    return float(singular[0] / max(singular[-1], 1e-300))


def _natural(data: _Data, found: _Found) -> dict[str, Floats]:
    """Return the parameters of each search in the units of the paper; NaN where it failed."""
    constant, size, experts, both = found.linear.T
    centre = data.log_size.mean()
    values = {
        "a": size,
        "b": experts - both * centre,
        "c": both,
        "d": constant - size * centre,
        "E_start": np.exp(found.shape[:, 0]),
        "E_max": 1 / found.shape[:, 1],
    }
    return {name: np.where(found.converged, value, np.nan) for name, value in values.items()}


def _refit(
    data: _Data, shape: Floats, targets_Bn: Floats, weights_Bn: Floats, n_boot: int
) -> dict[str, Floats]:
    """Return the parameters of each draw, searched for from the estimate."""
    size = max(1, _BATCH_ELEMENTS // len(data.target))
    parts = []
    for first in range(0, n_boot, size):
        rows = slice(first, min(first + size, n_boot))
        found = _search(
            data,
            np.tile(shape, (rows.stop - rows.start, 1)),
            targets_Bn[rows] if len(targets_Bn) > 1 else targets_Bn,
            weights_Bn[rows] if len(weights_Bn) > 1 else weights_Bn,
        )
        parts.append(_natural(data, found))
    return {name: np.concatenate([part[name] for part in parts]) for name in PARAMETERS}


def _search(data: _Data, shapes_B2: Floats, targets_Bn: Floats, weights_Bn: Floats) -> _Found:
    """Return the nearest minimum of each row, by damped Gauss-Newton steps within the bounds."""
    low, high = data.bounds
    num, roots_Bn = len(shapes_B2), np.sqrt(weights_Bn)
    shape = np.clip(shapes_B2, low, high)
    state = _project(data, shape, targets_Bn, roots_Bn)
    damping = np.full(num, 1e-3)
    converged = np.zeros(num, dtype=np.bool_)
    for _ in range(_MAX_STEPS):
        step = _step(state, shape, damping, (low, high))
        tried = np.clip(shape + step, low, high)
        moved = np.abs(tried - shape).max(axis=1)
        after = _project(data, tried, targets_Bn, roots_Bn)
        is_better = after.value < state.value
        converged |= (moved < _SMALL_STEP) | (damping >= _MAX_DAMPING)
        takes = is_better & ~converged
        shape = np.where(takes[:, None], tried, shape)
        state = state.replaced(after, takes)
        damping = np.where(takes, damping / 10, np.minimum(damping * 10, _MAX_DAMPING))
        if converged.all():
            break
    return _Found(
        shape=shape,
        linear=state.linear,
        value=state.value,
        fitted=state.fitted,
        converged=converged & np.isfinite(state.value),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Projected:
    """The best linear parameters for given shapes, and what a change of shape would do."""

    linear: Floats
    value: Floats
    """[B]; infinite where there is no law of that shape."""
    fitted: Floats
    residual: Floats
    """Weighted [B, n]."""
    slopes: Floats
    """Of the weighted fit in the shape, beside the linear parameters [B, n, 2]."""

    def replaced(self, other: _Projected, rows: Bools) -> _Projected:
        """Return the same with some rows of another batch."""
        values = {}
        for name in ("linear", "value", "fitted", "residual", "slopes"):
            mine, others = getattr(self, name), getattr(other, name)
            values[name] = np.where(rows.reshape(-1, *[1] * (mine.ndim - 1)), others, mine)
        return _Projected(**values)


def _project(data: _Data, shape_B2: Floats, targets_Bn: Floats, roots_Bn: Floats) -> _Projected:
    # Where E_max is not above E_start there is no law; such rows stand for one that is.
    exists = np.exp(-shape_B2[:, 0]) > shape_B2[:, 1] * (1 + 1e-6)
    used = np.where(exists[:, None], shape_B2, np.array([0.0, 0.5]))
    design, slopes = _design(data, used)
    weighted = design * roots_Bn[..., None]
    # Few drawn points may leave a direction of the design empty: the least of all solutions.
    inverse = np.linalg.pinv(weighted)
    linear = (inverse @ (targets_Bn * roots_Bn)[..., None])[..., 0]
    fitted = (design @ linear[..., None])[..., 0]
    residual = (targets_Bn - fitted) * roots_Bn
    slopes = slopes * (_slope_of_experts(data, linear) * roots_Bn)[..., None]
    beside = slopes - weighted @ (inverse @ slopes)
    value = np.where(exists, np.sum(residual**2, axis=1), np.inf)
    return _Projected(linear=linear, value=value, fitted=fitted, residual=residual, slopes=beside)


def _step(
    state: _Projected, shape_B2: Floats, damping_B: Floats, bounds: tuple[Floats, Floats]
) -> Floats:
    """Return the damped step of each row [B, 2]; a shape at a bound does not move beyond it."""
    downhill = (state.slopes * state.residual[..., None]).sum(axis=1)
    is_held = ((shape_B2 <= bounds[0]) & (downhill < 0)) | (
        (shape_B2 >= bounds[1]) & (downhill > 0)
    )
    slopes = np.where(is_held[:, None, :], 0.0, state.slopes)
    square = np.swapaxes(slopes, 1, 2) @ slopes
    diagonal = np.einsum("bii->bi", square)
    scale = np.where(diagonal > 0, diagonal * damping_B[:, None], 1.0)
    square = square + scale[..., None] * np.eye(2)
    step = np.linalg.solve(square, np.where(is_held, 0.0, downhill)[..., None])[..., 0]
    return np.asarray(step)


def _design(data: _Data, shape_B2: Floats) -> tuple[Floats, Floats]:
    """Return the design of the linear parameters [B, n, 4], and d log10 Ê / d shape [B, n, 2]."""
    inverse_start, inverse_max = np.exp(-shape_B2[:, :1]), shape_B2[:, 1:]
    shift = 1 / (inverse_start - inverse_max)
    unsaturated = data.experts - 1 + shift
    effective = 1 / (1 / unsaturated + inverse_max)
    ratio = (shift / unsaturated) ** 2
    slopes = np.stack([effective * ratio * inverse_start, -effective * (1 - ratio)], axis=2)
    log_experts = np.log10(effective)
    size = np.broadcast_to(data.centred, log_experts.shape)
    design = np.stack([np.ones_like(size), size, log_experts, size * log_experts], axis=2)
    return design, slopes / np.log(10)


def _slope_of_experts(data: _Data, linear_B4: Floats) -> Floats:
    """Return d log10 L / d log10 Ê of each row and point [B, n]."""
    return np.asarray(linear_B4[:, 2:3] + linear_B4[:, 3:] * data.centred)
