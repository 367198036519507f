"""A whole table: invariances, files, independence from training, and random rows."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.made_runs import FAMILIES, row, study
from isoflop.analysis import fit_rows, fit_table, optima_rows_for_display
from isoflop.errors import UserError
from isoflop.tables import FITS, OPTIMA, RUNS, read_table, write_table

PLOTS = [
    f"plots/{stem}.{suffix}"
    for stem in ("isoflop_profiles", "frontier", "optimum_size")
    for suffix in ("png", "svg")
]


def noisy_study() -> list[dict[str, Any]]:
    """Five families with noise, seeds and two excluded runs; every run has an id."""
    rng = random.Random(7)
    rows = study() + study(num=3)
    for index, one in enumerate(rows):
        one.update(run_id=f"run{index}", loss=one["loss"] + rng.gauss(0, 0.002))
    rows[3].update(status="diverged", loss=math.inf)
    rows[40].update(status="failed", loss=None)
    return rows


def test_row_order_changes_nothing() -> None:
    rows = noisy_study()
    shuffled = random.Random(1).sample(rows, len(rows))
    assert fit_rows(shuffled) == fit_rows(rows)


def test_a_table_read_twice_gives_the_fit_of_a_table_read_once() -> None:
    rows = noisy_study()
    once, twice = fit_rows(rows), fit_rows(rows + rows)
    assert twice.optima == once.optima
    assert twice.laws == once.laws
    assert twice.selection.excluded_counts() == {
        "exact_dup": len(rows) - 2,
        "diverged": 2,
        "failed": 2,
    }


def test_duplicating_points_without_ids_changes_only_their_number() -> None:
    rows = [{**one, "run_id": None} for one in noisy_study()]
    once, twice = fit_rows(rows), fit_rows(rows + rows)
    assert [o.n_points for o in twice.optima] == [2 * o.n_points for o in once.optima]
    assert [(o.x_opt, o.loss_opt, o.curvature, o.status) for o in twice.optima] == [
        (o.x_opt, o.loss_opt, o.curvature, o.status) for o in once.optima
    ]
    assert twice.laws == once.laws


def test_bad_rows_leave_the_fit_of_the_good_ones() -> None:
    rows = study(["mlp"])
    bad = [
        row(budget=3e10, n_params=2e4, loss=math.nan),
        row(budget=3e10, n_params=2e4, loss=9.0, status="diverged"),
        row(budget=1e11, n_params=2e4, loss=None),
    ]
    fits = fit_rows(rows + bad)
    assert fits.optima == fit_rows(rows).optima
    assert fits.selection.excluded_counts() == {"bad_loss": 1, "diverged": 1, "no_loss": 1}


def as_table_row(one: dict[str, Any]) -> dict[str, Any]:
    counts = {name: int(one[name]) for name in ("n_params", "n_tokens", "n_active")}
    return {**dict.fromkeys(RUNS.names), **one, **counts}


def test_a_table_on_disk_gives_the_tables_and_plots(tmp_path: Path) -> None:
    runs = tmp_path / "runs.parquet"
    rows = [as_table_row(one) for one in noisy_study()]
    write_table(runs, rows, RUNS)
    report = fit_table(runs, tmp_path / "fit")
    # The table holds the infinite loss of the diverged run as null; the fit is the same.
    assert report.fits.optima == fit_rows(rows).optima
    written = sorted(p.relative_to(tmp_path / "fit").as_posix() for p in report.paths)
    assert written == sorted(["optima.parquet", "fits.parquet", *PLOTS])
    assert all(path.stat().st_size > 1000 for path in report.paths)
    optima = read_table(report.optima_path, OPTIMA)
    assert len(optima) == len(FAMILIES) * 3 * 3
    assert [o["x_opt"] for o in optima] == [o.x_opt for o in report.fits.optima]
    assert all(o["ci_lo"] is None for o in optima)
    assert len(read_table(report.fits_path, FITS)) == len(FAMILIES) * 4 * 2


def test_an_empty_table_gives_empty_tables(tmp_path: Path) -> None:
    report = fit_table([], tmp_path)
    assert read_table(report.optima_path, OPTIMA) == []
    assert read_table(report.fits_path, FITS) == []
    assert len(report.plot_paths) == 6


def test_a_missing_table_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs table"):
        fit_table(tmp_path / "runs.parquet", tmp_path / "fit")


def test_display_rows_mark_bounds_and_missing_values() -> None:
    rows = [
        *study(["mlp"], budgets=[3e10]),
        *(row("moe", 3e10, n, 3 - 0.1 * i + 0.005 * i * i) for i, n in enumerate([1e4, 2e4, 4e4])),
        row("peer", 3e10, status="missing", loss=None),
    ]
    shown = optima_rows_for_display(fit_rows(rows))
    assert [(r["arch"], r["n_opt"], r["status"]) for r in shown] == [
        ("mlp", "20.8k", "interior"),
        ("moe", "> 40k", "edge_high"),
        ("peer", "-", "too_few"),
    ]
    assert [r["d_opt"] for r in shown] == ["241k", "< 125k", "-"]
    assert [r["loss"] for r in shown] == ["3.8106", "< 2.8200", "-"]
    assert [r["perplexity"] for r in shown] == ["45.175", "< 16.777", "-"]
    assert {r["budget"] for r in shown} == {"3e10"}


def test_fitting_imports_neither_torch_nor_what_trains() -> None:
    script = """
import sys
sys.modules["torch"] = None
import isoflop.analysis
assert "matplotlib" not in sys.modules
from pathlib import Path
import tempfile
rows = [
    dict(run_id=None, arch="mlp", budget_flops=1e17, n_params=n, n_tokens=n, n_active=n,
         loss=loss, status="done", status_reason=None, excluded_reason=None)
    for n, loss in ((1e6, 3.2), (2e6, 3.0), (4e6, 3.1))
]
with tempfile.TemporaryDirectory() as folder:
    isoflop.analysis.fit_table(rows, Path(folder))
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
    fits = fit_rows(rows)
    assert len(fits.excluded) + sum(map(len, fits.groups.values())) == len(rows)
    for optimum in fits.optima:
        missing = optimum.status in ("not_convex", "flat", "too_few")
        assert (optimum.x_opt is None) == (optimum.loss_opt is None) == missing
        if optimum.x_opt is not None:
            assert optimum.grid_lo is not None
            assert optimum.grid_hi is not None
            assert optimum.grid_lo <= optimum.x_opt <= optimum.grid_hi
    for law in fits.laws:
        axis = "n_params" if law.axis == "loss" else law.axis
        interior = [o for o in fits.optima_of(law.arch, axis) if o.status == "interior"]
        assert law.n_points <= len(interior)
        assert law.exponent is None or law.n_points >= 2
    # The same rows without the groups that end in a bound give the same laws.
    bounds = {(o.arch, o.budget_flops) for o in fits.optima if o.is_bound}
    kept = [r for r in rows if (r["arch"], r["budget_flops"]) not in bounds]
    laws = {(law.arch, law.axis): law.log_coefficient for law in fit_rows(kept).laws}
    for law in fits.laws:
        axis = "n_params" if law.axis == "loss" else law.axis
        sources = fits.optima_of(law.arch, axis)
        if all((o.arch, o.budget_flops) not in bounds or o.is_bound for o in sources):
            assert laws.get((law.arch, law.axis)) == law.log_coefficient
    assert fit_rows(rng.sample(rows, len(rows))).laws == fits.laws
    optima_rows_for_display(fits)
