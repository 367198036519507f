"""The counter of executed bytes and FLOPs: against counts by hand, and against the ledger."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from isoflop.plan.runs import run_ledger
from isoflop.spec import RunSpec
from isoflop.train.traffic import Traffic, TrafficCounter, counted_step
from made_shapes import FAMILIES, rung_spec


def spec_of(family: str, **changes: Any) -> RunSpec:
    """Return a small run none of whose sizes is another's."""
    return rung_spec(family, 2, "micro-v1", batch_size=6, seq_len=33, vocab_size=301, **changes)


@pytest.fixture(scope="module", params=FAMILIES)
def step(request: pytest.FixtureRequest) -> tuple[RunSpec, Any]:
    spec = spec_of(request.param)
    return spec, counted_step(spec)


def test_flops_of_every_part_are_the_ledger_s(step: tuple[RunSpec, Any]) -> None:
    spec, parts = step
    tokens = spec.batch_size * spec.seq_len
    for component in run_ledger(spec).components:
        if component.flops_per_token:
            counted = parts[component.name].flops
            assert counted == component.training_flops_per_token * tokens, component.name
    products = {"attn_proj", "attn_scores", "experts", "router", "head"}
    assert {name for name, part in parts.items() if part.flops} <= products


def test_adamw_and_clipping_are_dense_and_little_is_left(step: tuple[RunSpec, Any]) -> None:
    spec, parts = step
    num_params = run_ledger(spec).num_params
    # Beside them the numbers of steps, and the norms of each parameter.
    assert parts["optimizer"].num_bytes == pytest.approx(28 * num_params, rel=0.02)
    assert parts["clipping"].num_bytes == pytest.approx(12 * num_params, rel=0.02)
    assert parts["other"].num_bytes < 300
    assert all(part.num_bytes == part.operators.total() for part in parts.values())


def test_compiled_chains_move_less_and_products_the_same(step: tuple[RunSpec, Any]) -> None:
    _, parts = step
    assert 2 < parts["elementwise"].num_bytes / parts["elementwise"].fused_bytes < 5
    assert parts["attn_proj"].fused_bytes == parts["attn_proj"].num_bytes


def test_micro_batches_add_up_gradients_and_nothing_else_grows_by_it() -> None:
    whole, split = (counted_step(spec_of("mlp"), micro_batch=size) for size in (6, 2))
    num_params = run_ledger(spec_of("mlp")).num_params
    added = split["accumulation"].num_bytes - whole["accumulation"].num_bytes
    assert added == 2 * 12 * num_params
    assert split["optimizer"].num_bytes == whole["optimizer"].num_bytes
    assert split["attn_proj"].flops == whole["attn_proj"].flops


def test_a_recomputed_forward_pass_counts_where_it_is_work() -> None:
    plain, again = (counted_step(spec_of("swiglu"), checkpointing=on) for on in (False, True))
    for name in ("attn_proj", "attn_scores"):
        assert again[name].flops * 3 == plain[name].flops * 4
    # The layer's last product is not needed again: a third of the forward pass of swiglu's.
    assert again["experts"].flops * 9 == plain["experts"].flops * 11
    assert again["head"].flops == plain["head"].flops


def test_bf16_casts_every_matrix_of_the_layers_there_and_its_gradient_back() -> None:
    spec = spec_of("mlp", precision="bf16")
    parts = counted_step(spec)
    matrices = sum(
        component.num_params
        for component in run_ledger(spec).components
        if component.name in ("attn_proj", "experts")
    )
    assert parts["casts"].num_bytes == 12 * matrices
    assert parts["attn_proj"].num_bytes < counted_step(spec_of("mlp"))["attn_proj"].num_bytes


class Made(nn.Module):
    """Two elementwise steps around a product, and the parameter that the counter asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.ones(7, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x * 2).exp() @ self.embedding[:5].T.detach()).exp()


def counted(run: Any, model: nn.Module | None = None) -> dict[str, Traffic]:
    with TrafficCounter(model or Made()) as counter:
        run()
    return dict(counter.parts())


def test_operands_count_once_and_what_is_not_touched_does_not() -> None:
    x, y, index = torch.ones(100, 8), torch.ones(8), torch.tensor([1, 1, 7])
    for run, num_bytes in (
        (lambda: x + x, 3200 + 3200),
        (lambda: x + y, 3200 + 32 + 3200),
        (lambda: x + y.expand(100, 8), 3200 + 32 + 3200),
        (lambda: x.add_(y), 3200 + 32 + 3200),
        (lambda: x.t().contiguous().view(-1), 6400),
        (lambda: x.fill_(2.0), 3200),
        (lambda: x.copy_(y.expand(100, 8)), 3200 + 32),
        (lambda: x[:10].sum(), 320 + 4),
        (lambda: x.index_select(0, index), 2 * 96 + 24),
        (lambda: x.to(torch.bfloat16), 3200 + 1600),
        (lambda: torch.empty(1000), 0),
    ):
        found = counted(run)
        assert sum(part.num_bytes for part in found.values()) == num_bytes


def test_a_chain_of_elementwise_operators_moves_its_ends_alone() -> None:
    model, x = Made(), torch.ones(10, 4)
    part = counted(lambda: model(x), model)["elementwise"]
    assert part.num_bytes == 4 * (4 * 40 + 2 * 50)
    # The result of the second chain is nobody's, so that only its input is left.
    assert part.fused_bytes == 4 * (2 * 40 + 50)
