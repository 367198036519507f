"""What experts add to a logit: complete along the direct path, and the true gradient beyond it."""

from __future__ import annotations

import pytest
import torch

from interpret.made_models import inputs_BT, untrained_run
from isoflop.interpret.attribution import by_gradient, direct, gradients, trace
from isoflop.interpret.gates import Patch, patched_gates
from isoflop.model.transformer import Transformer

POSITION, TOKEN = 17, 99
FAMILIES = ("sgatlin", "peer")


def model_of(family: str) -> Transformer:
    model = untrained_run(family).model
    # At the start all scales are 1, which would hide a forgotten one.
    model.output_norm.scale.copy_(torch.linspace(0.5, 2.0, 16))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_add_up_to_the_residual(family: str) -> None:
    seen = trace(model_of(family), inputs_BT())
    total = seen.embedding_TD + sum(seen.attention) + sum(seen.y)
    assert torch.allclose(total, seen.residual_TD, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_direct_parts_add_up_to_the_logit(family: str) -> None:
    model = model_of(family)
    seen = trace(model, inputs_BT())
    assert torch.equal(seen.logits_TV, model(inputs_BT()).flatten(0, 1))
    for position in range(0, 33, 4):
        found = direct(model, seen, position, TOKEN)
        total = found.embedding + float(found.attention_L.sum() + found.experts_LCK.sum())
        assert found.logit == float(seen.logits_TV[position, TOKEN])
        assert total == pytest.approx(found.logit, abs=1e-5)
        assert found.experts_LCK.shape == (2, 3, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_a_small_push(family: str) -> None:
    """Central difference of the logit along one direction at one token, choices held."""
    model = model_of(family)
    grads = gradients(model, inputs_BT(), POSITION, TOKEN)
    seen = trace(model, inputs_BT())
    held = {
        layer: Patch(positions=range(33), idx_PCK=idx, score_PCK=score)
        for layer, (idx, score) in enumerate(zip(seen.idx, seen.score, strict=True))
    }
    # Of the last layer: nothing chooses after it.
    direction_D = torch.randn(16, generator=torch.Generator().manual_seed(2))
    with patched_gates(model, held):
        pushed = [logit_after_push(model, 1, eps * direction_D) for eps in (0.01, -0.01)]
    wanted = (pushed[0] - pushed[1]) / 0.02
    assert float(grads.y[1][POSITION] @ direction_D) == pytest.approx(wanted, rel=1e-2)


def test_the_gradient_goes_through_later_layers_and_tokens() -> None:
    """Of the first layer at an earlier token, along attention, scores and experts."""
    model = model_of("sgatlin")
    grads = gradients(model, inputs_BT(), POSITION, TOKEN)
    direction_D = torch.randn(16, generator=torch.Generator().manual_seed(2))
    earlier = POSITION - 3
    pushed = [logit_after_push(model, 0, e * direction_D, at=earlier) for e in (2e-3, -2e-3)]
    wanted = (pushed[0] - pushed[1]) / 4e-3
    assert abs(wanted) > 1e-3
    assert float(grads.y[0][earlier] @ direction_D) == pytest.approx(wanted, rel=5e-2)
    # A token sees neither what comes after it nor another window.
    assert not grads.y[0][POSITION + 1 :].any()
    assert not grads.y[0][:11].any()


def logit_after_push(
    model: Transformer, layer: int, push_D: torch.Tensor, at: int = POSITION
) -> float:
    def add(_: object, inputs: object, out_TD: torch.Tensor) -> torch.Tensor:
        out_TD = out_TD.clone()
        out_TD[at] += push_D
        return out_TD

    handle = model.blocks[layer].feedforward.register_forward_hook(add)
    logit = float(model(inputs_BT()).flatten(0, 1)[POSITION, TOKEN])
    handle.remove()
    return logit


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_parts_of_a_whole_residual_cancel(family: str) -> None:
    """The output norm does not see the residual grow, so along itself its gradient is 0."""
    model = model_of(family)
    seen = trace(model, inputs_BT())
    grads = gradients(model, inputs_BT(), POSITION, TOKEN)
    logit = abs(float(seen.logits_TV[POSITION, TOKEN]))
    assert abs(float(grads.y[1][POSITION] @ seen.residual_TD[POSITION])) < 1e-4 * logit


def test_contributions_by_gradient_are_products_with_it() -> None:
    model = model_of("sgatlin")
    seen = trace(model, inputs_BT())
    grads = gradients(model, inputs_BT(), POSITION, TOKEN)
    found = by_gradient(model, seen, inputs_BT(), position=POSITION, token=TOKEN)
    for layer in range(2):
        wanted = float(grads.y[layer][POSITION] @ seen.y[layer][POSITION])
        assert float(found.experts_LCK[layer].sum()) == pytest.approx(wanted, abs=1e-5)
    earlier = by_gradient(model, seen, inputs_BT(), position=POSITION, token=TOKEN, source=16)
    wanted = float(grads.y[0][16] @ seen.y[0][16])
    assert float(earlier.experts_LCK[0].sum()) == pytest.approx(wanted, abs=1e-5)
    # After the last attention no other token has a say.
    assert not earlier.experts_LCK[1].any()
    assert earlier.embedding == pytest.approx(float(grads.embedding_TD[16] @ seen.embedding_TD[16]))


def test_looking_leaves_the_model_as_it_was() -> None:
    model = model_of("sgatlin")
    before = model(inputs_BT())
    seen = trace(model, inputs_BT())
    by_gradient(model, seen, inputs_BT(), position=POSITION, token=TOKEN)
    assert torch.equal(model(inputs_BT()), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
