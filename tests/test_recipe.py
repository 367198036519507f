"""Recipes: names at other learning rates, and the ladder of micro-v2."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.cli.plan_tables import rate_lines
from isoflop.cli.show import run_lines
from isoflop.errors import UserError
from isoflop.families import family_names, get_spec
from isoflop.plan.artefact import plan_to_json, read_plan, write_plan
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import PlannedRun
from isoflop.recipe import MICRO_V2, RECIPES, get_recipe, name_at_rate
from isoflop.study import PAPER_ARCHS, Study
from isoflop.study.file import study_from_toml
from isoflop.tables import RUNS, read_table
from made_studies import micro


@given(
    name=st.sampled_from(sorted(RECIPES)),
    rate=st.floats(min_value=1e-300, max_value=1e300, allow_nan=False),
)
def test_a_rate_goes_into_a_name_and_comes_back_whole(name: str, rate: float) -> None:
    recipe = get_recipe(name_at_rate(name, rate))
    assert recipe.peak_lr == rate
    assert recipe.name.partition("@lr=")[0] == name
    # All else is the recipe's.
    own = RECIPES[name]
    assert dataclasses.replace(recipe, name=own.name, peak_lr=own.peak_lr) == own


@pytest.mark.parametrize("typed", ["0.006", "6e-3", "0.60e-2", "+.006"])
def test_a_rate_has_one_spelling_however_it_is_typed(typed: str) -> None:
    assert name_at_rate("micro-v2", float(typed)) == "micro-v2@lr=0.006"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_recipe_s_own_rate_is_its_plain_name(name: str) -> None:
    assert name_at_rate(name, RECIPES[name].peak_lr) == name
    assert get_recipe(name) is RECIPES[name]


@pytest.mark.parametrize(
    "spelled",
    [
        "micro-v2@lr=6e-3",
        "micro-v2@lr=0.0060",
        "micro-v2@lr= 0.006",
        "micro-v2@lr=.006",
        "micro-v2@lr=0.006@lr=0.006",
        "micro-v2@lr=0.003",
        "micro-v2@lr=",
        "micro-v2@lr=0.0",
        "micro-v2@lr=-0.006",
        "micro-v2@lr=inf",
        "micro-v2@lr=nan",
        "micro-v2@lr=fast",
        "micro-v2@0.006",
        "micro-v9@lr=0.006",
        "@lr=0.006",
        "",
    ],
)
def test_any_other_spelling_is_refused(spelled: str) -> None:
    with pytest.raises(UserError, match="recipe = .*: must be paper-v1 or"):
        get_recipe(spelled)


def rated(**changes: Any) -> Study:
    values = {"archs": ("mlp", "sgatlin"), "learning_rates": {"sgatlin": 0.006}}
    return micro(**(values | changes))


def by_arch(study: Study) -> dict[str, list[PlannedRun]]:
    runs = sorted(make_plan(study).runs, key=lambda run: run.arch)
    return {arch: list(some) for arch, some in itertools.groupby(runs, lambda run: run.arch)}


def test_a_rate_is_a_run_s_identity_and_changes_nothing_else() -> None:
    plain, other = by_arch(rated(learning_rates={})), by_arch(rated())
    assert plain["mlp"] == other["mlp"]
    for before, after in zip(plain["sgatlin"], other["sgatlin"], strict=True):
        assert after.run_id != before.run_id
        assert after.spec == dataclasses.replace(before.spec, recipe="micro-v1@lr=0.006")
        assert dataclasses.replace(after, spec=before.spec, run_id=before.run_id) == before


def test_the_recipe_s_own_rate_leaves_the_ids() -> None:
    own = {"mlp": 3e-3, "sgatlin": 0.003}
    assert by_arch(rated(learning_rates=own)) == by_arch(rated(learning_rates={}))


def test_rates_survive_the_file_of_a_plan_and_none_leave_no_trace(tmp_path: Path) -> None:
    plan = make_plan(rated())
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    assert "learning_rates" not in plan_to_json(make_plan(rated(learning_rates={})))["study"]


def test_a_run_at_another_rate_than_its_study_s_is_refused(tmp_path: Path) -> None:
    write_plan(make_plan(rated()), tmp_path)
    file = tmp_path / "plan.json"
    file.write_text(file.read_text().replace('"sgatlin": 0.006', '"sgatlin": 0.012'))
    with pytest.raises(
        UserError, match="spec.recipe = 'micro-v1@lr=0.006': must be 'micro-v1@lr=0.0"
    ):
        read_plan(tmp_path)


def test_a_study_file_names_rates_by_arch() -> None:
    values = {"name": "s", "budgets": [1e10], "archs": ["mlp", "mlp/2"], "recipe": "micro-v2"}
    study = study_from_toml(
        {
            "study": values | {"learning_rates": {"mlp/2": 6e-3}},
            "variant": [{"arch": "mlp/2", "family": "mlp"}],
        }
    )
    assert (study.recipe_of("mlp"), study.recipe_of("mlp/2")) == ("micro-v2", "micro-v2@lr=0.006")


def test_a_reviewer_sees_the_rates() -> None:
    plan = make_plan(rated())
    assert rate_lines(plan) == [
        "peak learning rates: sgatlin 0.006, else 0.003 (micro-v1 has 0.003)"
    ]
    of_all = make_plan(rated(learning_rates={"mlp": 0.1, "sgatlin": 0.003}))
    assert rate_lines(of_all) == [
        "peak learning rates: mlp 0.1, sgatlin 0.003 (micro-v1 has 0.003)"
    ]
    assert any(
        line.split() == ["recipe", "micro-v1@lr=0.006"] for line in run_lines(plan.runs[-1:])
    )
    assert rate_lines(make_plan(micro())) == []


def test_what_measures_a_run_takes_the_rate_of_its_name() -> None:
    import torch

    from isoflop.placement import Placement
    from isoflop.train.calibrate import measure_step, measure_step_flops

    torch.set_num_threads(1)
    plain, other = (
        by_arch(rated(learning_rates=rates, sizes=(1,)))["mlp"][0].spec
        for rates in ({}, {"mlp": 0.006})
    )
    assert measure_step_flops(other, Placement()) == measure_step_flops(plain, Placement())
    assert measure_step(other, Placement(), steps=1).step_s > 0


SIZES = range(1, 17)


def rungs(family: str) -> Iterator[tuple[Any, Any]]:
    for size in SIZES:
        yield MICRO_V2.shape(size), get_spec(family).ladder(MICRO_V2, size)


def test_the_ladder_of_micro_v2_has_sixteen_rungs() -> None:
    assert MICRO_V2.max_size == len(SIZES)
    assert [MICRO_V2.shape(size).d_model for size in (1, 16)] == [6, 96]
    with pytest.raises(UserError, match="micro-v2's ladder \\(1 to 16\\)"):
        MICRO_V2.shape(17)


@pytest.mark.parametrize("family", family_names())
def test_every_rung_of_micro_v2_is_larger_and_costs_more_without_jumps(family: str) -> None:
    study = micro(archs=(family,), recipe="micro-v2", sizes=tuple(SIZES), budgets=(10**12,))
    runs = make_plan(dataclasses.replace(study, max_epochs=1e6)).runs
    params = [run.n_params for run in runs]
    flops = [sum(run.flops_per_token.values()) for run in runs]
    assert params == sorted(set(params))
    assert flops == sorted(set(flops))
    for counts in (params, flops):
        assert max(b / a for a, b in itertools.pairwise(counts)) < 1.7


@pytest.mark.parametrize("family", ["peer", "sgatlin"])
def test_the_router_of_micro_v2_grows_with_the_width_without_jumps(family: str) -> None:
    pairs = list(rungs(family))
    widths = [config.router_width for _, config in pairs]
    assert widths == sorted(widths)
    for shape, config in pairs:
        assert config.router_width % 2 == 0
        assert abs(config.router_width / (3 * shape.d_model**0.5) - 1) < 0.1


@pytest.mark.parametrize("family", family_names())
def test_the_rungs_of_micro_v2_pass_the_flop_gate(family: str) -> None:
    import torch

    from isoflop.model.flop_gate import check_spec

    torch.set_num_threads(1)
    study = micro(archs=(family,), recipe="micro-v2", sizes=(1, 4, 9), seq_len=8)
    for run in make_plan(dataclasses.replace(study, max_epochs=1e6)).runs:
        assert check_spec(run.spec).problem is None


@pytest.fixture
def copied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a copy of a recipe."""
    copy = dataclasses.replace(RECIPES[request.param], name="mine-v1")
    monkeypatch.setitem(RECIPES, "mine-v1", copy)
    return copy.name


@pytest.mark.parametrize("copied", sorted(RECIPES), indirect=True)
def test_a_copy_under_another_name_plans_the_same_runs_of_every_family(
    copied: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["copied"]
    own, other = (
        make_plan(micro(recipe=recipe, budgets=(10**13,), sizes=(1,), max_epochs=1e9)).runs
        for recipe in (name, copied)
    )
    assert [run.spec.family for run in other] == list(PAPER_ARCHS)
    assert [dataclasses.replace(run.spec, recipe=name) for run in other] == [r.spec for r in own]
    assert {run.run_id for run in own}.isdisjoint(run.run_id for run in other)


@pytest.mark.parametrize("copied", ["micro-v1"], indirect=True)
def test_a_copy_under_another_name_trains_and_fits(
    copied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interpret.made_models import run_study, write_texts
    from isoflop.cli import main

    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path / "data"))
    source = write_texts(tmp_path / "texts")
    study = tmp_path / "study"
    changes = {"recipe": copied, "keep_weights": "none", "max_epochs": 1e6}
    run_study(study, source, archs=("mlp",), sizes=(1, 2, 3), budgets=(2 * 10**8,), **changes)
    main(["fit", str(study)], standalone_mode=False)
    rows = read_table(study / "runs.parquet", RUNS)
    assert {(row["size"], row["status"]) for row in rows} == {(s, "done") for s in (1, 2, 3)}


def test_a_family_that_a_recipe_has_no_ladder_for_is_refused() -> None:
    with pytest.raises(UserError, match="family = 'rnn': must be one of micro-v2 \\(mlp"):
        MICRO_V2.config("rnn", 1)
