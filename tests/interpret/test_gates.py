"""Seeing and changing the choice of experts."""

from __future__ import annotations

import pytest
import torch

from interpret.made_models import inputs_BT, untrained_run
from isoflop.errors import UserError
from isoflop.interpret.gates import Patch, patched_gates, recorded_gates
from isoflop.train.routing import gated_modules

FAMILIES = ("sgatlin", "peer", "moe")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_choices_of_the_newest_pass_are_kept(family: str) -> None:
    model = untrained_run(family).model
    with recorded_gates(model) as gates:
        model(inputs_BT(1, 5))
        model(inputs_BT())
    num_channels, num_chosen = (1, 2) if family == "moe" else (3, 4)
    idx_LTCK, score_LTCK = torch.stack(gates.idx), torch.stack(gates.score)
    assert idx_LTCK.shape == (2, 33, num_channels, num_chosen)
    assert idx_LTCK.dtype == torch.int32
    assert score_LTCK.shape == idx_LTCK.shape
    assert torch.equal(score_LTCK.sort(-1, descending=True).values, score_LTCK)


def test_recorded_choices_are_those_of_the_layers_router() -> None:
    model = untrained_run().model
    layer = gated_modules(model)[0]
    seen = []
    handle = layer.router.register_forward_hook(lambda _, given, out: seen.append(out))
    with recorded_gates(model) as gates:
        model(inputs_BT())
    handle.remove()
    assert torch.equal(gates.score[0], seen[0][0])
    assert torch.equal(gates.idx[0], seen[0][1])


def test_hooks_are_put_back_even_after_an_error() -> None:
    model = untrained_run().model

    def mine(idx: torch.Tensor, score: torch.Tensor) -> None:
        pass

    gated_modules(model)[1].gates = mine  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError), recorded_gates(model):
        _ = 1 / 0
    assert [module.gates for module in gated_modules(model)] == [None, mine]
    patch = Patch(positions=[0], idx_PCK=torch.zeros(1, 3, 4), score_PCK=torch.zeros(1, 3, 4))
    before = model(inputs_BT())
    with pytest.raises(ZeroDivisionError), patched_gates(model, {0: patch}):
        _ = 1 / 0
    assert torch.equal(model(inputs_BT()), before)


@pytest.mark.parametrize("family", ["sgatlin", "peer"])
def test_a_models_own_gates_change_nothing(family: str) -> None:
    model = untrained_run(family).model
    with recorded_gates(model) as gates:
        before = model(inputs_BT())
    own = {
        layer: Patch(
            positions=[2, 30],
            idx_PCK=gates.idx[layer][[2, 30]],
            score_PCK=gates.score[layer][[2, 30]],
        )
        for layer in range(2)
    }
    with patched_gates(model, own):
        assert torch.equal(model(inputs_BT()), before)


def test_a_patch_acts_at_its_positions_and_layers_only() -> None:
    model = untrained_run().model
    with recorded_gates(model) as before:
        logits_BTV = model(inputs_BT())
    patch = Patch(
        positions=[3, 14],
        idx_PCK=(before.idx[1][[3, 14]] + 1) % 36,
        score_PCK=before.score[1][[3, 14]] * 2,
    )
    with patched_gates(model, {1: patch}), recorded_gates(model) as after:
        patched_BTV = model(inputs_BT())
    changed = (patched_BTV != logits_BTV).any(-1).flatten().nonzero().flatten().tolist()
    assert changed == [3, 14]
    assert torch.equal(after.idx[0], before.idx[0])
    # What is seen is what was patched in.
    assert torch.equal(after.idx[1][[3, 14]], patch.idx_PCK)
    assert torch.equal(after.score[1][[3, 14]], patch.score_PCK)
    kept = [t for t in range(33) if t not in (3, 14)]
    assert torch.equal(after.idx[1][kept], before.idx[1][kept])
    assert torch.equal(model(inputs_BT()), logits_BTV)


def test_a_patch_in_an_early_layer_reaches_later_tokens_and_no_earlier_ones() -> None:
    model = untrained_run().model
    with recorded_gates(model) as gates:
        before_BTV = model(inputs_BT(1, 8))
    patch = Patch(positions=[4], idx_PCK=gates.idx[0][[4]], score_PCK=gates.score[0][[4]] * 5)
    with patched_gates(model, {0: patch}):
        after_BTV = model(inputs_BT(1, 8))
    changed = (before_BTV != after_BTV).any(-1)[0]
    assert changed.tolist() == [False] * 4 + [True] * 4


def test_moe_can_be_seen_but_not_patched() -> None:
    model = untrained_run("moe").model
    with pytest.raises(UserError, match="with a router module") as caught, patched_gates(model, {}):
        pass
    assert "\n" not in str(caught.value)
