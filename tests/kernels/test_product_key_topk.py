"""Selection against brute force in numpy, with ties made on purpose."""

# T tokens, C channels, N sub-keys per half, K chosen

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import isoflop_kernels
from isoflop_kernels.product_key_topk import packed

IMPLEMENTATIONS = ("reference", "bag", "cpp")


def brute_force(sim: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Stable sort of all N * N float32 sums, NaN first, then the largest."""
    half = sim.float().numpy() if sim.dtype != torch.float64 else sim.numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        sums = half[:, 0, :, :, None] + half[:, 1, :, None, :]
    flat = sums.reshape(*sums.shape[:2], -1)
    is_nan = np.isnan(flat)
    idx = np.lexsort((-np.where(is_nan, 0, flat), ~is_nan), axis=2)[:, :, :k]
    return np.take_along_axis(flat, idx, 2), idx


def assert_brute_force(sim: Tensor, k: int) -> None:
    expected_score, expected_idx = brute_force(sim, k)
    for implementation in IMPLEMENTATIONS:
        with isoflop_kernels.use_implementation(implementation):
            score, idx = isoflop_kernels.product_key_topk(sim, k)
        assert idx.dtype == torch.int32
        assert score.dtype == sim.dtype
        np.testing.assert_array_equal(idx.numpy(), expected_idx)
        expected = torch.from_numpy(expected_score).to(sim.dtype)
        np.testing.assert_array_equal(score.double().numpy(), expected.double().numpy())


@st.composite
def similarities(draw, elements) -> tuple[Tensor, int]:
    num_keys = draw(st.integers(1, 9))
    k = draw(st.integers(1, num_keys))
    shape = (draw(st.integers(1, 3)), 2, draw(st.integers(1, 2)), num_keys)
    count = int(np.prod(shape))
    values = draw(st.lists(elements, min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float32).view(shape), k


FINITE = st.floats(
    width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126
)
# Sums of these round: 2**24 + 1 is not a float32, so different halves give equal sums.
# inf - inf is the machine's own NaN, which has a sign bit on x86.
NOT_FINITE = st.sampled_from(
    [math.nan, -math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**24, 1.0, 0.0, -1.0]
)
ROUNDING = st.sampled_from([2.0**24, 2.0**24 + 2, 1.0, 0.5, 0.0, -0.0, 1e-30, -1.0, -(2.0**24)])


# Sums in float32 lose some of these halves; others tie exactly.
LOST = st.sampled_from([1.0, 2.0, -1.0, 2.0**-13, 2.0**-23, 2.0**-24, -(2.0**-24)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(similarities(LOST))
def test_exact_in_half_precision_when_sums_lose_a_half(dtype, sim_and_k):
    sim, k = sim_and_k
    assert_brute_force(sim.to(dtype), k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_that_a_sum_loses_is_told_by_the_ranks_kept(dtype):
    """Both sums with the first of the second half are 1024: by ranks alone sub-key 1 is chosen."""
    sim = torch.tensor([[2.0**-15, 2.0**-14], [1024.0, 1.0]], dtype=dtype).view(1, 2, 1, 2)
    assert_brute_force(sim, 1)
    assert_brute_force(sim.flip(1), 1)


def test_half_precision_that_ties_exactly_does_not_go_through_all_pairs(monkeypatch):
    rows, redo = [], packed._redo
    monkeypatch.setattr(packed, "_redo", lambda *args: rows.append(args[2].numel()) or redo(*args))
    sim = torch.randn(512, 2, 4, 88, generator=torch.Generator().manual_seed(0)).bfloat16()
    pairs = packed.product_key_pairs(sim, 8)
    assert sum(rows) == 0
    monkeypatch.setattr(packed, "LOST", {})
    assert torch.equal(packed.product_key_pairs(sim, 8), pairs)
    assert sum(rows) > 10


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(similarities(st.integers(-2, 2).map(float)))
def test_exact_with_many_ties(sim_and_k):
    assert_brute_force(*sim_and_k)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(similarities(ROUNDING))
def test_exact_when_rounding_makes_ties(sim_and_k):
    assert_brute_force(*sim_and_k)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(similarities(FINITE))
def test_exact_for_any_finite_numbers(sim_and_k):
    assert_brute_force(*sim_and_k)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(similarities(NOT_FINITE))
def test_nan_is_passed_on_by_every_implementation(sim_and_k):
    assert_brute_force(*sim_and_k)


@pytest.mark.parametrize(("num_keys", "k"), [(12, 4), (20, 8), (17, 16)])
@pytest.mark.parametrize("nan", [math.nan, -math.nan])
def test_one_nan_sub_key_of_many_reaches_the_scores(num_keys, k, nan):
    sim = torch.randn(32, 2, 2, num_keys, generator=torch.Generator().manual_seed(k))
    sim[5, 1, 0, 3] = nan
    assert_brute_force(sim, k)
    for implementation in IMPLEMENTATIONS:
        with isoflop_kernels.use_implementation(implementation):
            score, _ = isoflop_kernels.product_key_topk(sim, k)
            values, position = isoflop_kernels.stable_topk(sim, k)
        assert score.isnan().any(2).nonzero().tolist() == [[5, 0]]
        assert values.isnan().nonzero().tolist() == [[5, 1, 0, 0]]
        assert position[5, 1, 0, 0] == 3


@pytest.mark.parametrize(
    ("num_keys", "k"), [(12, 4), (28, 4), (20, 8), (5, 5), (3, 1), (1, 1), (17, 16)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_exact_at_router_sizes(num_keys, k, dtype):
    sim = torch.randn(64, 2, 3, num_keys, generator=torch.Generator().manual_seed(num_keys))
    assert_brute_force(sim.to(dtype), k)


def test_rounding_ties_need_pairs_that_rank_pruning_leaves_out():
    """Both sums round to 2**24: pruning alone would answer sub-key 1, the larger."""
    sim = torch.tensor([[0.5, 1.0], [2.0**24, 0.0]]).view(1, 2, 1, 2)
    _, idx = isoflop_kernels.product_key_topk(sim, 1)
    assert idx.item() == 0


def test_all_equal_similarities_choose_the_first_experts():
    _, idx = isoflop_kernels.product_key_topk(torch.zeros(2, 2, 1, 6), 6)
    assert idx.tolist() == [[[0, 1, 2, 3, 4, 5]]] * 2


def test_negative_zero_ties_with_zero():
    _, idx = isoflop_kernels.stable_topk(torch.tensor([-0.0, 0.0, -0.0, -1.0]), 3)
    assert idx.tolist() == [0, 1, 2]


def test_infinities_are_ordered():
    inf = float("inf")
    values = torch.tensor([[-inf, 1.0, -inf, inf, 3e38, inf]])
    for implementation in IMPLEMENTATIONS:
        with isoflop_kernels.use_implementation(implementation):
            assert isoflop_kernels.stable_topk(values, 6)[1].tolist() == [[3, 5, 4, 1, 0, 2]]


def test_chunks_join_without_a_seam(monkeypatch):
    sim = torch.randn(37, 2, 3, 8)
    whole = isoflop_kernels.product_key_topk(sim, 4)
    positions = isoflop_kernels.stable_topk(sim, 4)[1]
    monkeypatch.setattr(packed, "CHUNK_KEYS_CPU", 100)
    assert all(map(torch.equal, isoflop_kernels.product_key_topk(sim, 4), whole))
    assert torch.equal(isoflop_kernels.stable_topk(sim, 4)[1], positions)


@pytest.mark.parametrize("k", range(1, 20))
def test_rank_pairs_cover_every_pair(k):
    for num_ranks in {k, k + 1}:
        inside, edge = packed.rank_pairs(k, num_ranks)
        assert len(set(inside)) == len(inside)
        assert all((a + 1) * (b + 1) <= k for a, b in inside)
        left_out = [
            (a, b) for a in range(num_ranks) for b in range(num_ranks) if (a, b) not in inside
        ]
        assert all((a + 1) * (b + 1) > k for a, b in left_out)
        assert all(any(p <= a and q <= b for p, q in edge) for a, b in left_out)
        assert set(edge) <= set(left_out)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_reach_the_chosen_similarities_alone(implementation):
    sim = torch.randn(6, 2, 2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 2, 3, dtype=torch.float64)
    with isoflop_kernels.use_implementation(implementation):
        score, idx = isoflop_kernels.product_key_topk(sim, 3)
        assert torch.autograd.gradcheck(lambda s: isoflop_kernels.product_key_topk(s, 3)[0], sim)
    assert not idx.requires_grad
    (score * weight).sum().backward()
    expected = torch.zeros(6, 2, 2, 5, dtype=torch.float64)
    for t, c, j in np.ndindex(6, 2, 3):
        first, second = divmod(int(idx[t, c, j]), 5)
        expected[t, 0, c, first] += weight[t, c, j]
        expected[t, 1, c, second] += weight[t, c, j]
    torch.testing.assert_close(sim.grad, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_flops_count_zero(implementation):
    sim = torch.randn(4, 2, 3, 6, requires_grad=True)
    with (
        isoflop_kernels.use_implementation(implementation),
        FlopCounterMode(display=False) as count,
    ):
        score, _ = isoflop_kernels.product_key_topk(sim, 2)
        values, _ = isoflop_kernels.stable_topk(sim, 2)
        (score.sum() + values.sum()).backward()
    assert count.get_total_flops() == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_meta_tensors_give_shapes(implementation):
    sim = torch.empty(4, 2, 3, 6, device="meta")
    with isoflop_kernels.use_implementation(implementation):
        score, idx = isoflop_kernels.product_key_topk(sim, 2)
    assert score.shape == idx.shape == (4, 3, 2)
    assert idx.dtype == torch.int32


@pytest.mark.parametrize("autocast", [False, True])
def test_registered_operations_pass_opcheck(autocast):
    sim = torch.randn(4, 2, 3, 6).transpose(0, 2).contiguous().transpose(0, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.library.opcheck(torch.ops.isoflop_kernels.product_key_pairs.default, (sim, 3))
        torch.library.opcheck(torch.ops.isoflop_kernels.topk_indices.default, (sim, 3))
        torch.library.opcheck(torch.ops.isoflop_kernels.topk_indices.default, (sim.double(), 3))


@pytest.mark.parametrize(
    "values",
    [
        torch.randint(4, (50, 3, 40)).float(),
        torch.randn(20, 784),
        torch.randn(9, 30).bfloat16(),
        torch.randn(9, 30).double(),
        torch.randn(7),
        torch.randint(3, (2, 2**16 + 5)).float(),
    ],
    ids=["ties", "wide", "bf16", "fp64", "vector", "longer_than_a_position"],
)
def test_stable_topk_is_a_stable_sort(values):
    chosen, idx = isoflop_kernels.stable_topk(values, 5)
    order = np.argsort(-values.double().numpy(), axis=-1, kind="stable")[..., :5]
    np.testing.assert_array_equal(idx.numpy(), order)
    assert torch.equal(chosen, values.gather(-1, idx))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_tokens_choose_nothing(implementation):
    sim = torch.zeros(0, 2, 3, 4, requires_grad=True)
    with isoflop_kernels.use_implementation(implementation):
        score, idx = isoflop_kernels.product_key_topk(sim, 2)
    assert score.shape == idx.shape == (0, 3, 2)
    score.sum().backward()
    assert sim.grad.shape == sim.shape


def test_stable_topk_is_differentiable():
    values = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: isoflop_kernels.stable_topk(v, 2)[0], values)


@pytest.mark.parametrize(
    ("sim", "k", "message"),
    [
        (torch.zeros(3, 2, 4), 1, r"must be \[T, 2, C, N\]"),
        (torch.zeros(3, 3, 1, 4), 1, r"must be \[T, 2, C, N\]"),
        (torch.zeros(3, 2, 0, 4), 1, "no axis of size 0"),
        (torch.zeros(3, 2, 1, 4), 0, "k = 0: must be within 1 to 4"),
        (torch.zeros(3, 2, 1, 4), 5, "k = 5: must be within 1 to 4"),
        (torch.zeros(3, 2, 1, 4).int(), 1, r"sim_T2CN is torch.int32"),
        (torch.empty(1, 2, 1, 46341, device="meta"), 1, "N = 46341: must be at most 46340"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(sim, k, message):
    with pytest.raises(ValueError, match=message):
        isoflop_kernels.product_key_topk(sim, k)


@pytest.mark.parametrize(
    ("values", "k", "message"),
    [
        (torch.tensor(1.0), 1, "values has shape"),
        (torch.zeros(3, 0), 1, "values has shape"),
        (torch.zeros(3), 4, "k = 4: must be within 1 to 3"),
        (torch.zeros(3).long(), 1, "values is torch.int64"),
    ],
)
def test_stable_topk_refuses_what_does_not_fit(values, k, message):
    with pytest.raises(ValueError, match=message):
        isoflop_kernels.stable_topk(values, k)
