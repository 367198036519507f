"""The report of a study whose families have one size each: losses, no optima, no empty tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from analysis.made_runs import row
from isoflop.analysis.compare.one_size import SEED_MEANS
from isoflop.analysis.fit import FitOptions, fit_rows
from isoflop.analysis.hypotheses import HYPOTHESES
from isoflop.analysis.report import make_document, write_report
from isoflop.analysis.report.document import Document, Items, Table
from isoflop.analysis.report.source import source_of
from isoflop.tables import read_table

STUDY = {
    "name": "made",
    "archs": ["peer", "alpha", "lost"],
    "hypotheses": [
        {"id": "H1", "claim": "alpha is better", "decide": "seed_mean(alpha) < seed_mean(peer)"},
        {"id": "H2", "claim": "by optima", "decide": "loss(alpha) < loss(peer)"},
    ],
}
GAPS = {"peer": 0.0, "alpha": -0.05, "lost": 0.0}


def runs() -> list[dict[str, Any]]:
    made = [
        row(arch, 1e11, 1e5, 3.0 * math.exp(gap + 0.01 * seed + 0.001 * seed * gap), seed=seed)
        for arch, gap in GAPS.items()
        for seed in range(3)
    ]
    made[-1].update(status="diverged", loss=None, run_id="ab" * 32)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, Path]:
    folder = tmp_path_factory.mktemp("study")
    table = folder / "runs.parquet"
    table.write_bytes(b"anything")
    (folder / "plan.json").write_text(json.dumps({"study": STUDY}), encoding="utf-8")
    fits = fit_rows(runs(), FitOptions(n_boot=20))
    source = source_of(table, runs())
    return write_report(fits, source, folder).document, folder


def test_there_is_no_section_on_what_one_size_does_not_have(made: tuple[Document, Path]) -> None:
    document, folder = made
    keys = [section.key for section in document.sections]
    assert keys == ["findings", "hypotheses", "sizes", "validity", "runs", "checklist", "source"]
    assert "multiplier over" not in (folder / "report.md").read_text()


def test_the_findings_are_paired_differences_to_the_studys_first_arch(
    made: tuple[Document, Path],
) -> None:
    (findings,) = [s for s in made[0].sections if s.key == "findings"]
    (items,) = [block for block in findings.blocks if isinstance(block, Items)]
    count, better, lost = items.items
    assert count == "1 of 1 differences of losses claimed, at 5 % for all together."
    assert better.startswith(
        "At 1e11 FLOPs alpha's loss is 4.88 % lower than peer's (95 % interval"
    )
    assert "3 shared seeds" in better
    assert lost.startswith("At 1e11 FLOPs lost's loss is not compared with peer's")
    assert "lost abababababab diverged" in lost


def test_the_table_has_means_ratios_and_reasons(made: tuple[Document, Path]) -> None:
    (section,) = [s for s in made[0].sections if s.key == "sizes"]
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    places = {column.key: index for index, column in enumerate(table.columns)}
    rows = {line[0].text: line for line in table.rows}
    assert set(rows) == set(GAPS)
    assert rows["alpha"][places["loss"]].text == f"{3.0 * math.exp(-0.05 + 0.01 * 0.995):.4f}"
    assert rows["alpha"][places["order_claimed"]].text == "lower"
    assert rows["peer"][places["ratio"]].text == "–"
    assert rows["lost"][places["interval"]].text == "–"
    assert "diverged" in rows["lost"][places["note"]].text


def test_the_verdicts_follow_the_rules(made: tuple[Document, Path]) -> None:
    verdicts = read_table(made[1] / "hypotheses.parquet", HYPOTHESES)
    assert [line["verdict"] for line in verdicts] == ["supported", "undecided"]


def test_the_means_are_written_as_a_table(made: tuple[Document, Path]) -> None:
    lines = {line["arch"]: line for line in read_table(made[1] / "seed_means.parquet", SEED_MEANS)}
    assert lines["alpha"]["ratio"] == pytest.approx(math.exp(-0.05 * 1.001), rel=1e-12)
    assert (lines["alpha"]["n_shared"], lines["alpha"]["order_claimed"]) == (3, "lower")
    # One comparison has no others to share its 5 % with.
    assert lines["alpha"]["ci_lo_simultaneous"] == pytest.approx(lines["alpha"]["ci_lo"])
    assert lines["lost"]["ci_hi_simultaneous"] is None
    assert (lines["peer"]["reference"], lines["peer"]["ratio"]) == (None, None)
    assert lines["lost"]["ci_lo"] is None
    assert "diverged" in lines["lost"]["note"]


def test_a_second_size_brings_the_optima_back() -> None:
    table = [*runs(), row("peer", 1e11, 2e5, 3.0, seed=0)]
    fits = fit_rows(table, FitOptions(n_boot=0))
    path = Path(__file__)
    document = make_document(fits, source_of(path, table))
    assert "optima" in [section.key for section in document.sections]


def test_what_was_executed_of_shared_trunks_is_told_once_for_a_run(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    path.write_bytes(b"anything")
    rows = runs()
    assert source_of(path, rows).executed is None
    for index, one in enumerate(rows):
        one.update(flops=4e11, flops_spent=1e11, wall_s=7200.0, wall_s_spent=1800.0)
        one["run_id"] = f"{index:064x}"
    # One was not timed, one has no result, one stands under two budgets; of others may be anything.
    rows[0]["wall_s_spent"] = None
    rows[1].update(flops_spent=None, wall_s_spent=None)
    told = [*rows, dict(rows[2]), {"flops_spent": 1.0, "flops": 1.0}, {"flops_spent": "many"}]
    assert len(rows) == 9
    source = source_of(path, told)
    assert source.executed is not None
    assert source.executed.startswith("8e11 of 3.2e12 FLOPs, 3.5 of 14 hours: ")
    document = make_document(fit_rows(rows, FitOptions(n_boot=20)), source)
    (checklist,) = [section for section in document.sections if section.key == "checklist"]
    assert source.executed in repr(checklist)
    rows[0].update(wall_s=None)
    assert ", " not in (source_of(path, rows[:1]).executed or "").split(":")[0]
