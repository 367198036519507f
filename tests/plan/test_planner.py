from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import golden_tables
from isoflop.accounting import CONVENTIONS, get_convention
from isoflop.errors import UserError
from isoflop.families import PATHS_VARIABLE, family_digest
from isoflop.families.mlp import spec as mlp
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import COUNTED, describe_run, run_ledger
from isoflop.recipe import MICRO_V1, PAPER_V1
from isoflop.resources import builtin
from isoflop.spec import RunSpec
from isoflop.study import (
    MATCHES,
    PAPER_ARCHS,
    Study,
    Variant,
    paper_study,
    parse_flops,
)
from isoflop.study.file import load_study
from made_studies import micro

PAPER_BUDGETS = (10**17, 6 * 10**17, 10**18, 6 * 10**18)


def test_the_paper_grid_equals_the_official_runs_to_the_integer() -> None:
    golden = {
        (
            int(row["flops_budget"]),
            golden_tables.FAMILY_OF_TYPE[row["type"]],
            int(row["scale"]),
        ): row
        for row in golden_tables.rows("isoflop_runs.csv")
        if row["sweep"] not in ("slimpajama-activation.yaml", "slimpajama-router.yaml")
    }
    plan = make_plan(paper_study(PAPER_BUDGETS))
    assert len(plan.runs) == len(golden) == 92
    for run in plan.runs:
        row = golden.pop((run.budget_flops, run.arch, run.size))
        spec = run.spec
        assert (spec.batch_size, spec.seq_len) == (int(row["batch_size"]), int(row["seq_len"]))
        assert (spec.d_model, spec.n_layers) == (int(row["d_model"]), int(row["n_layers"]))
        assert spec.steps == int(row["n_steps"])
        assert run.n_tokens == int(row["n_tokens"])
        assert run.flops == int(row["n_flops"])
        assert (run.n_params, run.n_nonembed) == (
            int(row["n_params"]),
            int(row["n_params_nonembed"]),
        )
        assert 1 - run.residual == pytest.approx(float(row["budget_used_fraction"]), abs=1e-12)
        warmup = PAPER_V1.num_warmup_steps(spec.steps)
        assert warmup == int(row["warmup_steps"])
    assert not golden


def test_the_ablation_rows_are_variants() -> None:
    variants = (
        Variant(arch="sgatlin/pkv", family="sgatlin", overrides={"router": "product_key_value"}),
        Variant(arch="sgatlin/gelu", family="sgatlin", overrides={"activation": "gelu_tanh"}),
    )
    study = dataclasses.replace(
        paper_study((6 * 10**18,)),
        archs=("sgatlin", "sgatlin/pkv", "sgatlin/gelu"),
        sizes=(6,),
        variants=variants,
    )
    golden = {
        row["router_type"]: row
        for row in golden_tables.rows("isoflop_runs.csv")
        if row["sweep"] == "slimpajama-router.yaml"
    }
    plain, key_value, gelu = make_plan(study).runs
    assert plain.flops == gelu.flops == int(golden["product_dense"]["n_flops"])
    assert key_value.flops == int(golden["product_key_value"]["n_flops"])
    assert key_value.n_params == int(golden["product_key_value"]["n_params"])
    assert len({plain.run_id, key_value.run_id, gelu.run_id}) == 3


def test_the_study_file_of_the_paper_spells_out_the_same_plan() -> None:
    from_file = make_plan(load_study(builtin("experiments", "paper.toml")))
    from_budgets = make_plan(paper_study(PAPER_BUDGETS))
    assert from_file.runs == from_budgets.runs


def test_quickstart_has_five_sizes_at_three_budgets_and_at_most_four_epochs() -> None:
    plan = make_plan(load_study(builtin("experiments", "quickstart.toml")))
    cells = Counter((run.arch, run.budget_flops) for run in plan.runs)
    assert {arch for arch, _ in cells} == set(PAPER_ARCHS)
    assert len({budget for _, budget in cells}) >= 3
    assert min(cells.values()) >= 5
    assert all(run.epochs is not None and run.epochs <= 4 for run in plan.runs)


budgets = st.integers(min_value=10**9, max_value=10**12)


@given(budget=budgets, convention=st.sampled_from(["paper", "paper+head"]))
def test_no_run_spends_more_than_its_budget_nor_a_step_less(budget: int, convention: str) -> None:
    # Such budgets read the small corpus many times over: not the point here.
    study = micro(budgets=(budget,), convention=convention, max_epochs=1e4)
    for run in make_plan(study).runs:
        per_token = get_convention(convention)(run_ledger(run.spec))
        step = per_token * run.spec.batch_size * run.spec.seq_len
        assert run.flops == step * run.spec.steps
        assert 0 <= run.budget_flops - run.flops < step
        assert run.residual >= 0
        assert run.n_tokens == run.spec.steps * 4 * 32


@given(exponent=st.integers(min_value=16, max_value=26), digit=st.integers(1, 9))
def test_any_large_budget_gets_a_grid_by_rule(exponent: int, digit: int) -> None:
    budget = digit * 10**exponent
    plan = make_plan(paper_study((budget,)))
    for run in plan.runs:
        assert run.spec.steps >= PAPER_V1.min_steps
        assert 0 <= run.flops <= budget
        assert (run.spec.batch_size, run.spec.seq_len) == PAPER_V1.batch_and_seq_len(budget)
    sizes = Counter(run.arch for run in plan.runs)
    assert set(sizes) == set(PAPER_ARCHS)
    # Whatever the rule offers is either planned or named as left out.
    offered = sum(len(PAPER_V1.sizes(budget, arch)) for arch in PAPER_ARCHS)
    assert len(plan.runs) + len(plan.left_out) == offered


def test_the_rule_for_new_budgets_agrees_with_the_published_grids() -> None:
    centres = {}
    for budget in PAPER_BUDGETS:
        neighbour = PAPER_V1.sizes(budget + 1, "mlp")
        centres[budget] = neighbour[len(neighbour) // 2]
    assert centres == {10**17: 4, 6 * 10**17: 5, 10**18: 6, 6 * 10**18: 8}
    assert (
        PAPER_V1.batch_and_seq_len(10**17) == PAPER_V1.batch_and_seq_len(6 * 10**17) == (64, 1024)
    )
    assert PAPER_V1.batch_and_seq_len(10**18) == PAPER_V1.batch_and_seq_len(10**22) == (128, 2048)


@given(exponent=st.integers(min_value=9, max_value=26), digit=st.integers(1, 9))
def test_budgets_from_1e9_to_1e26_plan_without_overflow(exponent: int, digit: int) -> None:
    budget = digit * 10**exponent
    study = micro(budgets=(budget,), sizes=(1, 4), batch_size=1, max_epochs=1e18)
    for run in make_plan(study).runs:
        row = run.row()
        assert row["budget_flops"] == float(budget)
        assert all(isinstance(row[name], float) for name in ("flops", "residual", "epochs"))
        assert 0 <= run.budget_flops - run.flops < run.flops // run.spec.steps
        assert 0 <= run.residual < 1


CONVENTION_NAMES = sorted(CONVENTIONS)
studies = st.builds(
    micro,
    budgets=st.lists(st.integers(10**10, 10**15), min_size=1, max_size=3, unique=True).map(
        lambda budgets: tuple(sorted(budgets))
    ),
    archs=st.lists(st.sampled_from(PAPER_ARCHS), min_size=1, unique=True).map(tuple),
    convention=st.sampled_from(CONVENTION_NAMES),
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True).map(tuple),
    match=st.sampled_from(MATCHES),
    tolerance=st.just(0.5),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True).map(tuple),
    seq_len=st.sampled_from([16, 128]),
    batch_size=st.integers(1, 4),
    max_epochs=st.just(1e9),
)


@given(study=studies)
def test_any_study_keeps_its_promises(study: Study) -> None:
    try:
        plan = make_plan(study)
    except UserError as error:
        # Some shapes cannot be matched and some budgets are too small: said, never planned.
        if error.field not in ("tolerance", "steps"):
            raise
        return
    cells = itertools.product(study.budgets, study.archs, study.sizes or (), study.seeds)
    assert [(r.budget_flops, r.arch, r.size, r.spec.seed) for r in plan.runs] == list(cells)
    for run in plan.runs:
        ledger = run_ledger(run.spec)
        per_token = get_convention(study.convention)(ledger)
        assert run.flops == per_token * run.n_tokens <= run.budget_flops
        assert run.residual == (run.budget_flops - run.flops) / run.budget_flops
        assert ledger.flops(*COUNTED) == sum(run.flops_per_token.values())
        assert (run.match_residual is None) == (study.match == "ladder")
        assert abs(run.match_residual or 0.0) <= study.tolerance


GROWN = st.sampled_from(["d_model", "n_layers", "steps", "batch_size", "vocab_size", "seq_len"])


@given(
    arch=st.sampled_from(PAPER_ARCHS),
    size=st.integers(1, 6),
    name=GROWN,
    factor=st.integers(2, 5),
    convention=st.sampled_from(CONVENTION_NAMES),
)
def test_more_of_anything_never_costs_less(
    arch: str, size: int, name: str, factor: int, convention: str
) -> None:
    study = micro(archs=(arch,), sizes=(size,), batch_size=1, max_epochs=1e9)
    (run,) = make_plan(study).runs

    def cost(spec: RunSpec) -> tuple[int, int, int]:
        described = describe_run(
            spec,
            arch=arch,
            size=size,
            budget_flops=run.budget_flops,
            convention=convention,
            num_train_tokens=None,
        )
        return described.flops, described.n_params, described.n_active

    grown = dataclasses.replace(run.spec, **{name: factor * getattr(run.spec, name)})
    assert all(more >= less for more, less in zip(cost(grown), cost(run.spec), strict=True))


@given(low=budgets, extra=budgets, match=st.sampled_from(MATCHES))
def test_a_larger_budget_never_buys_fewer_steps(low: int, extra: int, match: str) -> None:
    study = micro(sizes=(3,), batch_size=1, match=match, tolerance=0.05, max_epochs=1e9)
    small = make_plan(dataclasses.replace(study, budgets=(low,))).runs
    large = make_plan(dataclasses.replace(study, budgets=(low + extra,))).runs
    for before, after in zip(small, large, strict=True):
        assert after.spec.steps >= before.spec.steps
        assert after.flops >= before.flops


def test_a_run_at_another_seed_is_what_planning_it_alone_gives() -> None:
    many = make_plan(micro(seeds=(0, 5, 9))).runs
    for seed in (0, 5, 9):
        alone = make_plan(micro(seeds=(seed,))).runs
        assert alone == tuple(run for run in many if run.spec.seed == seed)


def test_reading_the_corpus_too_often_is_refused_with_every_knob() -> None:
    study = micro(budgets=(10**11,), archs=("mlp",), sizes=(1,))
    with pytest.raises(UserError) as caught:
        make_plan(study)
    text = str(caught.value)
    assert text.startswith("data.max_epochs = 4.0: must be ")
    for knob in ("larger corpus", "smaller budget", "larger sizes", "raise max_epochs"):
        assert knob in text
    (run,) = make_plan(dataclasses.replace(study, max_epochs=100.0)).runs
    assert run.epochs is not None
    assert run.epochs > 4
    assert run.warnings == (f"reads the corpus {run.epochs:.2f} times",)
    # Exactly the number of passes is allowed.
    assert make_plan(dataclasses.replace(study, max_epochs=run.epochs)).runs == (run,)
    with pytest.raises(UserError, match="max_epochs"):
        make_plan(dataclasses.replace(study, max_epochs=run.epochs - 1e-6))


def test_a_corpus_of_unknown_size_has_no_data_budget() -> None:
    plan = make_plan(dataclasses.replace(paper_study((10**26,)), archs=("mlp",), max_epochs=0.1))
    assert all(run.epochs is None and not run.warnings for run in plan.runs)


def test_components_add_up_to_the_counted_flops() -> None:
    for run in make_plan(micro(convention="paper+head")).runs:
        assert 3 * sum(run.flops_per_token.values()) * run.n_tokens == run.flops
        assert set(run.flops_per_token) == set(COUNTED)


def test_two_budgets_that_mean_the_same_training_share_one_run() -> None:
    plan = make_plan(micro(budgets=(10**10, 10**10 + 1), archs=("mlp",), sizes=(1,)))
    assert len(plan.runs) == 2
    assert len(plan.unique_runs) == 1


def test_seeds_are_runs_of_their_own() -> None:
    plan = make_plan(micro(archs=("mlp",), sizes=(1,), seeds=(0, 5)))
    assert [run.spec.seed for run in plan.runs] == [0, 5]
    assert len(plan.unique_runs) == 2


def test_variants_may_change_depth() -> None:
    deep = Variant(arch="deep", family="mlp", overrides={"n_layers": 5, "hidden_width": 7})
    (run,) = make_plan(micro(archs=("deep",), sizes=(1,), variants=(deep,))).runs
    assert (run.spec.n_layers, dict(run.spec.config)) == (5, {"hidden_width": 7})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budgets": (10**6,)},
            r"steps = \d+: must be 40 or more under recipe micro-v1 \(mlp size",
        ),
        ({"sizes": (9,)}, "sizes = 9: must be a rung"),
        ({"source": "wiki"}, "wiki"),
        ({"tokenizer": "words"}, "words"),
        (
            {
                "variants": (Variant(arch="a", family="mlp", overrides={"depth": 2}),),
                "archs": ("a",),
            },
            "mlp.depth = 2: must be a field of mlp",
        ),
        (
            {
                "variants": (Variant(arch="a", family="mlp", overrides={"n_heads": 3}),),
                "archs": ("a",),
            },
            "d_model = 8: must be a multiple of 2",
        ),
        (
            {
                "variants": (Variant(arch="a", family="mlp", overrides={"n_heads": "two"}),),
                "archs": ("a",),
            },
            "a.n_heads = 'two': must be a whole number",
        ),
    ],
)
def test_impossible_plans_are_refused_with_the_knob(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(micro(**changes))


def test_a_budget_too_small_for_the_paper_recipe_names_every_knob() -> None:
    with pytest.raises(UserError) as caught:
        make_plan(paper_study((10**13,)))
    text = str(caught.value)
    assert "must be 1250 or more under recipe paper-v1" in text
    for knob in ("raise the budget", "lower batch_size", "smaller sizes", "micro-v1"):
        assert knob in text


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3)])
def test_the_budget_that_a_refusal_names_is_enough(sizes: tuple[int, ...]) -> None:
    def planned(budget: int) -> int:
        return len(make_plan(micro(budgets=(budget,), sizes=sizes, archs=("mlp", "peer"))).runs)

    with pytest.raises(UserError) as caught:
        planned(10**7)
    found = re.search(r"raise the budget to (\S+) or more \(enough for size", str(caught.value))
    assert found is not None
    enough = parse_flops(found[1])
    assert planned(enough) == 2 * len(sizes)
    with pytest.raises(UserError, match="raise the budget"):
        planned(enough * 9 // 10)


def test_a_published_size_is_never_silently_left_out() -> None:
    study = dataclasses.replace(paper_study((10**17,)), batch_size=4096)
    with pytest.raises(UserError, match="steps"):
        make_plan(study)


def test_micro_recipe_takes_shares_of_a_run() -> None:
    assert [MICRO_V1.num_warmup_steps(steps) for steps in (40, 99, 1000)] == [4, 9, 100]


@pytest.mark.slow
def test_a_family_from_outside_is_gated_matched_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    folder = tmp_path / "twin"
    folder.mkdir()
    source = Path(mlp.__file__)
    for name in ("spec.py", "module.py"):
        (folder / name).write_bytes(source.with_name(name).read_bytes())
    study = micro(
        archs=("mlp", "twin"), match="flops_per_token", sizes=(2,), family_paths=(str(folder),)
    )
    plan = make_plan(study)
    assert plan.family_digests == {"twin": family_digest("twin")}
    ours, theirs = plan.runs
    assert theirs.spec.config == ours.spec.config
    assert theirs.run_id != ours.run_id
    assert make_plan(micro()).family_digests == {}
    # A ledger that counts half of what the module computes is found before anything is planned.
    spec = folder / "spec.py"
    spec.write_text(spec.read_text().replace("2 * num_params, ", "1 * num_params, "))
    for module in [m for m in sys.modules if m.startswith("isoflop_family_twin")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(UserError, match="family = 'twin'"):
        make_plan(study)
