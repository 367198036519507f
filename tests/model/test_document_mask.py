"""Attention that ends with the document."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from isoflop.model.attention import Attention, same_document
from isoflop.model.init import initialise
from isoflop.model.transformer import Transformer, build_model
from isoflop.plan.planner import make_plan
from isoflop.spec import run_id
from made_studies import micro
from made_training import made_spec, undisturbed

END = 1
# Two windows: three documents (one of them empty), and one that has no end.
INPUTS_BT = torch.tensor([[1, 5, 6, 1, 1, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8]])
DOCUMENT_BT = [[0, 0, 0, 1, 2, 2, 2, 2], [0] * 8]


def masked_model() -> Transformer:
    model = build_model(made_spec("sgatlin"))
    model.document_end = END
    return model


def test_a_query_sees_what_came_before_it_in_its_document() -> None:
    visible = same_document(INPUTS_BT, END)
    assert visible.shape == (2, 1, 8, 8)
    for window in range(2):
        document = DOCUMENT_BT[window]
        for query in range(8):
            for key in range(8):
                sees = key <= query and document[key] == document[query]
                assert bool(visible[window, 0, query, key]) == sees


def test_without_documents_the_mask_is_the_causal_one() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 2)
    initialise(attention, 3)
    x_BTD = torch.randn(2, 8, 16)
    whole = same_document(torch.full((2, 8), 5), END)
    torch.testing.assert_close(attention(x_BTD, whole), attention(x_BTD))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_no_gradient_crosses_from_one_document_to_another(checkpointed: bool) -> None:
    model = masked_model()
    model.checkpoint_activations = checkpointed
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x_BTD = args[0].detach().requires_grad_()
        seen.append(x_BTD)
        return (x_BTD, *args[1:])

    model.blocks[0].register_forward_pre_hook(keep)
    for query in range(8):
        seen.clear()
        logits = model(INPUTS_BT)
        (gradient,) = torch.autograd.grad(logits[0, query].square().sum(), seen[0])
        reached = gradient[0].abs().sum(-1) > 0
        document = DOCUMENT_BT[0]
        wanted = [k <= query and document[k] == document[query] for k in range(8)]
        assert reached.tolist() == wanted


def test_another_document_changes_no_logit_and_its_own_does() -> None:
    model, other = masked_model(), INPUTS_BT.clone()
    other[0, 1:3] = torch.tensor([20, 21])
    before, after = model(INPUTS_BT)[0], model(other)[0]
    torch.testing.assert_close(before[3:], after[3:])
    assert not torch.allclose(before[2], after[2])
    model.document_end = None
    assert not torch.allclose(model(INPUTS_BT)[0, 3:], model(other)[0, 3:])


def test_the_mask_is_part_of_what_a_run_is_only_where_it_is_on() -> None:
    plain = made_spec()
    masked = dataclasses.replace(plain, document_mask=True)
    assert "document_mask" not in plain.to_json()
    assert masked.to_json()["document_mask"] is True
    assert run_id(plain) != run_id(masked)
    assert type(plain).from_json(masked.to_json()) == masked
    assert type(plain).from_json(plain.to_json()) == plain


def test_a_study_asks_for_it_and_flops_are_counted_as_without() -> None:
    study = micro()
    plain, masked = make_plan(study), make_plan(dataclasses.replace(study, document_mask=True))
    assert "document_mask" not in study.to_json()
    assert all(run.spec.document_mask for run in masked.runs)
    assert [run.flops for run in masked.runs] == [run.flops for run in plain.runs]
    assert [run.spec.steps for run in masked.runs] == [run.spec.steps for run in plain.runs]
    assert not {run.run_id for run in masked.runs} & {run.run_id for run in plain.runs}


def test_training_obeys_it() -> None:
    # Token 97 ends a text here: windows of made-up data are full of them.
    def losses(document_mask: bool) -> list[float]:
        from made_data import MadeData

        MadeData.end_of_text_id, before = 97, MadeData.end_of_text_id
        try:
            run = undisturbed(made_spec(steps=10, document_mask=document_mask))
        finally:
            MadeData.end_of_text_id = before
        return [metrics.loss for metrics in run.steps]

    assert losses(True) != losses(False)
    assert losses(True) == losses(True)
