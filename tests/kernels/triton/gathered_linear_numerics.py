"""gathered_linear in Triton's interpreter, against float64; run by `test_triton_interpreter.py`.

The interpreter takes about a millisecond per program and loop step, so the sizes are small.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop_kernels import triton_config, use_implementation
from kernels.gathered_cases import (
    GATES,
    TOLERANCE,
    Case,
    check_int64_and_strided,
    check_rows,
    check_sums,
    differentiate,
    output_gradient,
    run,
)
from kernels.interpreted import (
    check,
    check_any_set_of_gradients,
    check_flops_and_graph,
    check_positive,
    check_registered,
    check_repeats,
    check_unchosen,
    poisoned_triton,
)

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


def test_rows_are_read_and_gradients_of_the_tables_keep_their_own_type(monkeypatch):
    check_rows(Case(T=6, C=2, D=24, choice="duplicates"), TOLERANCE, torch.float16)
    monkeypatch.setattr(triton_config, "chunk_size", lambda num_choices, num_rows: 4)
    check_rows(Case(T=8, C=2, D=24, choice="popular", shared=True), TOLERANCE, torch.float16)


def test_gradients_of_the_tables_are_added_in_place(monkeypatch):
    check_sums(Case(T=6, C=2, D=24, choice="duplicates"))
    # Some rows are one chunk, some several.
    monkeypatch.setattr(triton_config, "chunk_size", lambda num_choices, num_rows: 4)
    check_sums(Case(T=8, C=2, D=24, choice="popular"), torch.float16)


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
    check_repeats(inputs, dy)


def test_experts_nobody_chose_get_exactly_zero_gradient():
    check_unchosen(20)


@pytest.mark.parametrize("wide", [False, True])
def test_any_set_of_gradients_is_that_of_all(wide, request):
    if wide:
        request.getfixturevalue("narrow")
    check_any_set_of_gradients(Case(T=3, C=1, E=4, D=20))


def test_int64_indices_and_strided_arguments():
    check_int64_and_strided(Case(T=5))


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
    check_registered()


def test_counts_flops_and_compiles_into_one_graph():
    check_flops_and_graph()


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_small_case(data):
    sizes = {name: data.draw(st.integers(1, 6), name) for name in "TCKE"}
    choice = data.draw(st.sampled_from(["random", "duplicates", "popular"]))
    case = Case(**sizes, D=data.draw(st.integers(1, 40)), shared=data.draw(st.booleans()))
    check_positive(dataclasses.replace(case, choice=choice))
