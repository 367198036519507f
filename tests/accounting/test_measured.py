"""FLOPs and parameters that torch counts on real models against the ledger: exact integers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoflop.accounting.ledger import COMPONENT_NAMES
from isoflop.families import get_spec
from isoflop.model import build_model, next_token_loss
from isoflop.plan.identity import RunSpec
from isoflop.plan.runs import run_ledger
from isoflop_kernels import use_implementation

# (d_model, n_layers, n_heads, vocab_size, seq_len, batch_size)
SIZES = [(16, 1, 1, 32, 8, 1), (24, 2, 3, 256, 12, 2), (40, 3, 2, 61, 7, 3)]
ROUTERS = ("product_dense", "product_key_value", "dense", "key_value")
CASES = ["mlp", "swiglu", "moe", "peer", *(f"sgatlin/{router}" for router in ROUTERS)]


def config_values(case: str, scale: int) -> dict[str, Any]:
    routed = {
        "num_channels": scale,
        "num_neighbours": 2 + scale,
        "num_experts": (4 + scale) ** 2,
        "router_width": 5 * scale,
    }
    family, _, router = case.partition("/")
    return {
        "mlp": {"hidden_width": 10 * scale},
        "swiglu": {"hidden_width": 10 * scale},
        "moe": {"num_experts": 3 + scale, "num_active": scale, "hidden_width": 6 * scale},
        "peer": routed,
        "sgatlin": routed | {"router": router},
    }[family]


def made_spec(case: str, scale: int) -> RunSpec:
    d_model, n_layers, n_heads, vocab_size, seq_len, batch_size = SIZES[scale - 1]
    family = case.partition("/")[0]
    return RunSpec(
        family=family,
        config=dataclasses.asdict(get_spec(family).Config(**config_values(case, scale))),
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        vocab_size=vocab_size,
        seq_len=seq_len,
        batch_size=batch_size,
        steps=1,
        data_id="made",
        tokenizer_hash="made",
        seed=0,
        recipe="micro-v1",
        precision="fp32",
    )


def measured_flops(spec: RunSpec, implementation: str = "reference") -> tuple[int, int]:
    """FLOPs of one batch: forward, and forward with backward.

    The CPU's flash attention is not counted by torch, so attention runs as plain products.
    """
    model = build_model(spec)
    generator = torch.Generator().manual_seed(0)
    shape = (spec.batch_size, spec.seq_len)
    tokens = torch.randint(2, spec.vocab_size, shape, generator=generator)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), use_implementation(implementation):
        loss = next_token_loss(model(tokens), tokens)
        forward = counter.get_total_flops()
        loss.backward()
        return forward, counter.get_total_flops()


@pytest.mark.parametrize("implementation", ["reference", "bag"])
@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_measured_flops_are_the_ledgers(case: str, scale: int, implementation: str) -> None:
    spec = made_spec(case, scale)
    forward, training = measured_flops(spec, implementation)
    per_token = run_ledger(spec).flops(*COMPONENT_NAMES)
    assert forward == per_token * spec.batch_size * spec.seq_len
    assert training == 3 * forward


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_held_parameters_are_the_ledgers(case: str, scale: int) -> None:
    spec = made_spec(case, scale)
    model = build_model(spec)
    assert sum(p.numel() for p in model.parameters()) == run_ledger(spec).num_params
    assert model.embedding.numel() == run_ledger(spec).num_embedding_params
