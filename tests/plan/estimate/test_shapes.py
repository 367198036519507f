from __future__ import annotations

from types import SimpleNamespace

import pytest

from isoflop.plan.estimate.memory import RoutedShape, _routed_shape, model_shape
from made_shapes import rung_spec


def test_the_paper_s_routed_rung_is_read_off_its_config() -> None:
    shape = model_shape(rung_spec("sgatlin", 6))
    assert shape.routed == RoutedShape(
        num_choices=16 * 8, num_scores=2 * 16 * 88, num_query_values=128
    )
    assert shape.gathered_values == 2 * 16 * 8 * 768
    peer = model_shape(rung_spec("peer", 6)).routed
    assert peer == RoutedShape(
        num_choices=128, num_scores=2 * 16 * 176, num_query_values=2 * 16 * 128
    )


def test_a_router_without_product_keys_scores_every_expert() -> None:
    config = {"num_channels": 2, "num_neighbours": 3, "num_experts": 100, "router_width": 7}
    for router, queries in (("dense", 7), ("key_value", 14)):
        spec = rung_spec("sgatlin", 1, config=config | {"router": router})
        routed = model_shape(spec).routed
        assert (routed.num_scores, routed.num_query_values) == (200, queries)


def test_dense_layers_gather_nothing_and_moe_runs_its_experts_one_by_one() -> None:
    for family in ("mlp", "swiglu"):
        shape = model_shape(rung_spec(family, 4))
        assert (shape.routed, shape.gathered_values) == (RoutedShape(), 0)
    shape = model_shape(rung_spec("moe", 4))
    assert shape.routed == RoutedShape(num_groups=16, num_active_groups=2)
    assert shape.gathered_values == 0


@pytest.mark.parametrize(
    "fields", [{"num_active": 2}, {"num_active": "two", "num_experts": 4}, {"num_channels": 3}]
)
def test_a_stranger_s_fields_of_like_names_mean_nothing(fields: dict[str, object]) -> None:
    assert _routed_shape(SimpleNamespace(**fields)) == RoutedShape()
