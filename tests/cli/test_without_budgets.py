"""`isoflop fit` and `report` of tables without budgets, with near-equal ones, in other units."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main

COLUMNS = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss")


def loss(n_params: float, n_tokens: float) -> float:
    return 1.7 + 400 / n_params**0.34 + 400 / n_tokens**0.28


def written(folder: Path, rows: list[dict[str, Any]], name: str = "runs.csv") -> Path:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def grid() -> list[dict[str, Any]]:
    return [
        {
            "arch": arch,
            "n_params": n,
            "n_tokens": d,
            "flops": 6 * n * d,
            "loss": level * loss(n, d),
        }
        for arch, level in (("plain", 1.0), ("gated", 0.98))
        for n in np.geomspace(1e7, 1e9, 6).tolist()
        for d in (1.13 * np.geomspace(3e8, 5e10, 5)).tolist()
    ]


def profiles(below: float = 0.0) -> list[dict[str, Any]]:
    """Three budgets whose runs spend up to a share less, each its own."""
    random = np.random.default_rng(0)
    rows = []
    for budget in (1e18, 3e18, 1e19):
        for n in (budget / 120) ** 0.5 * 2.0 ** np.arange(-2.0, 3.0):
            spent = budget * (1 - below * random.random())
            d = spent / 6 / n
            rows.append(
                {
                    "arch": "plain",
                    "budget_flops": spent,
                    "n_params": n,
                    "n_tokens": d,
                    "flops": spent,
                    "loss": loss(n, d),
                }
            )
    return rows


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time, and have tests of their own."""
    monkeypatch.setattr("isoflop.analysis.fit.write_plots", lambda *_: ())
    monkeypatch.setattr("isoflop.analysis.report.write_figures", lambda *_: ((), defaultdict(str)))


def isoflop(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def test_no_budgets_leave_the_surface_and_the_frontier(tmp_path: Path) -> None:
    table, out = written(tmp_path, grid()), tmp_path / "out"
    asked = ("--out", out, "--n-boot", 20, "--reference", "plain")
    said = isoflop("fit", table, *asked)
    assert said.exit_code == 0
    assert "No run has a budget, so no optima." in said.stdout
    assert "the runs that no cheaper run beats" in said.stdout
    assert "60 runs without a budget: in laws over all runs only." in said.stdout
    laws = pq.read_table(out / "fits.parquet").to_pylist()
    kept = {(r["arch"], r["parameter"]): r for r in laws if r["form"] == "envelope"}
    assert set(kept) == {(a, p) for a in ("plain", "gated") for p in ("A", "alpha", "L_inf")}
    assert kept["plain", "alpha"]["budget"] == "achieved"
    compared = pq.read_table(out / "compare.parquet").to_pylist()
    assert {(r["arch"], r["method"], r["frontier"], r["order_claimed"]) for r in compared} == {
        ("gated", "envelope", "envelope", "none")
    }
    assert isoflop("report", table, *asked).exit_code == 0
    report = (out / "report.md").read_text("utf-8")
    assert "Families: 2. Budgets: 0. Runs in the fits: 60." in report
    assert "## Laws over all runs" in report
    assert "Runs that no cheaper run beats" in report


@pytest.mark.parametrize(
    "option",
    [("--round-budgets",), pytest.param(("--budgets", "auto"), marks=pytest.mark.slow)],
)
def test_achieved_flops_as_budgets_become_budgets(option: tuple[str, ...], tmp_path: Path) -> None:
    asked = ("fit", written(tmp_path, profiles(0.03)), "--out", tmp_path / "out", "--n-boot", 0)
    merged = isoflop(*asked, *option)
    assert merged.exit_code == 0
    assert "spread" in merged.stdout
    assert isoflop("report", *asked[1:], *option).exit_code == 0
    assert "**Budgets**" in (tmp_path / "out" / "report.md").read_text("utf-8")
    optima = pq.read_table(tmp_path / "out" / "optima.parquet").to_pylist()
    assert {row["status"] for row in optima if row["axis"] == "n_params"} == {"interior"}
    assert len({row["budget_flops"] for row in optima}) == 3


def test_budgets_are_sought_in_one_way_and_where_there_are_some(tmp_path: Path) -> None:
    both = isoflop("fit", written(tmp_path, grid()), "--budgets", "auto", "--round-budgets")
    assert (both.exit_code, both.stdout) == (2, "")
    assert "--round-budgets = with --budgets auto" in both.stderr
    nowhere = isoflop("fit", tmp_path / "runs.csv", "--budgets", "auto", "--out", tmp_path / "out")
    assert (nowhere.exit_code, len(nowhere.stderr.splitlines())) == (2, 1)
    assert "surface and the frontier" in nowhere.stderr
    assert not (tmp_path / "out").exists()


def test_a_unit_is_taken_where_the_table_does_not_say(tmp_path: Path) -> None:
    table, out = written(tmp_path, profiles()), tmp_path / "out"
    assert (
        isoflop("report", table, "--out", out, "--n-boot", 0, "--loss-unit", "bpb").exit_code == 0
    )
    report = (out / "report.md").read_text("utf-8")
    assert "bits per byte" in report
    assert "erplexity" not in report
    assert "nats" not in report
    run = written(tmp_path, profiles()[:1], "run.csv")
    assert "val_err" in isoflop("gate", table, run, "--loss-unit", "val_err").stdout
    achieved = written(tmp_path, profiles(0.03), "achieved.csv")
    asked = ("--budget", "3e19", "--loss-unit", "bits", "--round-budgets")
    predicted = isoflop("predict", achieved, *asked)
    assert "3e19" in predicted.stdout
    assert predicted.exit_code == 0
    assert "bits per token" in predicted.stdout


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("perplexity", "ln(perplexity)"),
        ("bits_per_tokn", "say bits_per_token"),
        (" ", "or the name of a metric"),
        ("a\nb", "or the name of a metric"),
    ],
)
def test_what_is_no_unit_is_refused(unit: str, words: str, tmp_path: Path) -> None:
    table = written(tmp_path, profiles())
    said = isoflop("fit", table, "--out", tmp_path / "out", "--loss-unit", unit)
    assert said.exit_code == 2
    assert words in said.stderr
    assert not (tmp_path / "out").exists()


def test_a_table_that_states_its_unit_takes_no_other(tmp_path: Path) -> None:
    reference = Path("results/cpu_reference")
    said = isoflop("gate", reference, reference, "--loss-unit", "bpb")
    assert said.exit_code == 2
    assert "must be nats_per_token, which" in said.stderr


def test_perplexities_and_near_budgets_are_named(tmp_path: Path) -> None:
    rows = [{**row, "loss": np.exp(row["loss"])} for row in profiles(0.03)]
    said = isoflop("fit", written(tmp_path, rows), "--out", tmp_path / "out", "--n-boot", 0)
    assert "(15 budgets are 3 within" in said.stdout
    assert "--round-budgets merges them" in said.stdout
    assert "Attention: The median loss is" in said.stdout
    assert "--loss-unit perplexity" in said.stdout
