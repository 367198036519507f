from __future__ import annotations

import math
import subprocess
import sys

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from analysis.parametric.made_laws import point, studied
from isoflop.analysis.optima import find_optima
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.analysis.parametric import fit_parametric
from isoflop.analysis.points import GroupKey, Point, Selection

NO_SHRINKING = (Phase.explicit, Phase.generate)


def _selection(points: list[Point]) -> Selection:
    groups: dict[GroupKey, list[Point]] = {}
    for p in points:
        groups.setdefault((p.arch, p.budget_flops), []).append(p)
    return Selection(groups={key: tuple(group) for key, group in groups.items()}, excluded=())


def _with_experts(points: list[Point]) -> list[Point]:
    return [
        point(
            "moe",
            budget_flops=p.budget_flops,
            n_params=p.n_params * (4 if i % 2 else 16),
            n_active=p.n_params,
            n_tokens=p.n_tokens,
            loss=p.loss,
        )
        for i, p in enumerate(points)
    ]


def test_every_arch_gets_every_law_it_can_have() -> None:
    dense = studied(noise=0.002)
    selection = _selection([*_with_experts(dense), *dense])
    optima = find_optima(selection.groups)
    fits = fit_parametric(selection, n_boot=20, optima=optima)
    assert [(fit.arch, fit.form, fit.method) for fit in fits] == [
        ("dense", "chinchilla", "huber"),
        ("dense", "chinchilla", "vpnls"),
        ("dense", "frontier", DEFAULT_METHOD),
        ("moe", "chinchilla", "huber"),
        ("moe", "chinchilla", "vpnls"),
        ("moe", "frontier", DEFAULT_METHOD),
        ("moe", "joint", "huber"),
    ]
    assert fits[2].has_values
    for fit in fits:
        for row in fit.rows():
            assert row.status == fit.status
            assert (row.value is None) == (not fit.has_values)


def test_an_empty_group_or_selection_gives_verdicts() -> None:
    fits = fit_parametric(Selection(groups={("dense", 1e17): ()}, excluded=()))
    assert [fit.status for fit in fits] == ["too_few"] * 3
    assert fit_parametric(Selection(groups={}, excluded=())) == ()


@settings(max_examples=10, phases=NO_SHRINKING)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([1.0, 1e3, 7e9, 2.0**70, 1e200]),
            st.sampled_from([1.0, 2e5, 3e12, 1e250]),
            st.sampled_from([1e-12, 0.5, 2.0, 3.0, 700.0]),
        ),
        max_size=12,
    )
)
def test_any_table_gives_laws_or_verdicts(rows: list[tuple[float, float, float]]) -> None:
    points = [
        point(budget_flops=1e18, n_params=n, n_active=n / 8, n_tokens=d, loss=loss)
        for n, d, loss in rows
    ]
    for fit in fit_parametric(_selection(points), n_boot=2):
        assert fit.has_values or fit.reason
        for row in fit.rows():
            value = row.value
            assert value is None or math.isfinite(value)


def test_settings_reach_every_fit() -> None:
    selection = _selection(studied(noise=0.002))
    fits = fit_parametric(selection, n_boot=10, seed=3, bootstrap="case", confidence=0.5)
    assert {fit.bootstrap_kind for fit in fits[:2]} == {"case"}
    assert all(row.confidence == 0.5 for row in fits[0].rows())
    assert fit_parametric(selection, n_boot=0)[0].bootstrap_kind is None


def test_importing_the_laws_loads_no_scipy_pandas_or_torch() -> None:
    code = (
        "import sys, isoflop.analysis.parametric;"
        "bad = {'scipy', 'pandas', 'torch', 'matplotlib'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
