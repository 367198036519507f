from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.accounting import CONVENTIONS
from isoflop.errors import UserError
from isoflop.plan.auto import REACH, ExpectedOptimum, Grid, edge_warning, prior_params
from isoflop.plan.models import Models
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import run_ledger
from isoflop.recipe import MICRO_V1, PAPER_V1
from isoflop.study import MATCHES, PAPER_ARCHS, Study, Variant, paper_study
from made_studies import micro

PAPER_BUDGETS = (10**17, 6 * 10**17, 10**18, 6 * 10**18)


def auto(budgets: tuple[int, ...] = (10**18,), **changes: object) -> Study:
    values: dict[str, object] = {"sizes": "auto", **changes}
    return dataclasses.replace(paper_study(budgets), **values)  # type: ignore[arg-type]


def grid(study: Study, arch: str) -> Grid:
    vocab = 50258 if study.tokenizer == "gpt2" else 256
    return Grid(study, Models(study, vocab), study.budgets[0], arch)


exponents = st.integers(min_value=17, max_value=26)


@given(
    exponent=exponents,
    digit=st.integers(1, 9),
    arch=st.sampled_from(PAPER_ARCHS),
    convention=st.sampled_from(sorted(CONVENTIONS)),
    match=st.sampled_from(MATCHES),
)
def test_the_expected_optimum_has_rungs_on_both_sides(
    exponent: int, digit: int, arch: str, convention: str, match: str
) -> None:
    study = auto((digit * 10**exponent,), convention=convention, match=match)
    made = grid(study, arch)
    sizes, expected = made.sizes(None), made.expected()
    assert 5 <= len(sizes) <= 7
    assert list(sizes) == sorted(set(sizes))
    if expected.size > 1:
        assert sizes[0] <= expected.size <= sizes[-1]
    if expected.size > 2:
        assert edge_warning(expected, sizes) is None


@given(exponent=st.integers(20, 26), digit=st.integers(1, 9), num_sizes=st.integers(3, 11))
def test_where_rungs_are_dense_the_grid_is_even_in_log_parameters(
    exponent: int, digit: int, num_sizes: int
) -> None:
    study = auto((digit * 10**exponent,), num_sizes=num_sizes)
    made = grid(study, "mlp")
    sizes = made.sizes(num_sizes)
    assert len(sizes) == num_sizes
    models = Models(study, 50258)
    logs = [math.log(prior_params(models.model("mlp", s, 2048).ledger)) for s in sizes]
    assert logs[-1] - logs[0] == pytest.approx(2 * math.log(REACH), abs=0.5)
    # A rung's width in log parameters bounds how uneven whole rungs can be.
    steps = [after - before for before, after in itertools.pairwise(logs)]
    assert max(steps) - min(steps) < 4 * 3 / sizes[0]


@pytest.mark.parametrize("arch", PAPER_ARCHS)
def test_at_the_expected_size_tokens_per_parameter_are_the_priors(arch: str) -> None:
    study = auto((10**21,))
    size = grid(study, arch).expected().size
    models = Models(study, 50258)
    ratios = []
    for rung in (math.floor(size), math.ceil(size)):
        model = models.model(arch, rung, 2048)
        tokens = 10**21 / models.flops_per_token(model)
        ratios.append(tokens / prior_params(model.ledger))
    assert ratios[1] <= PAPER_V1.prior.tokens_per_param <= ratios[0]


def test_the_prior_of_the_paper_recipe_is_where_its_published_grids_are_centred() -> None:
    logs = []
    for run in make_plan(paper_study(PAPER_BUDGETS)).runs:
        logs.append(math.log(run.n_tokens / prior_params(run_ledger(run.spec))))
    assert len(logs) == 92
    by_grid: dict[tuple[int, str], list[float]] = {}
    for run, value in zip(make_plan(paper_study(PAPER_BUDGETS)).runs, logs, strict=True):
        by_grid.setdefault((run.budget_flops, run.arch), []).append(value)
    centres = [sum(values) / len(values) for values in by_grid.values()]
    mean = math.exp(sum(centres) / len(centres))
    assert mean == pytest.approx(PAPER_V1.prior.tokens_per_param, rel=0.01)


# Parabola minima, in rungs, of experiments/LOG.md 2026-11-24 that are interior.
MEASURED = {
    ("mlp", 8 * 10**10): 3.73,
    ("swiglu", 8 * 10**10): 3.16,
    ("moe", 8 * 10**10): 3.20,
    ("peer", 8 * 10**10): 2.54,
    ("sgatlin", 8 * 10**10): 3.26,
    ("mlp", 2 * 10**11): 4.51,
    ("swiglu", 2 * 10**11): 4.31,
    ("moe", 2 * 10**11): 4.09,
    ("peer", 2 * 10**11): 3.02,
    ("sgatlin", 2 * 10**11): 4.03,
}


@pytest.mark.parametrize(("arch", "budget"), MEASURED)
def test_the_micro_prior_is_within_a_rung_of_what_was_measured(arch: str, budget: int) -> None:
    study = micro(budgets=(budget,), sizes="auto", seq_len=128, batch_size=8)
    assert abs(grid(study, arch).expected().size - MEASURED[arch, budget]) < 1


@given(low=st.integers(10**16, 10**24), factor=st.integers(1, 1000))
def test_a_larger_budget_is_never_expected_to_want_a_smaller_model(low: int, factor: int) -> None:
    # Within one sequence length: the recipe's longer one from 7.7e17 on is another model.
    sizes = [
        grid(auto((budget,), seq_len=1024), "sgatlin").expected().size
        for budget in (low, low * factor)
    ]
    assert sizes[0] <= sizes[1]


def test_counting_the_head_makes_budgets_smaller() -> None:
    for arch in PAPER_ARCHS:
        paper = grid(auto(), arch).expected().size
        assert grid(auto(convention="paper+head"), arch).expected().size < paper


def test_the_plan_says_where_it_expects_each_optimum() -> None:
    plan = make_plan(auto((10**18, 10**19)))
    assert [(e.budget_flops, e.arch) for e in plan.expected] == list(
        itertools.product((10**18, 10**19), PAPER_ARCHS)
    )
    assert plan.warnings == ()
    assert make_plan(paper_study((10**18,))).expected == ()


def test_an_optimum_near_the_edge_of_what_is_planned_is_a_warning() -> None:
    # 1e16 pays for 1,250 steps of small rungs only, which the plan names.
    plan = make_plan(auto((10**16,), archs=("mlp",)))
    assert plan.left_out
    (warning,) = plan.warnings
    assert warning == (
        "mlp at 1e16: the optimum is expected at size 2.44, within one rung of the upper edge of "
        "its grid (1, 2, 3)"
    )


@pytest.mark.parametrize(
    ("size", "sizes", "word"),
    [
        (3.5, (1, 2, 3, 4, 5), None),
        (2.5, (1, 2, 3, 4, 5), None),
        (2.0, (1, 2, 3, 4, 5), "lower edge"),
        (4.2, (1, 2, 3, 4, 5), "upper edge"),
        (0.4, (1, 2, 3, 4, 5), "outside"),
        (5.0, (1, 2, 3, 4, 5), "outside"),
        (3.0, (), "outside"),
    ],
)
def test_the_edge_is_one_rung_wide(size: float, sizes: tuple[int, ...], word: str | None) -> None:
    optimum = ExpectedOptimum(arch="a", budget_flops=10**17, size=size)
    warning = edge_warning(optimum, sizes)
    assert (warning is None) == (word is None)
    assert word is None or word in str(warning)


def test_a_ladder_with_an_end_is_used_to_its_end() -> None:
    study = micro(sizes="auto", budgets=(10**14,), max_epochs=1e9)
    plan = make_plan(study)
    assert {run.size for run in plan.runs} <= set(range(1, 9))
    assert len(plan.warnings) == len(PAPER_ARCHS)
    top = MICRO_V1.max_size
    assert top == 8
    assert len(grid(micro(sizes="auto", num_sizes=8), "mlp").sizes(8)) == 8
    with pytest.raises(UserError, match="num_sizes = 9: must be at most 8 under recipe micro-v1"):
        make_plan(micro(sizes="auto", num_sizes=9))


@pytest.mark.parametrize("match", ["flops_per_token", "active_params"])
def test_matched_archs_share_one_grid(match: str) -> None:
    plan = make_plan(auto(match=match))
    sizes = {arch: [r.size for r in plan.runs if r.arch == arch] for arch in PAPER_ARCHS}
    assert len({tuple(rungs) for rungs in sizes.values()}) == 1
    assert len({optimum.size for optimum in plan.expected}) == 1


def test_a_variant_that_does_not_grow_has_no_automatic_sizes() -> None:
    fixed = Variant(
        arch="fixed",
        family="mlp",
        overrides={"d_model": 64, "n_layers": 2, "n_heads": 4, "hidden_width": 64},
    )
    study = micro(sizes="auto", archs=("fixed",), variants=(fixed,))
    with pytest.raises(UserError, match="a list of rungs for fixed, which does not grow"):
        make_plan(study)
    wide = Variant(arch="wide", family="mlp", overrides={"d_model": 64})
    assert make_plan(micro(sizes="auto", archs=("wide",), variants=(wide,))).runs
