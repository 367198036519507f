"""Every check that needs attention is one sentence, on tables in which it is planted."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from analysis.made_runs import curve, parabola, row, spaced, study
from isoflop.analysis.compare.multipliers import compare_archs
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.points import select_points
from isoflop.analysis.screening import Repeats
from isoflop.analysis.validity import Finding, Validity
from isoflop.analysis.validity.attention import attention, claimed_notes
from isoflop.analysis.validity.design import (
    budget_findings,
    centre_findings,
    duplicate_findings,
    near_budget_findings,
    scatter_findings,
)
from isoflop.analysis.validity.held_out import held_out_findings
from isoflop.analysis.validity.variants import selection_findings

BUDGETS = (1e17, 3e17, 1e18)


def fitted(rows: list[dict[str, Any]], n_boot: int = 0, repeats: Repeats | None = None) -> Fits:
    fits = fit_optima(
        select_points(rows, repeats),
        FitOptions(n_boot=n_boot, repeats=repeats, method="parabola"),
        methods=("parabola",),
        axes=("n_params",),
    )
    checks = (
        *budget_findings(fits),
        *near_budget_findings(fits),
        *centre_findings(fits),
        *duplicate_findings(fits),
    )
    return dataclasses.replace(fits, validity=Validity(findings=checks))


def whole(budgets: Any = BUDGETS, archs: Any = ("mlp",), num: int = 5) -> list[dict[str, Any]]:
    return [{**one, "flops": one["budget_flops"]} for one in study(archs, budgets, num)]


def about(word: str, fits: Fits) -> str:
    found = [sentence for sentence in attention(fits) if word in sentence]
    assert len(found) == 1, attention(fits)
    return found[0]


def test_a_clean_table_needs_no_attention() -> None:
    assert attention(fitted(whole(archs=("mlp", "swiglu")))) == ()
    assert attention(fitted([])) == ()


def test_flops_three_times_the_budget_are_said_with_where_and_how_much() -> None:
    rows = whole()
    for one in rows[:-5]:
        one["flops"] *= 3
    assert about("FLOPs spent", fitted(rows)) == (
        "FLOPs spent differ from the budget by more than 5% at 1e17 and 3e17 of mlp (up to +200%)."
    )
    nearer = about("nearer", fitted(rows))
    assert "than to their own: 10, at 1e17 and 3e17 of mlp." in nearer


def test_forty_budgets_and_families_are_one_line_each() -> None:
    rows = whole([1e17 * 1.3**i for i in range(40)])
    rows += whole([1e17], archs=[f"family {i}" for i in range(40)])
    for one in rows:
        one["flops"] *= 0.9
    sentence = about("FLOPs spent", fitted(rows))
    assert "at 1e17 of family 0, 1e17 of family 1 and 39 more families (up to -10%)" in sentence
    only = about("FLOPs spent", fitted(rows[: 40 * 5]))
    assert "at 40 budgets of mlp (" in only


def test_nearly_equal_budgets_are_named_with_the_digits_that_differ() -> None:
    rows = whole([0.9999e18, 1.0001e18, 1e19])
    assert about("merges", fitted(rows)) == (
        "2 budgets are one within 0.02%: --round-budgets merges them (9.999e17, 1.0001e18)."
    )
    close = about("merges", fitted(whole([1e18, 1.0000001e18])))
    assert "(1e18, 1.0000001e18)" in close


def test_budgets_that_all_differ_leave_the_surface() -> None:
    rows = [{**one, "budget_flops": 1e17 * 1.02**i} for i, one in enumerate(whole())]
    sentence = about("No two sizes", fitted(rows))
    assert "the surface and the frontier over all runs need neither" in sentence
    near = [{**one, "budget_flops": 1e17 * 1.001**i} for i, one in enumerate(whole())]
    assert "(15 budgets are one within 1.4%: --round" in about("No two sizes", fitted(near))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (curve(parabola(1e8), [1e8, 2e8]), "No minimum of the isoFLOP curve: too few sizes at"),
        (curve(lambda _: 3.0, spaced(1e8)), "flat at 1e17 of mlp"),
        (curve(parabola(1e8, 5.0, -0.1), spaced(1e8)), "not convex at 1e17 of mlp"),
        (curve(parabola(1e6), spaced(1e8)), "1 optimum is a bound (< or >)"),
        (curve(parabola(2.8e8), spaced(1e8)), "beyond 50% of the way): at 1e17 of mlp"),
    ],
)
def test_what_is_wrong_with_an_optimum_is_said(rows: list[dict[str, Any]], words: str) -> None:
    assert any(words in sentence for sentence in attention(fitted(rows)))


def test_a_minimum_far_below_every_loss_is_said() -> None:
    rows = curve(parabola(1e8), spaced(1e8, 7))
    rows[-1] = {**rows[-1], "loss": 9.0}
    selection = select_points(rows, screened=False)
    fits = fit_optima(selection, FitOptions(n_boot=0, method="parabola"), axes=("n_params",))
    (sentence,) = attention(fits)
    assert "No minimum of the isoFLOP curve: far below every loss measured at 1e17" in sentence


def test_a_drift_and_repeated_sizes_are_said() -> None:
    rows = [
        row("mlp", c, n, parabola(1e7 * 2**i)(n), flops=c)
        for i, c in enumerate((1e17, 1e18, 1e19))
        for n in spaced(1e7, num=5, factor=8.0)
    ]
    assert "mlp +0.33 of the half grid per decade" in about("wander", fitted(rows))
    again = {**rows[1], "loss": rows[1]["loss"] + 0.01}
    repeated = fitted([*rows, again], repeats="seeds")
    assert "one seed count as repeats: at 1e17 of mlp." in about("one seed", repeated)


def held_out(fits: Fits, axis: str) -> list[Finding]:
    assert fits.validity is not None
    return [f for f in fits.validity.of("held_out") if f.axis == axis]


def bent(jump: float) -> list[dict[str, Any]]:
    """Four budgets on straight laws, a little noise, the sizes of the last moved by a factor."""
    rows = []
    for i, c in enumerate((1e17, 1e18, 1e19, 1e20)):
        best = 0.1 * c**0.5 * (jump if i == 3 else 1.0)
        for k, n in enumerate(spaced(best, num=7)):
            noise = 1 + 1e-4 * ((k * 5 + i * 3) % 7 - 3)
            rows.append(row("mlp", c, n, parabola(best, 20 * c**-0.05)(n) * noise, flops=c))
    return rows


def test_a_held_out_budget_that_the_law_misses_is_said_and_a_hit_is_not() -> None:
    straight, broken = (
        dataclasses.replace(fits, validity=Validity(findings=tuple(held_out_findings(fits))))
        for fits in (fitted(bent(jump), n_boot=100) for jump in (1.0, 1.5))
    )
    assert {f.status for f in held_out(straight, "n_params")} == {"ok"}
    assert not any("held out" in sentence for sentence in attention(straight))
    missed = {f.budget_flops: f for f in held_out(broken, "n_params")}
    assert (missed[1e19].status, missed[1e20].status) == ("ok", "attention")
    assert missed[1e20].value == pytest.approx(1 / 1.5 - 1, abs=0.02)
    assert (missed[1e20].ci_hi or 0.0) < 0.0
    sentence = about("held out", broken)
    assert "N* 1 of 2 (furthest: N* of mlp at 1e20, -32.8" in sentence


@pytest.mark.filterwarnings("error")
def test_laws_of_two_budgets_nearly_equal_are_scored_without_a_warning() -> None:
    """Their draws are off by any power of ten."""
    rng = random.Random(2)
    rows = [
        {**one, "loss": one["loss"] * math.exp(rng.gauss(0, 0.002))}
        for one in whole((0.9999e17, 1.0001e17, 1e19), num=7)
    ]
    found = [f for f in held_out_findings(fitted(rows, n_boot=200)) if f.axis == "n_params"]
    assert [f.status for f in found] == ["ok"]


def test_answers_that_move_are_counted_by_what_moves_them() -> None:
    rows = whole(archs=("mlp", "swiglu"))
    spiked = row("mlp", 1e18, 9e8, 9.0, flops=1e18, excluded_reason="spike")
    for index, one in enumerate(rows):
        one["loss"] *= 1 + 1e-4 * (index % 3 - 1)
    fits = fitted([*rows, spiked], n_boot=60)
    found = Validity(findings=tuple(selection_findings([*rows, spiked], fits)))
    sentence = about("excluded rows let in", dataclasses.replace(fits, validity=found))
    assert sentence.startswith("Answers leave their interval, or a claimed order turns round, by")
    assert "see Validity in the report" in sentence


def noisy(sd_of: Callable[[str, float], float], between_sizes: float = 0.0) -> Fits:
    """Two families at three budgets, three seeds a size; the checks of their scatter."""
    rng = random.Random(4)
    rows = []
    for one in whole(archs=("mlp", "swiglu"), num=7):
        shift = rng.gauss(0, between_sizes)
        sd = sd_of(one["arch"], one["budget_flops"])
        for seed in range(3):
            loss = one["loss"] * math.exp(shift + rng.gauss(0, sd))
            rows.append({**one, "loss": loss, "seed": seed})
    fits = fitted(rows)
    return dataclasses.replace(fits, validity=Validity(findings=tuple(scatter_findings(fits))))


def test_scatter_that_repeats_do_not_explain_and_unequal_noise_are_said() -> None:
    assert attention(noisy(lambda arch, budget: 0.002)) == ()
    rough = about("Sizes scatter", noisy(lambda arch, budget: 0.001, between_sizes=0.01))
    assert "1e17, 3e17 and 1e18 of mlp and 1e17, 3e17 and 1e18 of swiglu" in rough
    unequal = about("Bartlett", noisy(lambda arch, _: 0.01 if arch == "mlp" else 0.001))
    assert "do not scatter alike between runs (p = " in unequal


def test_a_noisy_family_without_repeats_beside_one_with_them_is_said() -> None:
    """The test of repeats alone would compare the other family with itself."""
    rng = random.Random(3)
    rows = [
        {**one, "loss": one["loss"] * math.exp(rng.gauss(0, sd)), "seed": seed}
        for arch, num_seeds, sd in (("mlp", 1, 0.01), ("swiglu", 3, 0.002))
        for one in whole(archs=(arch,), num=7)
        for seed in range(num_seeds)
    ]
    fits = fitted(rows)
    fits = dataclasses.replace(fits, validity=Validity(findings=tuple(scatter_findings(fits))))
    said = about("Bartlett", fits)
    assert said.startswith("Families or budgets do not scatter alike between sizes (p = ")


def test_multipliers_without_an_interval_are_said() -> None:
    """Budgets so near each other that noise turns the order of their losses round in most draws."""
    rows = [
        {**one, "loss": one["loss"] * (1 + 0.003 * (-1) ** (i % 5)) * one["flops"] ** -0.01}
        for i, one in enumerate(whole([1e17 * 1.1**i for i in range(12)], archs=("mlp", "swiglu")))
    ]
    fits = fitted(rows, n_boot=100)
    fits = dataclasses.replace(fits, compare=compare_archs(fits, resources=("flops",)))
    assert "12 of 12 multipliers have no interval and claim nothing" in claimed_notes(fits)[0]
