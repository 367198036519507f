"""A resource is one record: a new one is compared, tabled, drawn and may stand in a rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.made_runs import study
from isoflop.analysis import FitOptions, fit_optima, select_points
from isoflop.analysis.compare.multipliers import COMPARE, compare_archs
from isoflop.analysis.figures import draw_page
from isoflop.analysis.hypotheses import judge
from isoflop.analysis.points import Point
from isoflop.analysis.report.comparison import comparison_section
from isoflop.analysis.report.document import Table
from isoflop.analysis.resources import RESOURCES, Resource
from isoflop.study import Hypothesis
from isoflop.tables import read_table, write_table


def memory_seconds(point: Point) -> float | None:
    if point.wall_s is None or point.peak_mem_bytes is None:
        return None
    return point.wall_s * point.peak_mem_bytes


def test_a_new_resource_is_one_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resource = Resource(
        name="memory_s",
        words="memory held",
        label="Memory held",
        unit="byte seconds",
        measure=memory_seconds,
    )
    monkeypatch.setitem(RESOURCES, resource.name, resource)
    rows = [
        {**row, "wall_s": row["budget_flops"] / 1e9, "peak_mem_bytes": 16 * row["n_params"]}
        for row in study(("mlp", "swiglu"))
    ]
    options = FitOptions(n_boot=20, method="parabola")
    fits = fit_optima(select_points(rows), options, methods=("parabola",), axes=("n_params",))
    fits = replace(fits, compare=compare_archs(fits))

    write_table(tmp_path / "compare.parquet", fits.compare, COMPARE)
    multipliers = {
        (row["arch"], row["budget_flops"], row["resource"]): row["multiplier"]
        for row in read_table(tmp_path / "compare.parquet", COMPARE)
    }
    for budget in fits.budgets:
        assert multipliers["mlp", budget, "memory_s"] == pytest.approx(
            multipliers["mlp", budget, "wall_s"] * multipliers["mlp", budget, "n_params"], rel=1e-6
        )
    section = comparison_section(fits.compare, (), fits.unit)
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert any("memory held" in [cell.text for cell in row] for row in table.rows)
    labels = [axes.get_xlabel() for axes in draw_page(fits, "resources").axes]
    assert "Memory held (byte seconds)" in labels
    rule = "multiplier(mlp, swiglu, memory_s) > 0 at the largest budget"
    (verdict,) = judge([Hypothesis(id="H1", claim="less memory held", decide=rule)], fits)
    assert verdict.detail.startswith("3e11 ")
