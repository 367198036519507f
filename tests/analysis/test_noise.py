"""The noise of every group: what it is read from, and how far its draws may be trusted."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.analysis.noise import (
    MeanSquare,
    NoiseDraws,
    Scatter,
    draw_noise,
    equality_p,
    group_noise,
    lack_of_fit_p,
)
from isoflop.arrays import Floats

BUDGETS = (1e17, 3e17, 1e18, 3e18)
NOTHING = MeanSquare(value=0.0, dof=0)


def scatter(
    lack: float | None, dof: int = 4, pure: float | None = None, pure_dof: int = 14, runs: float = 1
) -> Scatter:
    """A group's mean squares from standard deviations."""
    return Scatter(
        lack_of_fit=NOTHING if lack is None else MeanSquare(value=lack**2, dof=dof),
        pure_error=NOTHING if pure is None else MeanSquare(value=pure**2, dof=pure_dof),
        repeats=runs,
    )


def family(arch: str, group: Scatter) -> dict[tuple[str, float], Scatter]:
    return {(arch, budget): group for budget in BUDGETS}


def sd(draws: NoiseDraws) -> Floats:
    return np.sqrt(draws.between_sizes**2 + draws.between_runs**2)


def test_four_budgets_are_worth_more_than_one() -> None:
    alone = draw_noise({("a", 1e18): scatter(0.005)}, 4000, 0)["a", 1e18]
    # One group has its own degrees of freedom and no more: the variance is 4 · s² / χ²_4.
    quantile = np.quantile(sd(alone) ** 2, 0.5)
    assert quantile == pytest.approx(0.005**2 * 4 / 3.357, rel=0.1)
    together = draw_noise(family("a", scatter(0.005)), 4000, 0)
    for draws in together.values():
        assert 5 < group_noise(draws).dof < 16
        assert group_noise(draws).sd == pytest.approx(0.005, rel=0.1)
        assert group_noise(draws).source == "scatter"


def test_a_quiet_family_is_not_lent_to_a_loud_one() -> None:
    both = {
        **family("loud", scatter(0.010)),
        **family("quiet", scatter(0.002, pure=0.002, runs=3)),
    }
    drawn = draw_noise(both, 1000, 0)
    assert group_noise(drawn["loud", 1e17]).sd == pytest.approx(0.010, rel=0.15)
    assert group_noise(drawn["quiet", 1e17]).sd == pytest.approx(0.002, rel=0.15)


def test_noise_that_falls_with_the_budget_is_followed() -> None:
    sds = dict(zip(BUDGETS, (0.0188, 0.0081, 0.0047, 0.0061), strict=True))
    drawn = draw_noise({("a", b): scatter(s, dof=8) for b, s in sds.items()}, 1000, 0)
    found = [group_noise(drawn["a", b]).sd for b in BUDGETS]
    assert found[0] > 1.7 * found[1] > 2.2 * found[2]


def test_scatter_between_sizes_is_never_less_than_the_repeats_show() -> None:
    # Seeds differ by .001, sizes by .006: the mean of three seeds is no better than one run.
    drawn = draw_noise(family("a", scatter(0.006 * 3**0.5, pure=0.001, runs=3)), 1000, 0)
    for draws in drawn.values():
        assert np.median(draws.between_sizes) == pytest.approx(0.006, rel=0.2)
        assert np.median(draws.between_runs) == pytest.approx(0.001, rel=0.2)


def test_without_lack_of_fit_both_tell_of_one_noise() -> None:
    drawn = draw_noise(family("a", scatter(0.005, pure=0.005, runs=3)), 2000, 0)
    for draws in drawn.values():
        assert np.mean(draws.between_sizes > 0) < 0.5
        assert np.quantile(sd(draws), 0.975) < 0.005 * 1.45


def test_a_group_without_a_residual_takes_the_noise_of_the_others() -> None:
    groups = {**family("a", scatter(0.005)), ("a", 1e19): scatter(None)}
    drawn = draw_noise(groups, 2000, 0)
    own, other = group_noise(drawn["a", 1e19]), group_noise(drawn["a", 1e18])
    assert own.source == "other groups"
    assert own.sd == pytest.approx(0.005, rel=0.5)
    assert own.dof < other.dof
    assert draw_noise({("a", 1e19): scatter(None)}, 10, 0) == {}


def test_budgets_that_share_trunks_are_worth_fewer() -> None:
    groups = family("a", scatter(0.005)) | {
        ("b", b): s for (_, b), s in family("a", scatter(0.005)).items()
    }
    alone = draw_noise(groups, 4000, 0)["a", 1e18]
    drawn = {r: draw_noise(groups, 4000, 0, {"a": r}) for r in (0.25, 0.8)}
    dofs = [group_noise(draws).dof for draws in (alone, drawn[0.25]["a", 1e18])]
    dofs.append(group_noise(drawn[0.8]["a", 1e18]).dof)
    assert dofs[0] > 1.15 * dofs[1] > 1.15 * dofs[2] > 4
    # What is known of the level is not another.
    for draws in drawn.values():
        assert group_noise(draws["a", 1e18]).sd == pytest.approx(0.005, rel=0.12)


def test_losses_without_noise_have_none() -> None:
    for draws in draw_noise(family("a", scatter(0.0)), 100, 0).values():
        assert sd(draws).max() < 1e-5


def test_many_groups_are_read_family_by_family() -> None:
    groups = {
        (f"arch{i}", 1e17 * 2**k): scatter(0.002 * (1 + i % 2))
        for i in range(20)
        for k in range(10)
    }
    drawn = draw_noise(groups, 50, 0)
    assert set(drawn) == set(groups)
    assert group_noise(drawn["arch1", 1e17]).sd == pytest.approx(0.004, rel=0.2)


def test_variances_of_posterior_draws_cover() -> None:
    """A normal variable of the true noise lies within the drawn 95 % as often as that."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(60):
        groups = {
            (arch, budget): scatter(float(0.005 * np.sqrt(rng.chisquare(4) / 4)))
            for arch in ("a", "b")
            for budget in BUDGETS
        }
        for draws in draw_noise(groups, 400, 0).values():
            reach = np.quantile(np.abs(sd(draws) * rng.standard_normal(400)), 0.95)
            hits.append(np.mean(np.abs(0.005 * rng.standard_normal(200)) < reach))
    assert 0.93 < np.mean(hits) < 0.97


def test_equality_of_noise() -> None:
    from scipy.stats import bartlett

    rng = np.random.default_rng(0)
    samples = [rng.normal(0, size, 7) for size in (1.0, 1.1, 0.9, 1.2)]
    same = [MeanSquare(value=float(np.var(one, ddof=1)), dof=6) for one in samples]
    assert equality_p(same) == pytest.approx(bartlett(*samples).pvalue, rel=1e-9)
    assert equality_p([*same, MeanSquare(value=60.0, dof=6)]) < 1e-4
    assert equality_p(same[:1]) is None
    assert equality_p([NOTHING, *same[:1]]) is None


def test_lack_of_fit_is_an_f_test() -> None:
    # F(4, 14) = 3.112 at 5 %.
    assert lack_of_fit_p(scatter(3.112**0.5, pure=1.0)) == pytest.approx(0.05, abs=1e-3)
    assert lack_of_fit_p(scatter(1.0)) is None
    assert lack_of_fit_p(scatter(1.0, pure=0.0)) is None
