"""Given its gates a layer is linear, and its experts add up to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interpret.made_models import ROUTERS, inputs_BT, untrained_run
from isoflop.errors import UserError
from isoflop.interpret.attribution import Trace, trace
from isoflop.interpret.gates import Patch, patched_gates
from isoflop.interpret.linear import (
    contributions,
    effective_matrix,
    layers_of,
    linearity,
    weights_of,
)
from isoflop.model.transformer import Transformer

VARIANTS = [
    *({"router": router} for router in ROUTERS),
    {"router": "dense", "num_neighbours": 1},
    {"router": "product_dense", "num_neighbours": 1, "num_channels": 1},
    {"tables": "shared"},
    {"gate": "softmax"},
    {"num_experts": 25},
]


def traced(model: Transformer) -> Trace:
    return trace(model, inputs_BT())


def relative(found_TD: Tensor, wanted_TD: Tensor) -> float:
    """The worst token's distance, over the tokens' usual size."""
    return float(
        (found_TD - wanted_TD).norm(dim=1).max() / wanted_TD.norm() * len(wanted_TD) ** 0.5
    )


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_layer_is_its_matrix_and_the_sum_of_its_experts(changes: dict[str, object]) -> None:
    model = untrained_run(**changes).model
    seen = traced(model)
    for layer, (x_TD, y_TD, idx, score) in zip(
        layers_of(model), zip(seen.x, seen.y, seen.idx, seen.score, strict=True), strict=True
    ):
        matrix_TDD = effective_matrix(layer, idx, score)
        assert relative((matrix_TDD @ x_TD[..., None]).squeeze(2), y_TD) < 1e-5
        assert relative(contributions(layer, x_TD, idx, score).sum((1, 2)), y_TD) < 1e-5
    for row in linearity(model, seen.x, seen.y, seen.idx, seen.score):
        assert row.num_tokens == 33
        assert 0 < row.matrix_error < 1e-5
        assert 0 < row.sum_error < 1e-5


@pytest.mark.parametrize("router", ROUTERS)
def test_superposition_holds_while_the_gates_are_held(router: str) -> None:
    model = untrained_run(router=router).model
    seen, layer = traced(model), layers_of(model)[0]
    generator = torch.Generator().manual_seed(1)
    a_TD, b_TD = (torch.randn(seen.x[0].shape, generator=generator) for _ in range(2))
    held = Patch(positions=range(33), idx_PCK=seen.idx[0], score_PCK=seen.score[0])
    with patched_gates(model, {0: held}):
        together = layer(2.0 * a_TD - 3.0 * b_TD)
        apart = 2.0 * layer(a_TD) - 3.0 * layer(b_TD)
    assert relative(together, apart) < 1e-5
    # With the gates free it does not hold, or the test would say nothing.
    assert relative(layer(2.0 * a_TD - 3.0 * b_TD), 2.0 * layer(a_TD) - 3.0 * layer(b_TD)) > 0.1


def test_the_matrix_of_one_expert_by_hand() -> None:
    model = untrained_run(num_channels=1, num_neighbours=1, router="dense").model
    layer = layers_of(model)[0]
    idx_TCK, score_TCK = torch.tensor([[[7]]], dtype=torch.int32), torch.tensor([[[-2.0]]])
    wanted_DD = -2.0 * torch.outer(layer.w_out[0, 7], layer.w_in[0, 7])
    assert torch.allclose(effective_matrix(layer, idx_TCK, score_TCK)[0], wanted_DD)


def test_an_expert_chosen_by_several_channels_counts_as_often() -> None:
    model = untrained_run(tables="shared").model
    seen, layer = traced(model), layers_of(model)[0]
    # All channels choose what the first one chose.
    idx, score = (v[0][:, :1].expand(-1, 3, -1).contiguous() for v in (seen.idx, seen.score))
    held = Patch(positions=range(33), idx_PCK=idx, score_PCK=score)
    with patched_gates(model, {0: held}):
        y_TD = layer(seen.x[0])
    matrix_TDD = effective_matrix(layer, idx, score)
    assert relative((matrix_TDD @ seen.x[0][..., None]).squeeze(2), y_TD) < 1e-5
    one_TDD = effective_matrix(layer, idx[:, :1], score[:, :1])
    assert torch.allclose(matrix_TDD, 3.0 * one_TDD, atol=1e-6)


def test_a_softmax_of_the_scores_weighs_as_a_softmax() -> None:
    for loaded in (untrained_run(gate="softmax"), untrained_run("peer")):
        score_TCK = torch.tensor([[[2.0, 1.0, -1.0]]])
        wanted = torch.softmax(score_TCK, dim=-1)
        assert torch.allclose(weights_of(layers_of(loaded.model)[0], score_TCK), wanted)


@pytest.mark.parametrize("order", ["gate_then_act", "act_then_gate"])
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh", "silu"])
def test_with_an_activation_only_the_sum_is_exact(activation: str, order: str) -> None:
    model = untrained_run(activation=activation, gate_order=order).model
    assert_only_the_sum_is_exact(model, activation)


def test_peer_is_not_linear_but_its_experts_add_up() -> None:
    assert_only_the_sum_is_exact(untrained_run("peer").model, "gelu_tanh")


def assert_only_the_sum_is_exact(model: Transformer, activation: str) -> None:
    seen = traced(model)
    with pytest.raises(UserError, match=f"activation = '{activation}.*not linear") as caught:
        effective_matrix(layers_of(model)[0], seen.idx[0], seen.score[0])
    assert "\n" not in str(caught.value)
    for row in linearity(model, seen.x, seen.y, seen.idx, seen.score):
        assert row.matrix_error is None
        assert row.sum_error < 1e-5


def test_moe_has_no_single_neurons() -> None:
    with pytest.raises(UserError, match="sgatlin or peer"):
        traced(untrained_run("moe").model)
