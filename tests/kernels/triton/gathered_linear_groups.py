"""v2 of gathered_linear in Triton's interpreter; run by `test_triton_interpreter.py`.

The interpreter takes about a millisecond per program and loop step, so the sizes are small.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop_kernels import triton_config
from isoflop_kernels.gathered_linear import triton_v2
from kernels.gathered_cases import (
    GATES,
    TOLERANCE,
    Case,
    assert_close,
    check_int64_and_strided,
    check_rows,
    check_sums,
    differentiate,
    expected_of,
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
    Case(T=5, C=2, E=400, D=20),
    Case(K=6, E=1),
    Case(K=5, E=4, shared=True),
    Case(T=1, C=1, K=1, E=1, D=1),
    Case(choice="duplicates"),
    Case(choice="duplicates", shared=True),
    Case(choice="unused", E=25),
    Case(choice="popular", T=140, D=20),
    Case(choice="popular", T=70, C=1, K=8, E=4, D=5),
]


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Take v2, record that it ran, and let outputs hold NaN until a kernel writes them."""
    found = []
    for name in ("forward", "backward"):
        function = getattr(triton_v2, name)

        def recorded(*args, name=name, function=function):
            found.append(name)
            return function(*args)

        monkeypatch.setattr(triton_v2, name, recorded)
    monkeypatch.setenv("ISOFLOP_KERNELS_TRITON", "v2")
    with poisoned_triton():
        yield found


@pytest.fixture
def narrow(monkeypatch):
    """Blocks so small that every kernel takes several steps or programs."""
    small = {"group_dot_slice": 16, "group_table_slice": 16, "group_table_pairs": 16}
    chip = dataclasses.replace(triton_config.TABLE["sm_90"], group_dot_pairs=16, **small)
    monkeypatch.setitem(triton_config.TABLE, "sm_90", chip)
    monkeypatch.setattr(triton_config, "group_chunk_size", lambda num_choices, num_groups: 16)


def test_rows_are_read_and_gradients_of_the_tables_keep_their_own_type(calls):
    # The weights of tokens' rows are rounded to the rows' type, as half of the limit of a gradient
    # in it allows; a gradient rounded to that type besides would not be float32's own numbers.
    case = Case(T=6, C=2, D=24, choice="duplicates")
    check_rows(case, 1e-3, torch.float16)
    assert calls == ["forward", "backward"]


def test_gradients_of_the_tables_are_added_in_place(narrow):
    # Some groups are one chunk, some several.
    check_sums(Case(T=30, C=1, D=24, choice="popular"), torch.float16)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64_at_awkward_shapes(case, calls):
    check(case)
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize(("activation", "gate_order"), GATES)
def test_matches_float64_for_every_gate(activation, gate_order):
    check(Case(T=4, D=17, C=2), activation, gate_order)


@pytest.mark.parametrize("choice", ["random", "duplicates", "popular"])
def test_half_precision(choice):
    """Weights of the tables' gradients are rounded, and results; the interpreter cuts bfloat16."""
    case = Case(T=20, C=2, D=24, E=16, choice=choice)
    check(case, "silu", dtype=torch.float16, limit=2e-3)
    check(case, "silu", dtype=torch.bfloat16, limit=2**-7 + 2**-7)


def test_half_precision_keeps_weights_below_its_range():
    """Weights about 2**-19, where float16 has five digits, give gradients about 2**-7."""
    inputs = Case(T=20, C=1, D=24).inputs(torch.float16)
    inputs["score"] = (inputs["score"].abs() + 4) * 2.0**-14
    inputs["w_in"] = inputs["w_in"] * 2.0**-10
    dy = (output_gradient(inputs) * 2.0**10).half()
    expected = expected_of(inputs, dy, "identity", "gate_then_act")
    actual = differentiate(run(), inputs, dy)
    assert_close({"w_out": actual["w_out"]}, {"w_out": expected["w_out"]}, 2e-3)


@pytest.mark.parametrize("choice", ["random", "popular", "unused", "duplicates"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_groups_that_are_split_and_rows_wider_than_a_block(choice, dtype, narrow):
    case = Case(T=45, D=40, C=1, K=2, choice=choice)
    check(case, "gelu_tanh", "act_then_gate", dtype, TOLERANCE if dtype.itemsize == 4 else 2e-3)


def test_repeats_are_bit_identical(narrow):
    inputs = Case(T=45, D=20, C=1, choice="popular").inputs(torch.float16)
    dy = output_gradient(inputs).half()
    check_repeats(inputs, dy)


def test_experts_nobody_chose_get_exactly_zero_gradient():
    check_unchosen(25)


@pytest.mark.parametrize("split", [False, True])
def test_any_set_of_gradients_is_that_of_all(split, request):
    if split:
        request.getfixturevalue("narrow")
    check_any_set_of_gradients(Case(T=20, C=1, E=4, D=20))


def test_int64_indices_and_strided_arguments():
    check_int64_and_strided(Case(T=5))


def test_offsets_beyond_32_bits(monkeypatch):
    """Rows lie past 2**31 elements; memory that nobody touches is never really taken."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    small = {"group_dot_pairs": 16, "group_dot_slice": 2**13}
    chip = dataclasses.replace(triton_config.TABLE["sm_90"], **small)
    monkeypatch.setitem(triton_config.TABLE, "sm_90", chip)
    num_experts, width = 2**14, 2**18
    w = torch.empty(1, num_experts, width, dtype=torch.bfloat16)
    w[0, -2:] = torch.randn(2, width)
    x, score = torch.randn(1, width).bfloat16(), torch.ones(1, 1, 2)
    idx = torch.tensor([[[num_experts - 1, num_experts - 2]]], dtype=torch.int32)
    h, _ = triton_v2.forward(x, idx, score, w, ("identity", "gate_then_act"))
    expected = x.double() @ w[0, -2:].double().T
    torch.testing.assert_close(h[0].double(), expected.flip(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [Case(E=10), Case(K=17, T=3)], ids=["E", "K"])
def test_sizes_that_v2_cannot_take_go_to_v1(case, calls):
    check(case)
    assert calls == []


def test_mixed_dtypes_go_to_v1(calls):
    inputs = Case(T=4, C=2).inputs()
    inputs["x"] = inputs["x"].half()
    run()(inputs)
    assert calls == []


def test_registered_operation_passes_opcheck(calls):
    check_registered()
    assert {"forward", "backward"} <= set(calls)


def test_counts_flops_and_compiles_into_one_graph():
    check_flops_and_graph()


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_small_case(data):
    sizes = {name: data.draw(st.integers(1, 6), name) for name in "TCK"}
    choice = data.draw(st.sampled_from(["random", "duplicates", "popular"]))
    num_experts = data.draw(st.integers(1, 4)) ** 2
    shared, width = data.draw(st.booleans()), data.draw(st.integers(1, 40))
    case = Case(**sizes, E=num_experts, D=width, shared=shared, choice=choice)
    check_positive(case)
