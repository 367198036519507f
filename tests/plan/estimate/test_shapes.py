from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from isoflop.families import PATHS_VARIABLE, Routing, add_family_folder
from isoflop.plan.estimate import estimate_run, load_hardware
from isoflop.plan.estimate.memory import model_shape
from made_family import write_routed_family
from made_shapes import rung_spec


def test_the_paper_s_routed_rung_says_its_routing() -> None:
    shape = model_shape(rung_spec("sgatlin", 6))
    choice = {"num_channels": 16, "num_chosen": 8}
    assert shape.routing == Routing(
        **choice, num_experts=88**2, raw_scores=True, num_scores=2 * 16 * 88, num_query_values=128
    )
    assert shape.gathered_values == 2 * 16 * 8 * 768
    assert model_shape(rung_spec("peer", 6)).routing == Routing(
        **choice,
        num_experts=176**2,
        shared=True,
        num_scores=2 * 16 * 176,
        num_query_values=2 * 16 * 128,
    )


def test_a_router_without_product_keys_scores_every_expert() -> None:
    config = {"num_channels": 2, "num_neighbours": 3, "num_experts": 100, "router_width": 7}
    for router, queries in (("dense", 7), ("key_value", 14)):
        routing = model_shape(rung_spec("sgatlin", 1, config=config | {"router": router})).routing
        assert routing is not None
        assert (routing.num_scores, routing.num_query_values) == (200, queries)


def test_dense_layers_gather_nothing_and_moe_runs_its_experts_one_by_one() -> None:
    for family in ("mlp", "swiglu"):
        shape = model_shape(rung_spec(family, 4))
        assert (shape.routing, shape.gathered_values) == (None, 0)
        assert (shape.num_groups, shape.num_scores) == (0, 0)
    shape = model_shape(rung_spec("moe", 4))
    assert shape.routing == Routing(num_experts=16, num_chosen=2)
    assert (shape.num_groups, shape.gathered_values) == (16, 0)


@pytest.mark.parametrize("hardware", ["h100", "cpu2"])
def test_a_family_from_outside_with_fields_of_its_own_is_estimated_like_a_built_in_one(
    hardware: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    add_family_folder(write_routed_family(tmp_path / "lanes"))
    config = {"num_channels": 16, "num_neighbours": 8, "num_experts": 16**2, "router_width": 64}
    known = rung_spec("sgatlin", 2, config=config)
    names = {"lanes": 16, "picks": 8, "pool": 16**2, "key": 64}
    outside = dataclasses.replace(known, family="lanes", config=names)
    profile = load_hardware(hardware)
    assert estimate_run(outside, profile) == estimate_run(known, profile)
