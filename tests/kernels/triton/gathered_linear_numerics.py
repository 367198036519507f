"""gathered_linear in Triton's interpreter, against float64; run by `test_triton_interpreter.py`.

The interpreter takes about a millisecond per program and loop step, so the sizes are small.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import check, poisoned_triton
from test_gathered_linear import (
    GATES,
    GRADIENTS,
    TOLERANCE,
    Case,
    as_float64,
    assert_close,
    differentiate,
    exact,
    output_gradient,
    run,
)
from torch.utils.flop_counter import FlopCounterMode

from isoflop_kernels import triton_config, use_implementation

CASES = [
    Case(),
    Case(shared=True),
    Case(T=5, D=96, C=2, K=8, E=16),
    Case(D=1),
    Case(K=1),
    Case(T=1),
    Case(T=13, D=33, C=1),
    Case(K=6, E=2),
    Case(T=1, C=1, K=1, E=1, D=1),
    Case(choice="duplicates"),
    Case(choice="duplicates", shared=True),
    Case(choice="unused", E=30),
    Case(choice="popular", T=40, D=20),
    Case(choice="popular", T=70, C=1, K=8, E=3, D=5),
]


@pytest.fixture(autouse=True)
def _poison():
    """Outputs hold NaN until a kernel writes them."""
    with poisoned_triton():
        yield


@pytest.fixture
def narrow(monkeypatch):
    """Blocks so small that every kernel takes several steps or programs per row."""
    small = {"dot_tile": 1, "combine_width": 16, "combine_tile": 1, "expert_slice": 16}
    chip = dataclasses.replace(triton_config.TABLE["sm_90"], expert_width=8, **small)
    monkeypatch.setitem(triton_config.TABLE, "sm_90", chip)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64_at_awkward_shapes(case):
    check(case)


@pytest.mark.parametrize(("activation", "gate_order"), GATES)
def test_matches_float64_for_every_gate(activation, gate_order):
    check(Case(T=4, D=17, C=2), activation, gate_order)


@pytest.mark.parametrize("choice", ["random", "popular"])
def test_half_precision_rounds_once(choice):
    case = Case(T=6, C=2, D=24, choice=choice)
    check(case, "silu", dtype=torch.float16, limit=2e-3)
    check(case, "silu", dtype=torch.bfloat16, limit=8e-3)


def test_float64_is_exact():
    check(Case(T=4), "silu", dtype=torch.float64, limit=1e-14)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.half)])
def test_tokens_and_tables_of_different_dtypes(dtypes):
    inputs = Case(T=4, C=2).inputs()
    inputs["x"] = inputs["x"].to(dtypes[0])
    inputs["w_in"] = inputs["w_in"].to(dtypes[1])
    dy = output_gradient(inputs)
    actual = differentiate(run("silu"), inputs, dy)
    with use_implementation("bag"):
        expected = differentiate(run("silu"), inputs, dy)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        torch.testing.assert_close(actual[name], value, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("choice", ["random", "popular", "unused"])
def test_long_segments_are_split_and_added_up(choice, monkeypatch):
    monkeypatch.setattr(triton_config, "chunk_size", lambda num_choices, num_rows: 4)
    check(Case(choice=choice, C=2))


def test_rows_wider_than_a_block(narrow, monkeypatch):
    check(Case(T=3, D=40, C=2), "gelu_tanh", "act_then_gate")
    monkeypatch.setattr(triton_config, "chunk_size", lambda num_choices, num_rows: 4)
    check(Case(T=5, D=40, C=1, choice="popular"), "silu")


def test_backward_is_bit_identical_when_repeated():
    inputs = Case(T=40, D=20, C=1, choice="popular").inputs()
    dy = output_gradient(inputs)
    first, second = (differentiate(run("silu"), inputs, dy) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_experts_nobody_chose_get_exactly_zero_gradient():
    inputs = Case(choice="unused", E=20).inputs()
    gradients = differentiate(run(), inputs, output_gradient(inputs))
    assert not gradients["w_in"][:, 1:-1].any()
    assert not gradients["w_out"][:, 1:-1].any()


@pytest.mark.parametrize("wide", [False, True])
def test_any_set_of_gradients_is_that_of_all(wide, request):
    if wide:
        request.getfixturevalue("narrow")
    case = Case(T=3, C=1, E=4, D=20)
    inputs, dy = case.inputs(), output_gradient(case.inputs())
    expected = differentiate(run("silu"), inputs, dy)
    for size in (1, 2):
        for wanted in itertools.combinations(GRADIENTS, size):
            leaves = {n: t.detach().requires_grad_(n in wanted) for n, t in inputs.items()}
            run("silu")(leaves).backward(dy)
            for name in GRADIENTS:
                grad = leaves[name].grad
                assert (grad is None) == (name not in wanted)
                if grad is not None:
                    torch.testing.assert_close(grad, expected[name], rtol=1e-6, atol=1e-6)


def test_int64_indices_and_strided_arguments():
    inputs = Case(T=5).inputs()
    dy = output_gradient(inputs)
    expected = differentiate(run(), inputs, dy)
    inputs["idx"] = inputs["idx"].long()
    strided = {n: torch.stack([t, t], -1)[..., 0] for n, t in inputs.items()}
    leaves = {n: t.requires_grad_(n in GRADIENTS) for n, t in strided.items()}
    y = run()(leaves)
    y.backward(torch.stack([dy, dy], -1)[..., 0])
    assert torch.equal(y, expected["y"])
    assert all(torch.equal(leaves[name].grad, expected[name]) for name in GRADIENTS)


def test_autocast_changes_nothing():
    inputs = Case(T=4).inputs()
    dy = output_gradient(inputs)
    outside = differentiate(run("silu"), inputs, dy)
    inside = differentiate(run("silu"), inputs, dy, autocast=True)
    assert all(torch.equal(outside[name], inside[name]) for name in outside)


def test_offsets_beyond_32_bits():
    """Rows lie past 2**31 elements; memory that nobody touches is never really taken."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    num_experts, width = 2**25 + 2, 64
    w = torch.empty(1, num_experts, width, dtype=torch.bfloat16)
    w[0, -2:] = torch.randn(2, width)
    x, score = torch.randn(1, width), torch.ones(1, 1, 2)
    idx = torch.tensor([[[num_experts - 1, num_experts - 2]]], dtype=torch.int32)
    y = run()({"x": x, "idx": idx, "score": score, "w_in": w, "w_out": w})
    rows = w[0, -2:].float()
    torch.testing.assert_close(y, x @ rows.T @ rows)


def test_experts_out_of_range_are_refused():
    inputs = Case().inputs()
    inputs["idx"][0, 0, 0] = 9
    with pytest.raises(ValueError, match="must be within 0 to 8"):
        run()(inputs)


def test_registered_operation_passes_opcheck():
    inputs = Case(T=2, C=1).inputs()
    leaves = {n: t.requires_grad_(n in GRADIENTS) for n, t in inputs.items()}
    plain = [t.detach() for t in leaves.values()]
    h = torch.zeros(inputs["idx"].shape)
    ops = torch.ops.isoflop_kernels
    backward = (plain[0], *plain, h, "silu", "gate_then_act", [True, False, True, True])
    run()(inputs)
    torch.utils.deterministic.fill_uninitialized_memory = False  # empty results compare unequal
    torch.library.opcheck(
        ops.gathered_linear_triton.default, (*leaves.values(), "silu", "gate_then_act")
    )
    torch.library.opcheck(ops.gathered_linear_triton_backward.default, backward)


def test_counts_flops_and_compiles_into_one_graph():
    case = Case(T=3, C=2)
    inputs = {n: t.requires_grad_(n in GRADIENTS) for n, t in case.inputs().items()}
    with FlopCounterMode(display=False) as counter:
        run("silu")(inputs).sum().backward()
    assert counter.get_total_flops() == 12 * case.T * case.C * case.K * case.D
    compiled = torch.compile(run("silu"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs), run("silu")(inputs))


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_small_case(data):
    sizes = {name: data.draw(st.integers(1, 6), name) for name in "TCKE"}
    choice = data.draw(st.sampled_from(["random", "duplicates", "popular"]))
    case = Case(**sizes, D=data.draw(st.integers(1, 40)), shared=data.draw(st.booleans()))
    # Sums that cancel have no small error relative to themselves; the products bound it.
    inputs = dataclasses.replace(case, choice=choice).inputs()
    inputs = {n: t if n == "idx" else t.abs() for n, t in inputs.items()}
    dy = output_gradient(inputs).abs()
    expected = differentiate(lambda t: exact(t, "relu", "gate_then_act"), as_float64(inputs), dy)
    assert_close(differentiate(run("relu"), inputs, dy), expected, TOLERANCE)
