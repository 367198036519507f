"""What `isoflop fit` shows: columns whole in 80 characters, and what to make of the numbers."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from analysis.made_report import draw_nothing
from analysis.made_runs import curve, parabola, row, spaced, study
from isoflop.analysis.compare.multipliers import compare_archs
from isoflop.analysis.compare.one_size import natural_order, seed_means
from isoflop.analysis.fit import FitOptions, Fits, fit_rows
from isoflop.analysis.optima import OPTIMA
from isoflop.analysis.points import select_points
from isoflop.analysis.validity.attention import attention
from isoflop.cli import main
from isoflop.cli.fit import (
    excluded_lines,
    laws_table,
    multiplier_rows,
    multipliers_table,
    optima_table,
    reading_notes,
)
from isoflop.tables import read_table

LEFT_OUT = {
    optima_table: ("loss interval", "perplexity"),
    laws_table: (),
    multipliers_table: (),
}


LONG = ["transformer_with_gated_attention_and_mu_initialisation_00_v1", "y" * 60]
LONG += [LONG[0].replace("_00_", "_01_")]


def noisy(archs: list[str]) -> list[dict[str, Any]]:
    noise = random.Random(3)
    rows = study(archs, [1e17, 1e18, 1e19])
    return [
        {**one, "loss": one["loss"] * (1 + noise.gauss(0, 1e-3)), "flops": one["budget_flops"]}
        for one in rows
    ]


@pytest.fixture(scope="module")
def fits() -> Fits:
    return fit_rows(noisy(["swiglu", "sgatlin"]), FitOptions(n_boot=30))


def shown(table: Any, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.mark.parametrize("make", LEFT_OUT, ids=lambda make: make.__name__)
def test_a_narrow_terminal_gets_fewer_columns_and_none_cut_short(make: Any, fits: Fits) -> None:
    for width, absent in ((80, LEFT_OUT[make]), (140, ())):
        table, left_out = make(fits, width)
        assert left_out == absent
        text = shown(table, width)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width


def test_the_answer_is_among_the_tables(fits: Fits) -> None:
    rows = multiplier_rows(fits)
    assert [(line["arch"], line["budget"]) for line in rows] == [
        ("sgatlin", "1e17"),
        ("sgatlin", "1e18"),
        ("sgatlin", "1e19"),
    ]
    estimate = compare_archs(fits, resources=("flops",))[0]
    assert rows[0]["multiplier"] == f"{estimate.multiplier:.2f}"
    assert any("compute that swiglu needs" in note for note in reading_notes(fits))


@pytest.mark.slow
@pytest.mark.parametrize(("share", "words"), [(0.97, "extrapolated"), (0.9, "too far")])
def test_a_claim_beyond_the_measured_losses_says_so(share: float, words: str) -> None:
    better = [{**one, "loss": one["loss"] * share} for one in noisy(["sgatlin"])]
    rows = multiplier_rows(fit_rows(noisy(["swiglu"]) + better, FitOptions(n_boot=30)))
    assert rows[-1]["claimed"] == f"better ({words})"


def test_the_notes_say_what_c_is_and_how_many_draws_of_a_law_failed(fits: Fits) -> None:
    nominal, achieved = (
        reading_notes(replace(fits, options=replace(fits.options, law_budget=budget)))
        for budget in ("nominal", "achieved")
    )
    assert "C the nominal budget" in nominal[0]
    assert "C the mean of the FLOPs that the runs achieved" in achieved[0]
    assert reading_notes(fits) == achieved
    assert "gave no law" not in nominal[-1]
    lossy = tuple(
        replace(law, n_failed=823 if law.axis == "n_tokens" and law.arch == "sgatlin" else 3)
        for law in fits.laws
    )
    note = reading_notes(replace(fits, laws=lossy))[-1]
    assert "823 draws of sgatlin's D* gave no law, the most of any" in note


def test_a_bound_names_the_command_that_helps() -> None:
    edges = [*study(["mlp"], [1e17]), *curve(parabola(1e6), spaced(1e8), "peer", 1e17)]
    fits = fit_rows(edges, FitOptions(n_boot=0))
    (sentence,) = [line for line in attention(fits) if "bound" in line]
    assert sentence.startswith("1 optimum is a bound")
    assert "at 1e17 of peer; `isoflop refine`" in sentence
    assert any(note.startswith("No laws") for note in reading_notes(fits))


def test_rows_that_enter_no_fit_are_named() -> None:
    bad = [row("mlp", 1e17, 1e7 * (1 + i), -1.0) for i in range(7)]
    missing = [row("mlp", 1e17, 1e6, None, status="missing")]
    lines = excluded_lines(fit_rows(bad + missing, FitOptions(n_boot=0)))
    assert lines[0] == "  mlp at 1e17, 10M parameters: bad loss (loss is -1.0)"
    assert len(lines) == 6
    assert lines[-1] == "  and 2 more bad loss, listed by `isoflop report`"


def test_families_of_one_size_come_in_natural_order() -> None:
    labels = ["experts/36", "experts/256", "experts/1024", "lr/1.5e-3", "lr/3e-3", "lr/1.2e-2"]
    rows = [row(label, 1e17, 1e7, 3.0) for label in reversed(labels)]
    assert [mean.arch for mean in seed_means(select_points(rows))] == labels
    assert natural_order(("a", 1.0)) < natural_order(("a", 2.0)) < natural_order(("a1", 1.0))


@pytest.mark.parametrize("verb", ["fit", "report"])
def test_a_folder_without_a_table_says_what_is_missing(tmp_path: Path, verb: str) -> None:
    result = CliRunner().invoke(main, [verb, str(tmp_path)])
    assert result.exit_code == 2
    assert "plan.json or runs.parquet" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_report_of_several_files_of_several_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    table = pd.DataFrame(noisy(["swiglu"])).assign(status="finished")
    table.loc[0, "status"] = "crashed"
    table[::2].to_csv(tmp_path / "part-a.csv.gz")
    lines = [json.dumps(one) for one in table[1::2].to_dict("records")]
    (tmp_path / "part-b.jsonl").write_text("\n".join(lines))
    table.to_csv(tmp_path / "whole.csv", index=False)
    for source in ("whole.csv", "part-*"):
        out = tmp_path / source.strip("*")
        out = out.with_name(f"{out.name}-out")
        asked = ["report", str(tmp_path / source), "--out", str(out), "--n-boot", "0"]
        result = CliRunner().invoke(main, asked, catch_exceptions=False)
        assert (result.exit_code, result.stderr) == (0, "")
    parts, whole = (
        read_table(o / "optima.parquet", OPTIMA) for o in sorted(tmp_path.glob("*-out"))
    )
    assert parts == whole
    assert "1 run excluded: 1 failed" in (tmp_path / "part--out" / "report.md").read_text()


def test_a_plan_without_results_is_no_empty_table(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("arch,budget_flops,n_params,n_tokens,flops,loss\nmlp,1e17,1e7,1e9,1e17,\n")
    result = CliRunner().invoke(main, ["fit", str(table), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Nothing to fit yet: no run has a usable loss.")


def test_long_names_give_way_to_numbers() -> None:
    fits = fit_rows(noisy(LONG), FitOptions(n_boot=20))
    for make in LEFT_OUT:
        table, _ = make(fits, 80)
        rows = [line.split() for line in shown(table, 80).splitlines() if "…" in line]
        # All names are cut, each to another one, and no number is.
        assert len({row[0] for row in rows}) == len(LONG) - (make is multipliers_table)
        assert not any("…" in cell for row in rows for cell in row[1:-1])
