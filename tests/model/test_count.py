"""`isoflop.count` on modules that nobody here wrote the accounting of."""

from __future__ import annotations

import pytest
import torch

import isoflop
from isoflop.accounting import CONVENTIONS
from isoflop.model.transformer import uninitialised_model
from isoflop.plan.runs import run_ledger
from isoflop.spec import RunSpec
from made_gpt import GPT
from made_shapes import rung_spec


def ids(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long)


# Layers, width, heads, parameters (Radford et al. 2019; the smallest is 124M since its release).
GPT_2 = {
    "small": (12, 768, 12, 124_439_808),
    "medium": (24, 1024, 16, 354_823_168),
    "large": (36, 1280, 20, 774_030_080),
    "xl": (48, 1600, 25, 1_557_611_200),
}


@pytest.mark.parametrize(
    "size", [s if s == "small" else pytest.param(s, marks=pytest.mark.slow) for s in GPT_2]
)
def test_gpt_2_by_its_closed_formula(size: str) -> None:
    n_layers, width, n_heads, n_params = GPT_2[size]
    with torch.device("meta"):
        model = GPT(width, n_heads, n_layers)
    count = isoflop.count(model, ids(1, 1024), targets=ids(1, 1024))
    forward = n_layers * (24 * width**2 + 4 * 1024 * width) + 2 * width * 50257
    assert count.training_flops == 3 * forward
    assert count.flops == forward
    assert count.n_params == n_params
    assert count.n_nonembed == n_params - (50257 + 1024) * width
    assert dict(count.flops_by_component) == {
        "attn_proj": n_layers * 8 * width**2,
        "attn_scores": n_layers * 4 * 1024 * width,
        "experts": n_layers * 16 * width**2,
        "head": 2 * width * 50257,
        "norms": 0,
        "other": 0,
    }
    assert (count.n_layers, count.n_heads) == (n_layers, n_heads)
    if size == "small":
        assert count.training_flops == 854_438_400


FAMILIES = ["mlp", "swiglu", "moe", "peer", "sgatlin"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_built_in_families_have_their_ledgers(family: str) -> None:
    spec = rung_spec(family, 1, "micro-v1")
    model = uninitialised_model(spec)
    check_ledger(spec, isoflop.count(model, ids(2, spec.seq_len)))


def check_ledger(spec: RunSpec, count: isoflop.accounting.count.Count) -> None:
    ledger = run_ledger(spec)
    found = {c.name: c for c in count.components}
    for component in ledger.components:
        if component.name not in found:
            assert component.flops_per_token == component.num_params == 0
            continue
        ours = found[component.name]
        assert ours.flops_per_token == component.flops_per_token, component.name
        assert ours.training_flops_per_token == component.training_flops_per_token
        assert ours.num_params == component.num_params, component.name
    for name, convention in CONVENTIONS.items():
        assert count.training_flops_per_token(name) == convention(ledger)
    assert count.n_nonembed == ledger.num_nonembed_params
