"""How much losses scatter: a variance for every family and budget, and how sure we are of it.

Two mean squares of ln loss are measured in each (arch, budget): *lack of fit*, of the means of the
sizes about the fitted curve, and *pure error*, between repeats of one cell. Neither alone is safe:
repeats do not show the scatter between sizes (learning rates tuned at one size), and the residuals
of seven sizes have four degrees of freedom. So all are read together, in two steps.

1. κ, the variance between sizes over that between runs, is a family's own. Lack of fit over pure
   error is (1 + n κ) · F in every group, with n runs a size; half of the prior is at κ = 0, the
   rest even in ln κ. Without repeats κ is 0: the scatter about the curve is the noise of a run.
2. Both mean squares of a group then tell of one variance σ². ln σ² is a line in ln C common to all
   groups, plus a deviation of the family, plus one of the group; the sizes of both deviations are
   unknown, too, and integrated out on a grid (restricted likelihood, weak priors). What the other
   groups say of a group is an inverse-gamma prior for its variance, matched in the mean and
   variance of ln σ²; its own mean squares update it (Smyth 2004, "Linear models and empirical Bayes
   methods", section 3, with the prior's degrees of freedom drawn instead of estimated).

Draws of κ and σ² carry what is not known of them into every interval, as Student's t does for one
group.

Budgets of a family that share trunks have mean squares that are alike by some r, the square of the
correlation of their runs: K of them tell as much as K / (1 + (K − 1) r). A group keeps its own
degrees of freedom; the others of such a family lend it the share (1 − r) / (1 + (K − 1) r) of
theirs, so that all together are worth that.

Letters: G groups, B draws, Q grid points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.points import GroupKey
from isoflop.arrays import Floats

Source = Literal["scatter", "repeats", "scatter and repeats", "other groups"]

# κ: sizes that scatter less than this share of a run's noise do not matter, more was never seen.
_KAPPA = np.array([0.0, *np.geomspace(0.05, 100.0, 40)])
_PRIOR_KAPPA = np.array([0.5, *np.full(40, 0.5 / 40)])
# Standard deviations of ln σ²: of a group about its family's line, and of families about each
# other. The grids reach a factor of e in σ for groups and of 6 for families.
_GROUP_SD = np.array([0.0, 0.15, 0.3, 0.5, 0.75, 1.0, 1.4, 2.0])
_FAMILY_SD = np.array([0.0, 0.3, 0.7, 1.3, 2.2, 3.5])
# Priors: half-normal, half-Cauchy, and the slope of ln σ² in ln C (−0.66 in cpu_reference).
_PRIOR_GROUP_SD, _PRIOR_FAMILY_SD, _PRIOR_SLOPE_SD = 0.75, 1.5, 0.5
# Share of the variance of a group's deviation that all families have in common at that budget.
_COMMON_AT_BUDGET = 0.6
# Relative standard deviations below this are rounding of the losses.
_LEAST_SD = 1e-7
# Variance of ln σ² of a group without a mean square of its own: nothing is known.
_UNKNOWN = 1e6
_MOST_GROUPS = 150
# Trigamma of less is as good as nothing known.
_LEAST_LENT = 1e-3
NO_TRUNKS: Mapping[str, float] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanSquare:
    """A mean square of ln loss of one group."""

    value: float
    dof: float
    """0 where nothing was measured; the value is then of no meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scatter:
    """What one group tells of its noise."""

    lack_of_fit: MeanSquare
    """Of the means of the sizes about the curve, each counted as often as it has runs."""
    pure_error: MeanSquare
    """Between repeats of one cell."""
    repeats: float
    """Runs per size that the lack of fit stands for: its expectation is σ² · (1 + repeats · κ)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NoiseDraws:
    """Draws of the two parts of the noise of one group, as relative standard deviations [B]."""

    between_sizes: Floats
    """Of what all runs of one size share."""
    between_runs: Floats
    """Of what each run has alone."""
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupNoise:
    """The noise of one run of a group, as the tables give it."""

    sd: float
    """Standard deviation of ln loss of a single run: the median of the draws."""
    dof: float
    """Degrees of freedom that the spread of the draws amounts to."""
    source: Source


def draw_noise(
    scatter: Mapping[GroupKey, Scatter],
    n_boot: int,
    seed: int,
    alike: Mapping[str, float] = NO_TRUNKS,
) -> dict[GroupKey, NoiseDraws]:
    """Draw the noise of every group; none where no group has a degree of freedom.

    A group without any (three sizes, say) takes what the others tell of it.

    Args:
        scatter: what each group tells.
        n_boot: draws.
        seed: of the draws.
        alike: correlation of the mean squares of two budgets, of the archs that share trunks.
    """
    keys = sorted(scatter)
    rng = np.random.default_rng((seed, len(keys)))
    noise: dict[GroupKey, NoiseDraws] = {}
    # The matrices are as large as the number of groups: many families are read one by one.
    parts = [keys]
    if len(keys) > _MOST_GROUPS:
        archs = dict.fromkeys(arch for arch, _ in keys)
        parts = [[key for key in keys if key[0] == arch] for arch in archs]
    for part in parts:
        noise |= _draw_together(part, scatter, n_boot, rng, alike)
    return noise


def _draw_together(
    keys: Sequence[GroupKey],
    scatter: Mapping[GroupKey, Scatter],
    n_boot: int,
    rng: np.random.Generator,
    alike: Mapping[str, float],
) -> dict[GroupKey, NoiseDraws]:
    groups = [scatter[key] for key in keys]
    num = Counter(arch for arch, _ in keys)
    r = np.array([alike.get(arch, 0.0) for arch, _ in keys])
    worth = 1 / (1 + (np.array([num[arch] for arch, _ in keys]) - 1) * r)
    dof = np.array([g.lack_of_fit.dof + g.pure_error.dof for g in groups], dtype=np.float64)
    if not dof.any():
        return {}
    kappa_BG = _draw_kappa(keys, groups, n_boot, rng, worth)
    sums_BG = np.stack(
        [
            g.lack_of_fit.dof * g.lack_of_fit.value / (1 + g.repeats * kappa)
            + g.pure_error.dof * g.pure_error.value
            for g, kappa in zip(groups, kappa_BG.T, strict=True)
        ],
        axis=1,
    )
    least = _LEAST_SD**2
    middle = np.exp(np.log(np.maximum(sums_BG, least)).mean(axis=0))
    value = np.maximum(middle / np.where(dof > 0, dof, 1.0), least)
    prior_dof, prior_sum = _priors(keys, value, dof, n_boot, rng, (1 - r) * worth)
    total = prior_dof + dof
    variance = np.maximum(prior_sum + sums_BG, least) / rng.chisquare(np.maximum(total, 1e-3))
    return {
        key: NoiseDraws(
            between_sizes=np.sqrt(kappa_BG[:, i] * variance[:, i]),
            between_runs=np.sqrt(variance[:, i]),
            source=_source(groups[i]),
        )
        for i, key in enumerate(keys)
        if np.all(total[:, i] > 0)
    }


def _draw_kappa(
    keys: Sequence[GroupKey],
    groups: Sequence[Scatter],
    n_boot: int,
    rng: np.random.Generator,
    worth: Floats,
) -> Floats:
    """Return draws [B, G] of the variance between sizes over that between runs.

    ``worth`` [G] is how many independent groups each counts for.
    """
    drawn: dict[str, Floats] = {}
    for arch in dict.fromkeys(arch for arch, _ in keys):
        log_weight, has_repeats = np.log(_PRIOR_KAPPA), False
        for key, group, share in zip(keys, groups, worth, strict=True):
            lack, pure = group.lack_of_fit, group.pure_error
            if key[0] == arch and lack.dof and pure.dof:
                ratio = max(lack.value, _LEAST_SD**2) / max(pure.value, _LEAST_SD**2)
                scale = 1 + group.repeats * _KAPPA
                # The density of F but for a constant; scipy.stats takes a second to import.
                log_f = (lack.dof / 2 - 1) * np.log(ratio / scale)
                log_f -= (lack.dof + pure.dof) / 2 * np.log(lack.dof * ratio / scale + pure.dof)
                log_weight = log_weight + share * (log_f - np.log(scale))
                has_repeats = True
        weight = np.exp(log_weight - log_weight.max())
        drawn[arch] = (
            rng.choice(_KAPPA, size=n_boot, p=weight / weight.sum())
            if has_repeats
            else np.zeros(n_boot)
        )
    return np.stack([drawn[arch] for arch, _ in keys], axis=1)


def _source(group: Scatter) -> Source:
    if group.pure_error.dof:
        return "scatter and repeats" if group.lack_of_fit.dof else "repeats"
    return "scatter" if group.lack_of_fit.dof else "other groups"


def group_noise(draws: NoiseDraws) -> GroupNoise:
    """Return the noise of a single run from its draws."""
    from scipy.special import polygamma

    log_variance = np.log(draws.between_sizes**2 + draws.between_runs**2)
    # ln of an inverse χ² variance has the variance trigamma(dof / 2), about 2 / dof.
    grid = np.geomspace(0.5, 1e4, 400)
    dof = grid[np.argmin(np.abs(polygamma(1, grid / 2) - np.var(log_variance)))]
    return GroupNoise(
        sd=float(np.exp(np.median(log_variance) / 2)), dof=float(dof), source=draws.source
    )


def equality_p(squares: Sequence[MeanSquare]) -> float | None:
    """Return the p value of Bartlett's test that all groups have one variance.

    Losses with long tails make it small as well (Bartlett 1937). None with fewer than two groups
    that have a degree of freedom.
    """
    from scipy.special import gammaincc

    known = [square for square in squares if square.dof and square.value > _LEAST_SD**2]
    if len(known) < 2:
        return None
    dof = np.array([square.dof for square in known], dtype=np.float64)
    value = np.array([square.value for square in known])
    total = dof.sum()
    pooled = float(dof @ value / total)
    statistic = total * np.log(pooled) - float(dof @ np.log(value))
    correction = 1 + (float(np.sum(1 / dof)) - 1 / total) / (3 * (len(known) - 1))
    return float(gammaincc((len(known) - 1) / 2, statistic / correction / 2))


def lack_of_fit_p(scatter: Scatter) -> float | None:
    """Return the p value of the F test of lack of fit against pure error; None without either."""
    from scipy.special import betainc

    lack, pure = scatter.lack_of_fit, scatter.pure_error
    if not (lack.dof and pure.dof) or pure.value <= _LEAST_SD**2:
        return None
    explained = pure.dof / (pure.dof + lack.dof * lack.value / pure.value)
    return float(betainc(pure.dof / 2, lack.dof / 2, explained))


def _priors(
    keys: Sequence[GroupKey],
    values: Floats,
    dof: Floats,
    n_boot: int,
    rng: np.random.Generator,
    lent: Floats,
) -> tuple[Floats, Floats]:
    """Return the degrees of freedom and sum of squares [B, G] that the other groups amount to.

    ``lent`` [G] is the share of its degrees of freedom by which a group tells of the others.
    """
    from scipy.special import digamma, polygamma

    if len(keys) == 1:
        return np.zeros((n_boot, 1)), np.zeros((n_boot, 1))
    half = np.where(dof > 0, dof, 1.0) / 2
    log_values = np.log(values) - digamma(half) + np.log(half)
    error = np.where(dof > 0, polygamma(1, half * np.maximum(lent, _LEAST_LENT)), _UNKNOWN)
    log_values[dof == 0] = log_values[dof > 0].mean()
    mean_QG, variance_QG, weight_Q = _others(keys, log_values, error)
    picked = rng.choice(len(weight_Q), size=n_boot, p=weight_Q)
    prior_QG = 2 * _inverse_trigamma(np.clip(variance_QG, 1e-4, 1e4))
    sum_QG = np.exp(mean_QG + digamma(prior_QG / 2) + np.log(2))
    return prior_QG[picked], sum_QG[picked]


def _others(
    keys: Sequence[GroupKey], log_values: Floats, error: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return mean and variance [Q, G] of ln σ² of each group from the others, and weights [Q]."""
    archs = np.array([arch for arch, _ in keys])
    log_c = np.log(np.array([budget for _, budget in keys]))
    log_c = log_c - log_c.mean()
    same_arch = (archs[:, None] == archs[None]).astype(np.float64)
    same_budget = (np.abs(log_c[:, None] - log_c[None]) < 1e-9).astype(np.float64)
    own = _COMMON_AT_BUDGET * same_budget + (1 - _COMMON_AT_BUDGET) * np.eye(len(keys))
    fixed = np.diag(error) + _PRIOR_SLOPE_SD**2 * np.outer(log_c, log_c)
    family_sds = _FAMILY_SD if len(set(archs)) > 1 else _FAMILY_SD[:1]
    means, variances, log_weights = [], [], []
    for group_sd in _GROUP_SD:
        for family_sd in family_sds:
            covariance = fixed + group_sd**2 * own + family_sd**2 * same_arch
            precision = np.linalg.inv(covariance)
            to_one = precision.sum(axis=1)
            total = to_one.sum()
            # The common level has a flat prior: it is projected out (restricted likelihood).
            projected = precision - np.outer(to_one, to_one) / total
            diagonal = np.maximum(np.diag(projected), 1e-12)
            pull = projected @ log_values
            means.append(log_values - pull / diagonal)
            variances.append(1 / diagonal - error)
            log_weights.append(
                -0.5 * (np.linalg.slogdet(covariance)[1] + np.log(total) + log_values @ pull)
                - 0.5 * (group_sd / _PRIOR_GROUP_SD) ** 2
                - np.log1p((family_sd / _PRIOR_FAMILY_SD) ** 2)
            )
    log_weight = np.array(log_weights)
    width = np.outer(np.gradient(_GROUP_SD), _width(family_sds)).ravel()
    weight = np.exp(log_weight - log_weight.max()) * width
    return np.array(means), np.array(variances), weight / weight.sum()


def _width(grid: Floats) -> Floats:
    return np.gradient(grid) if len(grid) > 1 else np.ones(1)


def _inverse_trigamma(value: Floats) -> Floats:
    """Return x with trigamma(x) = value, by Newton's method on 1 / trigamma (Smyth 2004)."""
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(20):
        there = polygamma(1, x)
        x = x + there * (1 - there / value) / polygamma(2, x)
    return np.asarray(x)
