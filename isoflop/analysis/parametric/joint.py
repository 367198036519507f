"""A joint law for families with experts, in active parameters, sparsity and tokens.

L = E + A · N_active^−α · (N / N_active)^−γ + B · D^−β with N all parameters. γ says what parameters
that a token does not use are worth: 0 nothing, α as much as used ones (then the law is Chinchilla's
in N), negative a harm. It is the interaction of size and sparsity alone; the law of Abnar et al.
2025 (arXiv 2501.12370) has further terms of sparsity, whose ten coefficients a study of a few dozen
runs cannot tell apart.

Parameters besides the experts count as active, so N / N_active is not the number of experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoflop.analysis.parametric.bootstrap import DEFAULT_RESAMPLING, Resampling
from isoflop.analysis.parametric.fitting import Data, fit_law
from isoflop.analysis.parametric.result import ParametricFit, Status
from isoflop.analysis.parametric.terms import Form, Method
from isoflop.analysis.points import Point

JOINT = Form(
    name="joint",
    terms=(("A", "alpha", "gamma"), ("B", "beta"), ("E",)),
    signed=("gamma",),
)

# ln(N / N_active) must vary by this much (standard deviation, 5 %) beside what N_active and D tell.
_LEAST_VARIATION = 0.05


def has_experts(points: Sequence[Point]) -> bool:
    """Return whether some point is known to use fewer parameters per token than it has."""
    return any(point.n_active is not None and point.n_active < point.n_params for point in points)


def fit_joint(
    points: Sequence[Point],
    *,
    arch: str,
    method: Method = "huber",
    resampling: Resampling = DEFAULT_RESAMPLING,
) -> ParametricFit:
    """Fit the joint law to points whose n_active is known.

    ``points`` may pool several archs of one family (its variants by sparsity), under any label. A
    study whose sparsity follows from its sizes gets the status ``sparsity_not_varied``.
    """
    ordered = sorted(
        (point for point in points if point.n_active is not None),
        key=lambda p: (p.budget_flops, p.n_active or 0.0, p.n_params, p.n_tokens, p.loss),
    )
    active, total, tokens = (
        np.array([getattr(point, name) for point in ordered], dtype=np.float64)
        for name in ("n_active", "n_params", "n_tokens")
    )
    return fit_law(
        Data(
            arch=arch,
            inputs=((active, total / active), (tokens,), ()),
            losses=np.array([point.loss for point in ordered], dtype=np.float64),
            budgets=tuple(point.budget_flops for point in ordered),
            cells=tuple((point.n_active, *point.size_key) for point in ordered),
        ),
        JOINT,
        method,
        resampling,
        refuse=_refuse_fixed_sparsity,
    )


def _refuse_fixed_sparsity(data: Data) -> tuple[Status, str] | None:
    """Refuse data whose ln(N / N_active) hardly leaves a plane in ln N_active and ln D."""
    (active, sparsity), (tokens,), _ = data.inputs
    plane = np.column_stack([np.ones(len(active)), np.log(active), np.log(tokens)])
    log_sparsity = np.log(sparsity)
    beside = log_sparsity - plane @ np.linalg.lstsq(plane, log_sparsity, rcond=None)[0]
    if beside.std() >= _LEAST_VARIATION:
        return None
    return "sparsity_not_varied", "the share of active parameters follows from size and tokens"
