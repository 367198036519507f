"""The whole report of a table: statements, exclusions, verdicts, checklist, digest, same bytes."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from markupsafe import escape

from analysis.made_report import FAMILIES, draw_nothing, full_table
from isoflop.analysis.compare.differences import ExponentDifference
from isoflop.analysis.compare.multipliers import Comparison
from isoflop.analysis.fit import FitOptions, Fits, fit_rows
from isoflop.analysis.report import make_document, write_report
from isoflop.analysis.report.comparison import comparison_sentence, exponent_sentence
from isoflop.analysis.report.document import Document, Items, Table
from isoflop.analysis.report.source import Source, source_of
from isoflop.cli.report import report as report_command
from isoflop.texts import has_control

STUDY = {
    "name": "made",
    "convention": "6n",
    "recipe": "micro-v1",
    "match": "ladder",
    "source": "sotu-embedded",
    "tokenizer": "byte",
    "seq_len": 128,
    "batch_size": 8,
    "max_epochs": 4.0,
    "hypotheses": [
        {
            "id": "H1",
            "claim": "sgatlin reaches swiglu's loss with less compute",
            "decide": "multiplier(sgatlin, swiglu) lower bound > 1 at every budget",
        },
        {"id": "H2", "claim": "it is nice", "decide": "by taste"},
    ],
}


@pytest.fixture(scope="module")
def fits() -> Fits:
    return fit_rows(full_table(), FitOptions(n_boot=24))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    table = tmp_path / "runs.parquet"
    table.write_bytes(b"anything")
    (tmp_path / "plan.json").write_text(json.dumps({"study": STUDY}), encoding="utf-8")
    return source_of(table, full_table())


def tables(document: Document, key: str) -> dict[str, Table]:
    (section,) = [s for s in document.sections if s.key == key]
    return {block.caption: block for block in section.blocks if isinstance(block, Table)}


def texts(table: Table, *labels: str) -> list[tuple[str, ...]]:
    places = [[c.label for c in table.columns].index(label) for label in labels]
    return [tuple(row[place].text for place in places) for row in table.rows]


def filled(kind: Any, **values: Any) -> Any:
    """Make a dataclass with these values and None in its other fields."""
    return kind(**{field.name: values.get(field.name) for field in dataclasses.fields(kind)})


def a_comparison(**changes: Any) -> Comparison:
    made = filled(
        Comparison,
        arch="sgatlin",
        reference="swiglu",
        budget_flops=1e18,
        resource="flops",
        multiplier=1.8,
        ci_lo=1.6,
        ci_hi=2.0,
        ci_lo_simultaneous=1.5,
        ci_hi_simultaneous=2.2,
        local_slope=-0.2,
        extrapolated=False,
        status="estimate",
        order_claimed="higher",
        axis="n_params",
        method="parabola",
        confidence=0.95,
        bootstrap_kind="residual",
        n_boot=1000,
        n_failed=0,
    )
    return dataclasses.replace(made, **changes)


def test_a_claim_is_made_when_its_interval_allows() -> None:
    assert comparison_sentence(a_comparison()) == (
        "At 1e18 FLOPs swiglu needs 1.80 times the compute of sgatlin for the same loss "
        "(95 % interval 1.60 to 2.00, for all together 1.50 to 2.20)."
    )
    worse = a_comparison(
        multiplier=0.5,
        ci_lo=0.4,
        ci_hi=0.8,
        ci_lo_simultaneous=0.25,
        ci_hi_simultaneous=1.0,
        order_claimed="lower",
    )
    assert comparison_sentence(worse) == (
        "At 1e18 FLOPs sgatlin needs 2.00 times the compute of swiglu for the same loss "
        "(95 % interval 1.25 to 2.50, for all together 1.00 to 4.00)."
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"ci_lo": 0.9, "order_claimed": "none"},
        {"ci_lo": None, "ci_hi": None, "order_claimed": "none"},
        {"status": "lower_bound", "ci_lo": None, "ci_hi": None, "order_claimed": "none"},
    ],
)
def test_no_order_is_claimed_without_a_clear_interval(changes: dict[str, Any]) -> None:
    assert "no order is claimed" in comparison_sentence(a_comparison(**changes))


def test_an_order_that_failed_draws_could_undo_is_explained() -> None:
    row = a_comparison(order_claimed="none", n_failed=90)
    assert "no order is claimed, since 90 of 1000 draws lost an optimum" in comparison_sentence(row)
    few = a_comparison(order_claimed="none", n_failed=20)
    assert "no order is claimed with all comparisons counted" in comparison_sentence(few)


def test_bounds_and_extrapolations_say_what_they_are() -> None:
    bound = a_comparison(status="upper_bound", ci_lo=None, ci_hi=None, order_claimed="none")
    assert "is at most 1.80 (a bound" in comparison_sentence(bound)
    beyond = comparison_sentence(a_comparison(extrapolated=True))
    assert "its loss is beyond those measured of swiglu" in beyond
    row = a_comparison(order_claimed="none", extrapolated=True)
    said = comparison_sentence(row, is_beyond=True)
    assert "beyond swiglu's budgets: no order is claimed" in said
    wild = a_comparison(multiplier=8.7e14, ci_lo=2.0, ci_hi=1e20, order_claimed="none")
    assert "swiglu needs > 1000 times the compute" in comparison_sentence(wild)
    assert "interval 2.00 to > 1000" in comparison_sentence(wild)
    nothing = a_comparison(status="no_data", multiplier=None, ci_lo=None, ci_hi=None)
    assert "no multiplier over swiglu in compute: the table lacks" in comparison_sentence(nothing)


@pytest.mark.parametrize(
    ("difference", "low", "high", "claimed", "expected"),
    [
        (0.01, -0.01, 0.03, "none", "is not shown to differ from swiglu's (difference -0.0100"),
        (0.02, 0.01, 0.03, "higher", "is higher than swiglu's by 0.0200"),
        (-0.02, -0.03, -0.01, "lower", "is lower than swiglu's by 0.0200"),
        (0.02, None, None, "none", "without an interval; no order is claimed"),
        (None, None, None, "none", "too few optima"),
    ],
)
def test_exponents_in_words(
    difference: float | None, low: float | None, high: float | None, claimed: Any, expected: str
) -> None:
    row = filled(
        ExponentDifference,
        arch="sgatlin",
        reference="swiglu",
        axis="n_params",
        method="parabola",
        difference=difference,
        ci_lo=low,
        ci_hi=high,
        order_claimed=claimed,
        confidence=0.95,
        bootstrap_kind="residual",
        n_boot=1000,
        n_failed=0,
        status="estimate",
    )
    assert expected in exponent_sentence(row)


def test_every_exclusion_is_listed_with_its_reason(fits: Fits, source: Source) -> None:
    found = tables(make_document(fits, source), "runs")["Excluded runs"]
    assert texts(found, "Family", "Reason", "Detail") == [
        ("mlp", "diverged", "loss was NaN"),
        ("swiglu", "excluded in table", "learning rate of <another> study | wrong"),
    ]


def test_every_run_of_the_fit_is_listed(fits: Fits, source: Source) -> None:
    found = tables(make_document(fits, source), "runs")["Runs in the fits"]
    assert len(found.rows) == len(full_table()) - 2


def test_an_edge_is_a_bound_in_every_table(fits: Fits, source: Source) -> None:
    document = make_document(fits, source)
    for caption, sign in (("Optima: N* (parameters)", "< "), ("Optima: D* (tokens)", "> ")):
        rows = texts(tables(document, "optima")[caption], "Status", caption[8:], "Loss")
        edges = [row for row in rows if row[0] != "interior"]
        assert len(edges) == 1
        assert edges[0][1].startswith(sign)
        assert edges[0][2].startswith("≤ ")


def test_hypotheses_are_judged(fits: Fits, source: Source) -> None:
    found = tables(make_document(fits, source), "hypotheses")["Hypotheses"]
    assert texts(found, "Id", "Verdict") == [("H1", "supported"), ("H2", "undecided")]


def test_findings_name_the_known_gain(fits: Fits, source: Source) -> None:
    """The made families differ in compute by 1.9 / 1.2 = 1.58."""
    (section,) = [s for s in make_document(fits, source).sections if s.key == "findings"]
    items, *_ = [block for block in section.blocks if isinstance(block, Items)]
    found = [
        float(match[1])
        for item in items.items
        if (match := re.search(r"1e1[89] FLOPs swiglu needs ([\d.]+) times .* of sgatlin", item))
    ]
    assert found == pytest.approx([1.58, 1.58], rel=0.08)


def test_the_checklist_is_filled_from_the_study_and_honest_without(
    fits: Fits, source: Source
) -> None:
    with_study = tables(make_document(fits, source), "checklist")
    assert list(with_study) == ["Form", "Training", "Data collection", "Fitting"]
    answers = dict(texts(with_study["Training"], "Question", "Answer"))
    assert answers["Recipe (optimizer, learning rate, schedule)"] == "micro-v1"
    assert answers["Seeds"] == "0, 1"
    alone = dataclasses.replace(source, study=None, columns=frozenset())
    answers = dict(
        texts(tables(make_document(fits, alone), "checklist")["Training"], "Question", "Answer")
    )
    assert answers["Tokenizer"] == answers["Training time"] == "not recorded"


def test_without_budgets_the_checklist_is_of_the_runs_that_laws_took(source: Source) -> None:
    rows = [{**row, "budget_flops": None} for row in full_table()]
    document = make_document(
        fit_rows(rows, FitOptions(n_boot=0)), dataclasses.replace(source, study=None)
    )
    parts = tables(document, "checklist")
    answers = {q: a for part in parts.values() for q, a in texts(part, "Question", "Answer")}
    num_runs = len(
        tables(document, "runs")["Runs without a budget, in laws over all runs only"].rows
    )
    assert answers["Runs in the fits"] == str(num_runs)
    assert "sgatlin" in answers["Families"]
    assert " to " in answers["Parameters"]
    assert answers["Power laws"] == answers["Optima"] == "none: no run has a budget"
    assert answers["Validation"] == "none"
    assert "power laws" not in answers["Equations"]
    assert "Runs in the fits" not in tables(document, "runs")


def test_the_source_names_input_and_versions(fits: Fits, source: Source) -> None:
    found = dict(
        texts(
            tables(make_document(fits, source), "source")["Where this comes from"], "What", "Value"
        )
    )
    assert found["sha256 of the input"] == hashlib.sha256(b"anything").hexdigest()
    assert {"isoflop", "numpy", "python", "sha256 of plan.json"} <= set(found)


@pytest.mark.slow
def test_the_report_does_not_depend_on_the_order_of_the_rows(fits: Fits, source: Source) -> None:
    other = fit_rows(full_table()[::-1], fits.options)
    assert make_document(other, source) == make_document(fits, source)


def test_a_table_that_gives_nothing_gives_a_report(source: Source) -> None:
    for rows in ([], full_table()[2:3], full_table()[:1]):
        document = make_document(fit_rows(rows, FitOptions(n_boot=20)), source)
        assert [section.key for section in document.sections][-1] == "source"


def test_texts_of_a_study_reach_no_terminal_as_they_are(
    fits: Fits, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    study = STUDY | {"hypotheses": [{"id": "H", "claim": "12\xa0%\x1b[2J\u202e", "decide": "x"}]}
    (tmp_path / "plan.json").write_text(json.dumps({"study": study}), encoding="utf-8")
    (tmp_path / "runs.parquet").write_bytes(b"anything")
    hostile = source_of(tmp_path / "runs.parquet", full_table())
    for path in write_report(fits, hostile, tmp_path / "out").text_paths:
        text = path.read_text("utf-8")
        assert not has_control(text.replace("\n", "").replace("\t", ""))
        assert "x1b" in text


@pytest.mark.slow
def test_the_files_are_whole_and_the_same_each_time(
    fits: Fits, source: Source, tmp_path: Path
) -> None:
    one = write_report(fits, source, tmp_path / "one")
    other = write_report(fits, source, tmp_path / "other")
    pairs = zip(one.paths, other.paths, strict=True)
    assert [a.name for a, b in pairs if a.read_bytes() != b.read_bytes()] == []
    page = one.html_path.read_text(encoding="utf-8")
    assert "<img" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert str(escape(FAMILIES[3])) in page
    assert FAMILIES[3] not in page
    linked = set(re.findall(r"\]\(plots/(\w+)\.png\)", one.markdown_path.read_text("utf-8")))
    written = {path.stem for path in one.plot_paths}
    assert linked == written
    assert {path.suffix for path in one.plot_paths} == {".png", ".svg", ".pdf"}


@pytest.mark.slow
def test_the_command_reports_any_table(tmp_path: Path) -> None:
    rows = [one for one in full_table() if one["arch"] in FAMILIES[:2]]
    table = tmp_path / "mine.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    asked = [str(table), "--out", str(tmp_path / "out"), "--n-boot", "0", "--reference", "mlp"]
    result = CliRunner().invoke(report_command, asked, catch_exceptions=False)
    assert result.exit_code == 0
    assert [Path(line).name for line in result.output.splitlines()][:3] == [
        "report.md",
        "report.html",
        "report.tex",
    ]
    assert "mlp needs" in (tmp_path / "out" / "report.md").read_text("utf-8")
    assert {"optima.parquet", "fits.parquet"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
