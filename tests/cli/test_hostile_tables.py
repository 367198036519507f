"""Tables that no fit can like: `fit` and `report` give a verdict, no traceback and no claim."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from analysis.made_report import draw_nothing
from analysis.made_runs import parabola, row, spaced
from isoflop.analysis.compare.differences import EXPONENTS
from isoflop.analysis.compare.multipliers import COMPARE
from isoflop.cli import main
from isoflop.tables import read_table

LONG = "a family of sixty letters, spaces, commas and a dollar $ign"


def equal_families(
    archs: Iterable[str],
    budgets: Iterable[float],
    sizes: int = 5,
    seeds: int = 1,
    noise: float = 0.002,
) -> list[dict[str, Any]]:
    """Families that do not differ, on the surface of Besiroglu et al. (2024)."""
    rng = random.Random(5)
    rows = []
    for arch in archs:
        for budget in budgets:
            for size in spaced(0.09 * budget**0.5, sizes) if sizes > 1 else [1e7]:
                loss = 1.8172 + 482.01 / size**0.3478 + 2085.43 / (budget / 6 / size) ** 0.3658
                rows += [
                    row(
                        arch,
                        budget,
                        size,
                        loss * math.exp(rng.gauss(0, noise)),
                        seed=s,
                        flops=budget,
                    )
                    for s in range(seeds)
                ]
    return rows


def spoilt(rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    return [{**one, **changes} for one in rows]


TWO = ("mlp", "swiglu")
ONE_BUDGET = equal_families(TWO, [1e17])
TABLES = {
    "one budget": (ONE_BUDGET, "No laws"),
    "one size": (equal_families(TWO, [1e17], sizes=1), "One size each"),
    "one run": (ONE_BUDGET[:1], "One size each"),
    "two sizes": (equal_families(TWO, [1e17, 1e18], sizes=2), "too few sizes"),
    "all diverged": (spoilt(ONE_BUDGET, status="diverged", loss=None), "no run has a usable loss"),
    "all NaN": (spoilt(ONE_BUDGET, loss=math.nan), "no run has a usable loss"),
    "all losses equal": (spoilt(ONE_BUDGET, loss=3.0), "flat at 1e17"),
    "a rising profile": (
        [{**one, "loss": parabola(1e5)(one["n_params"])} for one in ONE_BUDGET],
        "are bounds",
    ),
    "names of sixty letters": (equal_families([LONG, LONG.upper()], [1e17]), "No laws"),
}
LARGE = {
    "forty budgets": (equal_families(TWO, [1e17 * 1.2**i for i in range(40)]), "No intervals"),
    "forty families": (equal_families([f"family {i}" for i in range(40)], [1e17]), "No laws"),
    "ten thousand rows": (
        equal_families(TWO, [1e17 * 1.3**i for i in range(25)], sizes=10, seeds=20),
        "No intervals",
    ),
    "a thousand budgets": (
        [
            {**one, "budget_flops": one["budget_flops"] * (1 + 1e-5 * i)}
            for i, one in enumerate(equal_families(TWO, [1e17, 1e18, 1e19], sizes=167))
        ],
        "No two sizes of a family share a budget",
    ),
}


def written(rows: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / "runs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def check(
    rows: list[dict[str, Any]], words: str, folder: Path, n_boot: int, *, reports: bool = True
) -> None:
    """The verbs end well, say the words, and claim nothing."""
    asked = [str(written(rows, folder)), "--out", str(folder / "out"), "--n-boot", str(n_boot)]
    said = CliRunner().invoke(main, ["fit", *asked], catch_exceptions=False)
    assert (said.exit_code, said.stderr) == (0, "")
    assert words in said.stdout
    if reports:
        made = CliRunner().invoke(main, ["report", *asked], catch_exceptions=False)
        assert made.exit_code == 0
        assert (folder / "out" / "report.md").read_text("utf-8").startswith("# IsoFLOP report")
    for schema in (COMPARE, EXPONENTS):
        table = read_table(folder / "out" / f"{schema.table}.parquet", schema)
        assert {one["order_claimed"] for one in table} <= {"none"}


@pytest.mark.parametrize("case", TABLES)
def test_a_poor_table_gets_a_verdict(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    check(*TABLES[case], tmp_path, n_boot=20 if case == "one budget" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE)
def test_a_large_table_gets_a_verdict(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    # A report fits once more, and is of tables of the same kinds above.
    check(*LARGE[case], tmp_path, n_boot=0, reports=False)


@pytest.mark.parametrize("name", ["\x1b[2J", "tab\tname", "two\nlines", "‮right to left"])
@pytest.mark.parametrize("verb", ["fit", "report"])
def test_control_characters_in_a_name_are_refused_in_a_line(
    verb: str, name: str, tmp_path: Path
) -> None:
    path = written(spoilt(ONE_BUDGET, arch=name), tmp_path)
    result = CliRunner().invoke(main, [verb, str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "without control characters" in result.stderr
    assert not (tmp_path / "out").exists()
