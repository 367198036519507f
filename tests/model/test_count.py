"""`isoflop.count` on modules that nobody here wrote the accounting of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
        assert ours.num_active_params == component.num_active_params, component.name
    for name, convention in CONVENTIONS.items():
        assert count.training_flops_per_token(name) == convention(ledger)
    assert count.n_nonembed == ledger.num_nonembed_params


def test_a_product_of_tables_is_no_work_and_what_is_made_of_weights_is() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 16)
            self.up, self.down = (nn.Parameter(torch.zeros(16, 16)) for _ in range(2))
            self.register_buffer("rates", torch.ones(4, 1))

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            angles = self.rates @ torch.arange(idx.shape[1])[None].float()
            x = self.embedding(idx) + angles.cos().sum()
            # Once for the whole batch.
            return x @ (self.up @ self.down)

    count = isoflop.count(Model(), ids(3, 8))
    assert count.training_flops == 3 * 2 * 16 * 16 + 3 * 2 * 16**3 // 24


def test_what_does_not_divide_is_rounded_up_and_its_parts_add_up() -> None:
    model = GPT(8, 2, 2, vocab=50, length=7)
    count = isoflop.count(model, ids(1, 7))
    head = 2 * 8 * 50
    assert count.flops == 2 * (24 * 64 + 4 * 7 * 8) + -(-head // 7)
    assert sum(c.training_flops_per_token for c in count.components) == count.training_flops
    assert sum(c.flops_per_token for c in count.components) == count.flops
    assert "rounded up" in count.notes[0]
    assert "logits of 1 of 7 tokens only" in count.notes[1]
    assert count.modules[0].training_flops == count.training_flops


@pytest.mark.parametrize("kind", [torch.nn.Conv1d, torch.nn.ConvTranspose1d])
@pytest.mark.parametrize("groups", [1, 4, 16])
def test_convolutions_in_groups_have_gradients_in_groups(
    kind: type[torch.nn.Conv1d], groups: int
) -> None:
    """torch's own formula takes the gradient of a weight for that of a dense convolution."""
    x = torch.zeros(2, 16, 8, requires_grad=True)
    count = isoflop.count(kind(16, 16, 3, padding=1, groups=groups), x)
    whole = 2 * 2 * 8 * 16 * 16 * 3 // groups
    assert (count.flops * count.num_tokens, count.training_flops * count.num_tokens) == (
        whole,
        3 * whole,
    )


def test_parts_of_a_layer_that_has_all_in_one_module() -> None:
    """Attention and feed-forward in one forward pass, without modules of their own."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
            self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            x = x + self.proj((q @ k.mT).softmax(-1) @ v)
            return x + self.down(self.gate(x).sigmoid() * self.up(x))

    expected = {"attn_proj": 2048, "attn_scores": 4 * 8 * 16, "experts": 3072, "norms": 0}
    one = isoflop.count(Layer(), torch.zeros(2, 8, 16, requires_grad=True))
    several = nn.Sequential(nn.Embedding(9, 16), *(Layer() for _ in range(3)), nn.Linear(16, 9))
    whole = isoflop.count(several, ids(2, 8))
    assert {n: f for n, f in one.flops_by_component.items() if f} == {
        n: f for n, f in expected.items() if f
    }
    assert {n: f for n, f in whole.flops_by_component.items() if f} == {
        n: 3 * f for n, f in expected.items() if f
    } | {"head": 2 * 16 * 9}
    assert (one.n_layers, one.n_heads, whole.n_layers, whole.n_heads) == (1, 1, 3, 1)


def test_a_mixture_computed_for_all_tokens_has_a_router() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(16, 4, bias=False)
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weights, index = self.router(x).softmax(-1).topk(2, -1)
            gates = torch.zeros(*x.shape[:-1], 4).scatter(-1, index, weights)
            return torch.einsum(
                "bte,btde->btd", gates, torch.stack([e(x) for e in self.experts], -1)
            )

    model = nn.Sequential(nn.Embedding(9, 16), Mixture(), nn.Linear(16, 9))
    count = isoflop.count(model, ids(2, 8))
    # The weighted sum of the experts is the router's.
    assert {n: f for n, f in count.flops_by_component.items() if f} == {
        "experts": 4 * 2 * 16 * 16,
        "router": 2 * 16 * 4 + 2 * 16 * 4,
        "head": 2 * 16 * 9,
    }
    assert count.n_layers is None
