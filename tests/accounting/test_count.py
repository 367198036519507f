from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from isoflop.accounting import CONVENTIONS, Component
from isoflop.accounting.count import Count, ModuleFlops
from isoflop.errors import UserError


def made_count(**changes: Any) -> Count:
    scores = Component(
        name="attn_scores",
        flops_per_token=4 * 2 * 3 * 8,
        counted_training_flops_per_token=11 * 2 * 3 * 8,
        num_params=0,
        num_active_params=0,
    )
    head = Component(name="head", flops_per_token=90, num_params=45, num_active_params=45)
    other = Component(name="other", flops_per_token=5, num_params=1, num_active_params=1)
    values: dict[str, Any] = {
        "training_flops": 528 + 270 + 15,
        "flops": 192 + 95,
        "n_params": 46,
        "n_active": 46,
        "n_nonembed": 1,
        "components": (scores, head, other),
        "modules": (ModuleFlops(path="", kind="M", flops=287, training_flops=813, num_params=46),),
        "num_tokens": 6,
        "seq_len": 3,
        "n_layers": 2,
        "n_heads": 4,
        "elementwise_per_token": 0,
        "notes": ("made",),
    }
    return Count(**values | changes)


def test_a_count_is_the_same_after_a_file() -> None:
    declared = Count.declared_from(flops_per_token=10**18 + 1, n_params=7, n_nonembed=3)
    for count in (made_count(), declared):
        assert Count.from_json(json.loads(json.dumps(count.to_json()))) == count
    with pytest.raises(UserError, match="count.n_heads"):
        Count.from_json(made_count().to_json() | {"n_heads": 0})


def test_every_convention_follows_from_what_was_counted() -> None:
    count = made_count()
    # Of 3 tokens, 6 of 9 pairs.
    assert {name: count.training_flops_per_token(name) for name in CONVENTIONS} == {
        "paper": 528 + 15,
        "paper+head": 813,
        "causal": 813 - 176,
        "chinchilla": 813 + 270 + 3 * 3 * 2 * 4 * 3,
        "6n": 6,
        "6n_total": 276,
    }
    assert count.flops_by_component == {"attn_scores": 192, "head": 90, "other": 5}


def test_a_convention_that_needs_what_the_model_does_not_show_is_refused() -> None:
    with pytest.raises(UserError, match="'chinchilla'.*as many heads in each layer.*paper.head"):
        made_count(n_heads=None).training_flops_per_token("chinchilla")
    uneven = dataclasses.replace(
        made_count().components[0], counted_training_flops_per_token=7, flops_per_token=2
    )
    with pytest.raises(UserError, match="'causal'.*every pair of tokens"):
        made_count(components=(uneven,)).training_flops_per_token("causal")
    with pytest.raises(UserError, match="convention = 'kaplan'"):
        made_count().training_flops_per_token("kaplan")


def test_declared_numbers_stand_in_every_convention() -> None:
    count = Count.declared_from(flops_per_token=1001, n_params=70, n_active=20)
    assert {count.training_flops_per_token(name) for name in CONVENTIONS} == {1001}
    assert count.flops_by_component == {}
    assert count.flops is None
    assert (count.n_params, count.n_active, count.n_nonembed) == (70, 20, 70)
    assert count.ledger().training_flops("other") == 1001


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"flops_per_token": 0}, "flops_per_token = 0"),
        ({"flops_per_token": 1.5}, "flops_per_token = 1.5"),
        ({"n_params": 0}, "n_params"),
        ({"n_active": 71}, "n_active = 71"),
        ({"n_nonembed": -1}, "n_nonembed"),
    ],
)
def test_declared_numbers_are_checked(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        Count.declared_from(**{"flops_per_token": 1, "n_params": 70} | wrong)
