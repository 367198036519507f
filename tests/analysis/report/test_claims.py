"""What the findings say of an order is what the tables say, row by row."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from typing import Any

import pytest

from analysis.made_report import full_table
from analysis.made_runs import curve, parabola, row, spaced
from isoflop.analysis.compare.differences import exponent_differences, pair_orders
from isoflop.analysis.compare.multipliers import Comparison, compare_archs
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.points import select_points
from isoflop.analysis.report.comparison import (
    comparison_sentence,
    exponent_sentence,
    findings,
)
from isoflop.analysis.validity.attention import budgets_beyond, claimed_notes
from isoflop.cli.fit import multiplier_rows


def family(
    arch: str, budgets: tuple[float, ...], gain: float = 1.0, noise: float = 1e-3
) -> list[dict[str, Any]]:
    rng = random.Random(arch)
    rows = []
    for budget in budgets:
        best = math.sqrt(budget / 6)
        loss = parabola(best, 20 * (gain * budget) ** -0.05, bend=0.02)
        rows += [
            row(arch, budget, size, loss(size) * math.exp(rng.gauss(0, noise)), flops=budget)
            for size in spaced(best, num=7)
        ]
    return rows


BUDGETS = (1e17, 1e18, 1e19)
STUDIES = {
    "everything": full_table(),
    "equal and beyond": family("swiglu", BUDGETS)
    + family("equal", BUDGETS, noise=4e-3)
    + family("beyond", (1e15, 1e19, 1e20, 1e21), gain=1.3)
    + curve(parabola(1.0), spaced(1e9), "edge", 1e18),
    "far better and far worse": family("swiglu", BUDGETS)
    + family("better", BUDGETS, gain=1e6)
    + family("worse", BUDGETS, gain=1e-6),
    "one optimum of the reference": family("swiglu", (1e18,)) + family("new", BUDGETS, gain=2.0),
}


def compared(rows: list[dict[str, Any]]) -> Fits:
    fits = fit_optima(
        select_points(rows), FitOptions(n_boot=80), methods=("two_powers",), axes=("n_params",)
    )
    return dataclasses.replace(
        fits, compare=compare_archs(fits), exponents=exponent_differences(fits, ("n_params",))
    )


@pytest.fixture(scope="module", params=STUDIES)
def fits(request: pytest.FixtureRequest) -> Fits:
    return compared(STUDIES[request.param])


def order_said(sentence: str, line: Comparison) -> str:
    """The order of the arch and the reference that a reader takes from a sentence."""
    if "no order is claimed" in sentence:
        return "none"
    if "has no multiplier" in sentence:
        match = re.search(r"its loss is (lower|higher)", sentence)
        return {"lower": "higher", "higher": "lower"}[match[1]] if match else "none"
    worse = re.search(r" FLOPs (.*?) needs .* times the", sentence)
    assert worse is not None, sentence
    return {line.reference: "higher", line.arch: "lower"}[worse[1]]


def test_a_sentence_claims_the_order_of_its_row(fits: Fits) -> None:
    beyond = budgets_beyond(fits.compare)
    others = [line for line in fits.compare if line.arch != line.reference]
    for line in others:
        sentence = comparison_sentence(line, is_beyond=line.budget_flops in beyond)
        assert order_said(sentence, line) == line.order_claimed, sentence
    for difference in fits.exponents:
        sentence = exponent_sentence(difference)
        said = re.search(r" is (higher|lower) than ", sentence)
        assert (said[1] if said else "none") == difference.order_claimed, sentence


def test_the_terminal_claims_the_order_of_its_row(fits: Fits) -> None:
    words = {"higher": "better", "lower": "worse"}
    rows = [c for c in fits.compare if c.resource == "flops" and c.arch != c.reference]
    for line, shown in zip(rows, multiplier_rows(fits), strict=True):
        found = re.search("better|worse", shown["claimed"])
        assert (found[0] if found else None) == words.get(line.order_claimed)


def test_the_count_is_that_of_the_table(fits: Fits) -> None:
    rows = [c for c in fits.compare if c.resource == "flops" and c.arch != c.reference]
    claimed = sum(line.order_claimed != "none" for line in rows)
    if all(line.ci_lo is None and line.order_claimed == "none" for line in rows):
        assert (claimed, claimed_notes(fits)) == (0, [])
        return
    (note,) = [note for note in claimed_notes(fits) if "multipliers" in note]
    match = re.fullmatch(r"(\d+) of (\d+) multipliers claimed, at 5 % for all together\.", note)
    assert match is not None
    assert int(match[1]) == claimed
    assert claimed <= int(match[2]) <= len(rows)
    assert findings(fits)[0] == note


def test_of_forty_budgets_the_findings_are_those_of_the_largest() -> None:
    budgets = tuple(1e17 * 1.5**i for i in range(40))
    rows = family("swiglu", budgets) + family("better", budgets, gain=1.5)
    fits = fit_optima(
        select_points(rows), FitOptions(n_boot=0), methods=("two_powers",), axes=("n_params",)
    )
    fits = dataclasses.replace(fits, compare=tuple(compare_archs(fits)))
    lines = [line for line in fits.compare if line.arch == "better" and line.resource == "flops"]
    assert len(lines) == 40
    said = findings(fits)
    with_one = sorted((x for x in lines if x.multiplier), key=lambda x: -x.budget_flops)[:24]
    assert [x for x in said if x.startswith("At ")] == [comparison_sentence(x) for x in with_one]
    missing = sum(x.multiplier is None for x in lines)
    assert any(
        x.startswith("Of 16 further pairs") and f" {missing} have no multiplier" in x for x in said
    )


def test_no_order_is_claimed_beyond_the_budgets_of_the_reference() -> None:
    fits = compared(STUDIES["equal and beyond"])
    assert budgets_beyond(fits.compare) == {1e15, 1e20, 1e21}
    rows = [c for c in fits.compare if c.arch == "beyond" and c.resource == "flops"]
    outside = [line for line in rows if line.budget_flops in (1e15, 1e20, 1e21)]
    assert {line.order_claimed for line in outside} == {"none"}
    shown = [line for line in outside if line.multiplier is not None and line.ci_lo is not None]
    assert shown
    for line in shown:
        sentence = comparison_sentence(line, is_beyond=True)
        assert "beyond swiglu's budgets: no order is claimed" in sentence
    cells = {
        one["budget"]: one["claimed"] for one in multiplier_rows(fits) if one["arch"] == "beyond"
    }
    assert cells["1e20"] == "- (beyond budgets)"


def test_every_kind_of_row_is_among_the_studies() -> None:
    rows = [line for study in STUDIES.values() for line in compared(study).compare]
    rows = [line for line in rows if line.arch != line.reference]
    assert {line.order_claimed for line in rows} == {"higher", "lower", "none"}
    assert {line.status for line in rows} >= {"estimate", "lower_bound", "no_optimum", "no_data"}
    assert {line.extrapolated for line in rows} == {True, False, None}
    assert any(pair.claimed for pair in pair_orders(compared(STUDIES["everything"])))
