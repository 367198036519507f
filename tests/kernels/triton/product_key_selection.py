"""Selection in Triton's interpreter, against brute force; run by `test_triton_interpreter.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import isoflop_kernels
from isoflop_kernels.product_key_topk import triton_op
from kernels import test_product_key_topk as shared


@pytest.fixture(autouse=True, scope="module")
def _only_triton():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "IMPLEMENTATIONS", ("triton",))
        yield


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(shared.similarities(shared.st.integers(-2, 2).map(float)))
def test_exact_with_many_ties(sim_and_k):
    shared.assert_brute_force(*sim_and_k)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(shared.similarities(shared.ROUNDING))
def test_exact_when_rounding_makes_ties(sim_and_k):
    shared.assert_brute_force(*sim_and_k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(shared.similarities(shared.LOST))
def test_exact_in_half_precision_when_sums_lose_a_half(dtype, sim_and_k):
    sim, k = sim_and_k
    shared.assert_brute_force(sim.to(dtype), k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_that_a_sum_loses_is_told_by_the_ranks_kept(dtype):
    shared.test_half_precision_that_a_sum_loses_is_told_by_the_ranks_kept(dtype)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(shared.similarities(shared.FINITE))
def test_exact_for_any_finite_numbers(sim_and_k):
    shared.assert_brute_force(*sim_and_k)


@pytest.mark.parametrize(("num_keys", "k"), [(12, 4), (28, 4), (20, 8), (5, 5), (3, 1), (17, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_exact_at_router_sizes(num_keys, k, dtype):
    sim = torch.randn(5, 2, 2, num_keys, generator=torch.Generator().manual_seed(num_keys))
    shared.assert_brute_force(sim.to(dtype), k)


def test_rounding_ties_need_pairs_that_rank_pruning_leaves_out():
    sim = torch.tensor([[0.5, 1.0], [2.0**24, 0.0]]).view(1, 2, 1, 2)
    with isoflop_kernels.use_implementation("triton"):
        assert isoflop_kernels.product_key_topk(sim, 1)[1].item() == 0
        assert isoflop_kernels.product_key_topk(torch.zeros(1, 2, 1, 6), 6)[1].tolist() == [
            [[0, 1, 2, 3, 4, 5]]
        ]


def test_nan_is_passed_on():
    values = torch.tensor(
        [float("nan"), -float("nan"), float("inf"), -float("inf"), 3e38, 1.0, 0.0]
    )
    chosen = torch.randint(7, (6, 2, 1, 4), generator=torch.Generator().manual_seed(2))
    # The interpreter adds in numpy, which warns of inf - inf.
    with np.errstate(invalid="ignore", over="ignore"):
        shared.assert_brute_force(values[chosen], 2)


@pytest.mark.parametrize("limit", ["MAX_SUB_KEYS", "MAX_CHOSEN"])
def test_sizes_that_fit_no_program_take_the_packed_path(limit, monkeypatch):
    monkeypatch.setattr(triton_op, limit, 3)
    monkeypatch.setattr(triton_op, "pairs_kernel", None)
    shared.assert_brute_force(torch.randn(3, 2, 1, 6), 4)


def test_gradient_and_registration():
    sim = torch.randn(2, 2, 1, 5, requires_grad=True)
    grads = []
    for name in ("bag", "triton"):
        with isoflop_kernels.use_implementation(name):
            score, _ = isoflop_kernels.product_key_topk(sim, 3)
        grads.append(torch.autograd.grad(score.square().sum(), sim)[0])
    assert torch.equal(*grads)
    torch.library.opcheck(
        torch.ops.isoflop_kernels.product_key_pairs_triton.default, (sim.detach(), 3)
    )
