"""The paper's other studies as files, against the published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

import golden_tables
from isoflop.data.catalog import identify
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.runs import run_ledger
from isoflop.recipe import PAPER_V1, get_recipe
from isoflop.resources import builtin
from isoflop.study import PAPER_ARCHS
from isoflop.study.file import load_study


@pytest.fixture(autouse=True)
def nothing_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_DATA_DIR", str(tmp_path))


def planned(name: str) -> Plan:
    return make_plan(load_study(builtin("experiments", name)))


def test_the_tinystories_runs_are_the_published_ones_to_the_integer() -> None:
    golden = golden_tables.json_value("tinystories_stats.json")
    shapes = {
        row["type"]: row
        for row in golden_tables.rows("flops_params.csv")
        if row["source"] == "tinystories" and row["router_type"] in ("", "product_dense")
    }
    plan = planned("tinystories.toml")
    assert [run.arch for run in plan.runs] == list(PAPER_ARCHS)
    for kind, published in golden.items():
        (run,) = (r for r in plan.runs if r.arch == golden_tables.FAMILY_OF_TYPE[kind])
        assert run.spec.steps == published["n_steps"]
        assert run.n_tokens == published["n_tokens"]
        assert run.flops == run.budget_flops == published["n_flops"]
        assert run.n_params == published["n_params"]
        assert run.n_nonembed == int(shapes[kind]["n_params_nonembed"])
        assert run.spec.vocab_size == 8192
        assert run_ledger(run.spec).num_params == run.n_params


def test_the_tinystories_recipe_is_the_published_one() -> None:
    recipe = get_recipe("tinystories-v1")
    assert (recipe.peak_lr, recipe.clip_norm, recipe.num_warmup_steps(8280)) == (1e-3, 2.0, 100)
    assert recipe.batch_and_seq_len(10**17) == (256, 1024)
    assert (recipe.weight_decay, recipe.decay_fraction) == (0.1, PAPER_V1.decay_fraction)


def test_the_published_count_of_tokens_is_a_row_for_each_story() -> None:
    identity = identify("tinystories", "bpe-tinystories:8192")
    assert identity.num_train_tokens == 2_119_719 * 1024
    assert identity.data_id != identify("tinystories", "bpe-tinystories:4096").data_id
    assert identify("slimpajama-627b", "gpt2").num_train_tokens is None


def test_the_ablations_are_planned_with_8_and_with_16_channels() -> None:
    plan = planned("paper_ablations.toml")
    runs = {run.arch: run for run in plan.runs}
    assert len({run.run_id for run in plan.runs}) == len(runs) == 10
    for label, channels in (("sgatlin", 16), ("sgatlin-8", 8)):
        configs = [run.spec.config for arch, run in runs.items() if arch.partition("/")[0] == label]
        assert {config["num_channels"] for config in configs} == {channels}
        assert {config["num_experts"] for config in configs} == {7744}
        by_router = {c["router"]: set() for c in configs}
        for config in configs:
            by_router[config["router"]].add(config["activation"])
        assert by_router == {
            "product_dense": {"identity", "gelu_tanh", "relu", "silu"},
            "product_key_value": {"identity"},
        }


def test_the_ablations_with_16_channels_are_the_published_rows() -> None:
    runs = {run.arch: run for run in planned("paper_ablations.toml").runs}
    golden = {
        row["router_type"]: row
        for row in golden_tables.rows("isoflop_runs.csv")
        if row["sweep"] in ("slimpajama-activation.yaml", "slimpajama-router.yaml")
    }
    for arch, router in (
        ("sgatlin", "product_dense"),
        ("sgatlin/gelu", "product_dense"),
        ("sgatlin/relu", "product_dense"),
        ("sgatlin/swish", "product_dense"),
        ("sgatlin/key_value", "product_key_value"),
    ):
        run, row = runs[arch], golden[router]
        assert run.flops == int(row["n_flops"])
        assert run.spec.steps == int(row["n_steps"])
        assert run.n_params == int(row["n_params"])
    # The paper's layer is the run of its main study.
    assert runs["sgatlin"].run_id in {run.run_id for run in planned("paper.toml").runs}


def test_with_8_channels_the_experts_halve_and_the_router_s_map_stays() -> None:
    runs = {run.arch: run for run in planned("paper_ablations.toml").runs}
    half, whole = runs["sgatlin-8"], runs["sgatlin"]
    assert 2 * half.flops_per_token["experts"] == whole.flops_per_token["experts"]
    assert half.flops_per_token["attn_proj"] == whole.flops_per_token["attn_proj"]
    assert half.spec.steps > whole.spec.steps
