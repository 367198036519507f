"""The claims table says what the studies' tables say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.made_scripts import script
from isoflop.analysis.hypotheses import HYPOTHESES
from isoflop.tables import write_table

claims = script("claims")


def test_the_committed_page_is_what_the_script_writes() -> None:
    assert claims.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "undecided"], "undecided"),
        (["supported", "undecided", "not supported"], "not supported"),
        ([], "undecided"),
    ],
)
def test_one_rule_that_fails_decides_a_claim(verdicts: list[str], expected: str) -> None:
    assert claims.together(verdicts) == expected


def test_rules_belong_to_the_claim_they_are_named_after(tmp_path: Path) -> None:
    rows = [
        {"id": name, "claim": "", "decide": name, "verdict": "supported", "detail": "1"}
        for name in ("C1-mlp", "C1b-mlp", "C1", "C10")
    ]
    folder = tmp_path / "cpu_reference"
    folder.mkdir()
    write_table(folder / "hypotheses.parquet", rows, HYPOTHESES)
    before = {"cpu_reference": {row["id"]: "undecided" for row in rows}}
    (tmp_path / claims.BEFORE).write_text(json.dumps(before))
    (claim,) = (one for one in claims.CLAIMS if one.id == "C1")
    found = claims.findings(claim, tmp_path)
    assert [finding.rule for finding in found] == ["C1-mlp", "C1"]
    assert [(finding.verdict, finding.before) for finding in found] == [
        ("supported", "undecided")
    ] * 2


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter"
    assert claims.with_block(page, "new") == (f"before\n{claims.BEGIN}\n\nnew\n{claims.END}\nafter")
