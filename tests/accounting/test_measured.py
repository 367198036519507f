"""FLOPs and parameters that torch counts on real models against the ledger: exact integers."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.accounting.ledger import COMPONENT_NAMES
from isoflop.families import family_names, get_spec
from isoflop.model import build_model
from isoflop.model.flop_gate import MeasuredFlops, check_family, check_spec, measure_run
from isoflop.plan.runs import run_ledger
from isoflop.recipe import MICRO_V1, PAPER_V1, Recipe
from isoflop.spec import RunSpec

ROUTERS = ("product_dense", "product_key_value", "dense", "key_value")
CASES = ["mlp", "swiglu", "moe", "peer", *(f"sgatlin/{router}" for router in ROUTERS)]
# The work of moe depends on values, so it has no shapes-only form.
SHAPES_ONLY = [case for case in CASES if case != "moe"]

ROUTED = {"num_channels": 2, "num_neighbours": 3, "num_experts": 25, "router_width": 10}
CONFIGS: dict[str, dict[str, int]] = {
    "mlp": {"hidden_width": 20},
    "swiglu": {"hidden_width": 20},
    "moe": {"num_experts": 5, "num_active": 2, "hidden_width": 12},
    "peer": ROUTED,
    "sgatlin": ROUTED,
}
SHAPE = {"d_model": 24, "n_layers": 2, "n_heads": 3, "vocab_size": 50, "seq_len": 7}

# Three more values of each dimension: a ledger has at most degree two in any.
OTHER_VALUES: dict[str, tuple[int, ...]] = {
    "d_model": (6, 12, 42),
    "n_layers": (1, 3, 4),
    "n_heads": (1, 2, 6),
    "vocab_size": (3, 11, 300),
    "seq_len": (1, 2, 19),
    "batch_size": (2, 3, 5),
    "hidden_width": (1, 6, 33),
    "num_active": (1, 3, 5),
    "num_channels": (1, 3, 5),
    "num_neighbours": (1, 2, 4),
    "num_experts": (16, 36, 81),
    "router_width": (1, 4, 17),
}


def made_spec(case: str, **changes: int) -> RunSpec:
    family, _, router = case.partition("/")
    dimensions = SHAPE | CONFIGS[family] | changes
    config: dict[str, Any] = {name: dimensions[name] for name in CONFIGS[family]}
    if router:
        config["router"] = router
    return RunSpec(
        family=family,
        config=dataclasses.asdict(get_spec(family).Config(**config)),
        **{name: dimensions[name] for name in SHAPE},
        batch_size=dimensions.get("batch_size", 1),
        steps=1,
        data_id="made",
        tokenizer_hash="made",
        seed=0,
        recipe="micro-v1",
        precision="fp32",
    )


def rung_spec(case: str, recipe: Recipe, size: int, **changes: int) -> RunSpec:
    family, _, router = case.partition("/")
    config = dataclasses.asdict(get_spec(family).ladder(recipe, size))
    shape = dataclasses.asdict(recipe.shape(size)) | changes
    return dataclasses.replace(
        made_spec(case),
        config=config | ({"router": router} if router else {}),
        **({"seq_len": recipe.small_batch[1]} | shape),
    )


def assert_equal(spec: RunSpec, measured: MeasuredFlops) -> None:
    ledger = run_ledger(spec)
    assert measured.forward == ledger.flops(*COMPONENT_NAMES) * measured.num_tokens
    assert measured.training == 3 * measured.forward
    assert measured.num_params == ledger.num_params
    for part, names in {
        "attention": ("attn_proj", "attn_scores"),
        "feedforward": ("experts", "router"),
        "head": ("head",),
    }.items():
        assert measured.forward_by_part[part] == ledger.flops(*names) * measured.num_tokens


ONE_OTHER_VALUE = {name: values[1:2] for name, values in OTHER_VALUES.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_dimension_at_another_value(case: str) -> None:
    check_every_dimension(case, "reference", ONE_OTHER_VALUE)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "bag"])
@pytest.mark.parametrize("case", CASES)
def test_every_dimension_one_at_a_time(case: str, implementation: str) -> None:
    check_every_dimension(case, implementation, OTHER_VALUES)


def check_every_dimension(
    case: str, implementation: str, other_values: dict[str, tuple[int, ...]]
) -> None:
    names = [*SHAPE, "batch_size", *CONFIGS[case.partition("/")[0]]]
    for name in names:
        for value in other_values[name]:
            spec = made_spec(case, **{name: value})
            measured = measure_run(spec, batch_size=spec.batch_size, implementation=implementation)
            assert_equal(spec, measured)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_all_dimensions_together(case: str, data: st.DataObject) -> None:
    names = ["n_layers", "vocab_size", "seq_len", *CONFIGS[case.partition("/")[0]]]
    drawn = {name: data.draw(st.sampled_from(OTHER_VALUES[name]), label=name) for name in names}
    n_heads = data.draw(st.integers(1, 4), label="n_heads")
    d_model = 2 * n_heads * data.draw(st.integers(1, 6), label="half the head width")
    # Not more chosen than there are to choose from.
    if "num_neighbours" in drawn:
        drawn["num_neighbours"] = min(drawn["num_neighbours"], 3)
    if "num_active" in drawn:
        drawn["num_active"] = min(drawn["num_active"], drawn["num_experts"])
    spec = made_spec(case, n_heads=n_heads, d_model=d_model, **drawn)
    assert_equal(spec, measure_run(spec))


def sizes(fast: int) -> list[Any]:
    """The eight rungs of a ladder; the fast tests take one of them."""
    return [
        size if size == fast else pytest.param(size, marks=pytest.mark.slow) for size in range(1, 9)
    ]


@pytest.mark.parametrize("size", sizes(5))
@pytest.mark.parametrize("case", CASES)
def test_every_rung_of_the_micro_ladder_as_it_is(case: str, size: int) -> None:
    assert MICRO_V1.max_size == 8
    # A long sequence would only take longer.
    spec = rung_spec(case, MICRO_V1, size, seq_len=16)
    assert_equal(spec, measure_run(spec))


@pytest.mark.parametrize("size", sizes(2))
@pytest.mark.parametrize("case", SHAPES_ONLY)
def test_every_rung_of_the_papers_ladder_as_it_is(
    case: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole models of up to 7e9 parameters, as shapes without memory."""
    # There is no autocast for such tensors.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    spec = rung_spec(case, PAPER_V1, size)
    assert_equal(spec, measure_run(spec, device="meta"))


@pytest.mark.parametrize("size", [1, 2])
def test_a_layer_of_the_papers_moe(size: int) -> None:
    spec = rung_spec("moe", PAPER_V1, size, n_layers=1, seq_len=16)
    assert_equal(spec, measure_run(spec))


@pytest.mark.parametrize("case", CASES)
def test_the_gate_passes_for_the_built_in_families(case: str) -> None:
    assert check_spec(made_spec(case), batch_size=2).problem is None


@pytest.mark.parametrize("family", family_names())
def test_a_family_that_is_not_listed_here_passes_the_gate_too(family: str) -> None:
    assert [check.problem for check in check_family(family)] == [None, None]


def test_the_embedding_is_the_ledgers() -> None:
    spec = made_spec("mlp")
    assert build_model(spec).embedding.numel() == run_ledger(spec).num_embedding_params
