from __future__ import annotations

import numpy as np
import pytest

from analysis.parametric.made_laws import BESIROGLU, studied
from isoflop.analysis.bootstrap import noise_of_repeats
from isoflop.analysis.parametric import ParametricFit, Resampling, fit_surface


def _fit(points, arch: str = "dense", method: str = "huber", **options) -> ParametricFit:
    return fit_surface(
        points, arch=arch, method=method, resampling=Resampling(**{"n_boot": 60, **options})
    )


def test_the_kind_follows_the_number_of_points_and_is_named() -> None:
    assert _fit(studied(noise=0.003)).bootstrap_kind == "residual"
    assert _fit(studied(noise=0.003, num=15)).bootstrap_kind == "case"
    assert _fit(studied(noise=0.003), kind="case").bootstrap_kind == "case"
    assert _fit(studied(noise=0.003, num=15), kind="residual").bootstrap_kind == "residual"


def test_seed_noise_needs_repeats_and_says_what_it_did_instead() -> None:
    assert _fit(studied(noise=0.003), kind="parametric").bootstrap_kind == "residual"
    repeated = studied(noise=0.003, repeats=2)
    assert _fit(repeated, kind="parametric").bootstrap_kind == "parametric"


def test_scatter_of_repeats_is_the_noise_put_in() -> None:
    points = studied(noise=0.01, repeats=20)
    values = np.log([p.loss for p in points])
    scatter = noise_of_repeats(values, [p.size_key for p in points])
    assert scatter.relative_sd == pytest.approx(0.01, rel=0.05)
    of_two = noise_of_repeats([1.0, 3.0, 7.0], ["a", "a", "b"])
    assert (of_two.relative_sd, of_two.dof) == (pytest.approx(2**0.5), 1)


@pytest.mark.parametrize("kind", ["case", "residual", "parametric"])
def test_wider_noise_gives_wider_intervals(kind: str) -> None:
    def width(noise: float) -> float:
        low, high = _fit(studied(noise=noise, repeats=3), kind=kind).interval("alpha")
        return high - low

    assert 2.0 < width(0.004) / width(0.001) < 8.0


def test_draws_are_those_of_the_seed_and_no_other() -> None:
    points = studied(noise=0.003)
    first, again, other = (_fit(points, seed=seed).draws["E"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.isclose(first, other).any()


@pytest.mark.parametrize(("kind", "paired"), [("case", True), ("parametric", False)])
def test_archs_are_paired_where_points_are_drawn(kind: str, paired: bool) -> None:
    points = studied(noise=0.003, repeats=2)
    first = _fit(points, "dense", kind=kind).draws["alpha"]
    second = _fit(points, "moe", kind=kind).draws["alpha"]
    assert np.array_equal(first, second) == paired


def test_batches_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    points = studied(noise=0.003, num=15)
    whole = _fit(points).draws["alpha"]
    monkeypatch.setattr("isoflop.analysis.parametric.solve._BATCH_ELEMENTS", 7 * 60)
    np.testing.assert_allclose(_fit(points).draws["alpha"], whole, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["huber", "vpnls"])
def test_intervals_of_exponents_cover_the_truth(method: str) -> None:
    covered = {"alpha": 0, "beta": 0, "a": 0}
    for seed in range(60):
        fit = _fit(studied(noise=0.002, seed=seed), method=method, n_boot=150, seed=seed)
        for name in covered:
            low, high = fit.interval(name)
            covered[name] += low <= getattr(BESIROGLU, name) <= high
    # Counts of 60 vary by 1.7 at 95 % and by 2.3 at 90 %, which α and β have in so small a study.
    assert covered["a"] >= 52
    assert min(covered.values()) >= 48
