"""The tables of a plan in terminals of any width."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from isoflop.cli.plan_tables import left_out_lines, plan_overview, plan_summary, plan_table
from isoflop.plan.estimate import estimate_for
from isoflop.plan.planner import make_plan
from made_studies import micro

PLAN = make_plan(micro(budgets=(10**10, 2 * 10**10), archs=("mlp", "sgatlin")))
ESTIMATE = estimate_for(PLAN, Path("nowhere"))


def printed(table: Table, width: int) -> str:
    out = Console(file=io.StringIO(), width=width)
    out.print(table)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_what_is_shown_is_shown_whole(width: int) -> None:
    table, left_out = plan_table(PLAN, ESTIMATE, width)
    text = printed(table, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for run in PLAN.runs:
        assert run.run_id[:12] in text
    assert bool(left_out) == (width < 130)
    assert not set(left_out) & {"run", "budget", "arch", "size", "params", "tokens"}
    assert all(name not in text for name in left_out)


def test_what_does_not_fit_is_named() -> None:
    _, left_out = plan_table(PLAN, None, 80)
    (line,) = left_out_lines(left_out, "results/p")
    assert "non-emb" in line
    assert "isoflop show results/p" in line
    assert left_out_lines((), "results/p") == []


def test_the_overview_has_a_row_for_each_budget_and_arch() -> None:
    text = printed(plan_overview(PLAN, ESTIMATE), 80)
    assert "…" not in text
    rows = [line.split() for line in text.splitlines() if "e10" in line]
    assert [row[:4] for row in rows] == [
        [budget, arch, "2", "1–2"] for budget in ("1e10", "2e10") for arch in ("mlp", "sgatlin")
    ]


def test_expected_optima_are_a_line_for_each_arch() -> None:
    plan = make_plan(
        micro(budgets=(10**10, 2 * 10**10), archs=("mlp", "sgatlin"), sizes="auto", num_sizes=3)
    )
    lines = [line for line in plan_summary(plan) if line.startswith("expected")]
    assert len(lines) == 2
    assert all(" at 1e10, " in line and line.endswith(" at 2e10") for line in lines)
