"""A whole table: invariances, files, independence from training, and random rows."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.made_runs import row, study
from isoflop.analysis import (
    METHODS,
    FitOptions,
    Fits,
    fit_optima,
    fit_rows,
    fit_table,
    select_points,
)
from isoflop.analysis.laws import FITS
from isoflop.analysis.optima import OPTIMA
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.analysis.points import AXES
from isoflop.cli.optima import optima_rows
from isoflop.errors import UserError
from isoflop.tables import RUNS, read_table, write_table

TABLES = [
    f"{name}.parquet" for name in ("optima", "fits", "compare", "exponents", "validity", "excluded")
]
PLOTS = [
    f"plots/{stem}.{suffix}"
    for stem in ("isoflop_profiles", "frontier", "optimum_size")
    for suffix in ("png", "svg")
]


FAMILIES = ("mlp", "sgatlin")


def noisy_study() -> list[dict[str, Any]]:
    """Two families with noise, seeds and two excluded runs; every run has an id."""
    rng = random.Random(7)
    rows = study(FAMILIES) + [{**one, "seed": 1} for one in study(FAMILIES, num=3)]
    rows = [{"seed": 0, **one} for one in rows]
    for index, one in enumerate(rows):
        one.update(run_id=f"run{index}", loss=one["loss"] + rng.gauss(0, 0.002))
    rows[3].update(status="diverged", loss=math.inf)
    rows[20].update(status="failed", loss=None)
    return rows


def optima_and_laws(rows: list[dict[str, Any]], n_boot: int = 100) -> Fits:
    """What every other part of a fit starts from."""
    return fit_optima(select_points(rows), FitOptions(n_boot=n_boot))


def test_row_order_changes_nothing() -> None:
    rows = noisy_study()
    shuffled = random.Random(1).sample(rows, len(rows))
    once, other = optima_and_laws(rows), optima_and_laws(shuffled)
    assert other == once
    assert any(optimum.ci_lo is not None for optimum in once.optima)
    for key, draws in once.draws.items():
        for group, x in draws.x_opt.items():
            np.testing.assert_array_equal(other.draws[key].x_opt[group], x)


@pytest.mark.parametrize("has_ids", [True, False])
def test_a_table_read_twice_gives_the_fit_of_a_table_read_once(has_ids: bool) -> None:
    rows = noisy_study()
    if not has_ids:
        rows = [{**one, "run_id": None} for one in rows]
    once, twice = optima_and_laws(rows), optima_and_laws(rows + rows)
    assert twice.optima == once.optima
    assert twice.laws == once.laws
    assert twice.selection.excluded_counts() == {
        "exact_dup": len(rows) - 2,
        "diverged": 2,
        "failed": 2,
    }


def test_bad_rows_leave_the_fit_of_the_good_ones() -> None:
    rows = study(["mlp"])
    bad = [
        row(budget=3e10, n_params=2e4, loss=math.nan),
        row(budget=3e10, n_params=2e4, loss=9.0, status="diverged"),
        row(budget=1e11, n_params=2e4, loss=None),
    ]
    fits = optima_and_laws(rows + bad)
    assert fits.optima == optima_and_laws(rows).optima
    assert fits.selection.excluded_counts() == {"bad_loss": 1, "diverged": 1, "no_loss": 1}


@pytest.mark.slow
def test_the_whole_fit_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = noisy_study()
    options = FitOptions(n_boot=20)
    shuffled = random.Random(2).sample(rows, len(rows))
    assert fit_rows(shuffled, options) == fit_rows(rows, options)


def as_table_row(one: dict[str, Any]) -> dict[str, Any]:
    counts = {name: int(one[name]) for name in ("n_params", "n_tokens", "n_active")}
    return {**dict.fromkeys(RUNS.names), **one, **counts}


@pytest.mark.slow
def test_a_table_on_disk_gives_the_tables_and_plots(tmp_path: Path) -> None:
    runs = tmp_path / "runs.parquet"
    rows = [as_table_row(one) for one in noisy_study()]
    write_table(runs, rows, RUNS)
    report = fit_table(runs, tmp_path / "fit", FitOptions(n_boot=20))
    # The table holds the infinite loss of the diverged run as null; the fit is the same.
    assert report.fits.optima == optima_and_laws(rows, n_boot=20).optima
    written = sorted(p.relative_to(tmp_path / "fit").as_posix() for p in report.paths)
    assert {*TABLES, *PLOTS} <= set(written)
    assert all(path.stat().st_size > 1000 for path in report.paths)
    optima = read_table(tmp_path / "fit" / "optima.parquet", OPTIMA)
    assert len(optima) == len(FAMILIES) * 3 * len(AXES) * len(METHODS)
    assert [o["x_opt"] for o in optima] == [o.x_opt for o in report.fits.optima]
    assert {o["bootstrap_kind"] for o in optima if o["ci_lo"] is not None} == {"parametric"}
    laws = [
        r for r in read_table(tmp_path / "fit" / "fits.parquet", FITS) if r["form"] == "power_law"
    ]
    assert len(laws) == len(FAMILIES) * 4 * 2 * 2 * len(METHODS)
    exponents = [r for r in laws if r["parameter"] == "exponent"]
    # The made runs do not tell their FLOPs.
    unknown = [r for r in exponents if r["budget"] == "achieved"]
    assert {(r["value"], r["status"]) for r in unknown} == {(None, "flops_unknown")}
    losses = [r for r in exponents if (r["axis"], r["budget"]) == ("loss", "nominal")]
    assert all(r["ci_lo"] <= r["value"] <= r["ci_hi"] for r in losses)
    held_out = {(r["method"], r["budget"]) for r in exponents if r["heldout_error"] is not None}
    assert held_out == {(DEFAULT_METHOD, report.fits.law_budget)}


def test_an_empty_table_gives_empty_tables(tmp_path: Path) -> None:
    fit_table([], tmp_path)
    assert read_table(tmp_path / "optima.parquet", OPTIMA) == []
    assert read_table(tmp_path / "fits.parquet", FITS) == []


def test_a_missing_table_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs table"):
        fit_table(tmp_path / "runs.parquet", tmp_path / "fit")


def test_display_rows_mark_bounds_and_missing_values() -> None:
    rows = [
        *study(["mlp"], budgets=[3e10]),
        *(row("moe", 3e10, n, 3 - 0.1 * i + 0.005 * i * i) for i, n in enumerate([1e4, 2e4, 4e4])),
        row("peer", 3e10, status="missing", loss=None),
    ]
    shown = optima_rows(optima_and_laws(rows).under(method="parabola"))
    assert [(r["arch"], r["params N*"], r["status"]) for r in shown] == [
        ("mlp", "20.8k", "interior"),
        ("moe", "> 40k", "edge_high"),
        ("peer", "-", "too_few"),
    ]
    assert [r["tokens D*"] for r in shown] == ["241k", "< 125k", "-"]
    assert [r["loss"] for r in shown] == ["3.8106", "< 2.8200", "-"]
    assert [r["perplexity"] for r in shown] == ["45.175", "< 16.777", "-"]
    assert {r["budget"] for r in shown} == {"3e10"}


@pytest.mark.slow
def test_fitting_imports_neither_torch_nor_what_trains() -> None:
    script = """
import sys
sys.modules["torch"] = None
import isoflop.analysis
assert not {"numpy", "scipy", "matplotlib", "pyarrow"} & set(sys.modules)
from pathlib import Path
import tempfile
rows = [
    dict(run_id=None, arch="mlp", budget_flops=1e17, n_params=n, n_tokens=n, n_active=n,
         loss=loss, status="done", status_reason=None, excluded_reason=None)
    for n, loss in ((1e6, 3.2), (2e6, 3.0), (4e6, 3.1))
]
with tempfile.TemporaryDirectory() as folder:
    isoflop.analysis.fit_table(rows, Path(folder), isoflop.analysis.FitOptions(n_boot=10))
banned = ("isoflop.plan", "isoflop.launch", "isoflop.train", "isoflop.model",
          "isoflop_kernels", "matplotlib.pyplot")
print([name for name in sys.modules if name.startswith(banned)])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


maybe_number = st.one_of(
    st.none(), st.floats(), st.integers(-5, 10**20), st.sampled_from([1e6, 2e6, 3e6, 5e6])
)
random_row = st.fixed_dictionaries(
    {
        "run_id": st.one_of(st.none(), st.sampled_from("abc")),
        "arch": st.sampled_from(["mlp", "sgatlin/gelu", None]),
        "budget_flops": st.one_of(st.sampled_from([1e17, 1e18, 1e26]), maybe_number),
        "n_params": maybe_number,
        "n_tokens": maybe_number,
        "n_active": maybe_number,
        "loss": st.one_of(st.floats(1, 6), maybe_number),
        "status": st.sampled_from(["done", "done", "done", "diverged", "failed", "missing", None]),
        "status_reason": st.none(),
        "excluded_reason": st.sampled_from([None, None, None, "spike"]),
    }
)
sound_row = st.builds(
    row,
    arch=st.just("mlp"),
    budget=st.sampled_from([1e17, 1e18, 1e19]),
    n_params=st.sampled_from([1e6, 2e6, 4e6, 9e6]),
    loss=st.floats(2, 4),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(random_row, sound_row, sound_row), max_size=30), st.randoms())
def test_no_rows_crash_the_fit_and_no_bound_enters_a_law(
    rows: list[dict[str, Any]], rng: random.Random
) -> None:
    fits = optima_and_laws(rows, n_boot=0)
    used = (*fits.groups.values(), fits.selection.loose)
    assert len(fits.excluded) + sum(map(len, used)) == len(rows)
    for optimum in fits.optima:
        missing = optimum.status in ("not_convex", "flat", "below_data", "too_few")
        assert (optimum.x_opt is None) == (optimum.loss_opt is None) == missing
        if optimum.x_opt is not None:
            assert optimum.grid_lo is not None
            assert optimum.grid_hi is not None
            assert optimum.grid_lo <= optimum.x_opt <= optimum.grid_hi
    for law in fits.laws:
        axis = "n_params" if law.axis == "loss" else law.axis
        interior = [o for o in fits.optima_of(law.arch, axis, law.method) if o.status == "interior"]
        assert law.n_points <= len(interior)
        assert law.exponent is None or law.n_points >= 2
    # The same rows without the groups that end in a bound give the same laws.
    bounds = {(o.arch, o.budget_flops) for o in fits.optima if o.is_bound}
    kept = [r for r in rows if (r["arch"], r["budget_flops"]) not in bounds]
    laws = {
        (law.method, law.arch, law.axis, law.budget): law.log_coefficient
        for law in optima_and_laws(kept, n_boot=0).laws
    }
    for law in fits.laws:
        axis = "n_params" if law.axis == "loss" else law.axis
        sources = fits.optima_of(law.arch, axis, law.method)
        if all((o.arch, o.budget_flops) not in bounds or o.is_bound for o in sources):
            key = (law.method, law.arch, law.axis, law.budget)
            assert laws.get(key) == law.log_coefficient
    assert optima_and_laws(rng.sample(rows, len(rows)), n_boot=0).laws == fits.laws
    optima_rows(fits)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(random_row, sound_row, sound_row, sound_row), max_size=24))
def test_no_rows_crash_the_whole_fit_and_every_interval_is_in_order(
    rows: list[dict[str, Any]],
) -> None:
    fits = fit_rows(rows, FitOptions(n_boot=20))
    for optimum in fits.optima:
        if optimum.ci_lo is not None:
            assert optimum.is_point
            assert optimum.grid_lo <= optimum.ci_lo <= optimum.ci_hi <= optimum.grid_hi


def test_a_reference_that_is_asked_for_is_kept_where_there_are_no_envelopes() -> None:
    fits = fit_rows(study(("mlp", "swiglu")), FitOptions(n_boot=0, reference="mlp"))
    assert {row.reference for row in fits.compare} == {"mlp"}
    assert fits.envelopes == ()
