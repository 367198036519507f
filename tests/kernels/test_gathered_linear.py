"""gathered_linear of every implementation but Triton's, against the definition in float64."""

# T tokens, D width, C channels, K experts chosen per channel, E experts per table

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import isoflop_kernels
from isoflop_kernels.gathered_linear import bag, reference
from kernels.gathered_cases import (
    GATES,
    GRADIENTS,
    TOLERANCE,
    Case,
    assert_close,
    check_int64_and_strided,
    check_rows,
    check_sums,
    differentiate,
    expected_of,
    opcheck,
    output_gradient,
    rows_of,
    run,
    spread,
)

IMPLEMENTATIONS = ("reference", "bag", "cpp")
CASES = [
    Case(),
    Case(shared=True),
    Case(D=33, T=50),
    Case(D=1),
    Case(K=1),
    Case(T=1),
    Case(K=6, E=2),
    Case(T=1, C=1, K=1, E=1, D=1),
    Case(C=1, D=5),
    Case(choice="duplicates"),
    Case(choice="duplicates", shared=True),
    Case(choice="unused", E=40),
    Case(choice="popular", T=70, D=20),
    Case(T=65, D=130, C=2, K=8, E=100),
    Case(T=20, C=5, E=7000, D=3),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64_at_awkward_shapes(case, implementation):
    inputs = case.inputs()
    dy = output_gradient(inputs)
    expected = expected_of(inputs, dy, "identity", "gate_then_act")
    with isoflop_kernels.use_implementation(implementation):
        actual = differentiate(run(), inputs, dy)
    assert_close(actual, expected, TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("activation", "gate_order"), GATES)
def test_matches_float64_for_every_gate(activation, gate_order, implementation):
    inputs = Case(T=30, D=17, shared=True, choice="duplicates").inputs()
    dy = output_gradient(inputs)
    expected = expected_of(inputs, dy, activation, gate_order)
    with isoflop_kernels.use_implementation(implementation):
        actual = differentiate(run(activation, gate_order), inputs, dy)
    assert_close(actual, expected, TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float64_stays_float64(implementation):
    inputs = Case().inputs(torch.float64)
    dy = output_gradient(inputs)
    expected = expected_of(inputs, dy, "silu", "act_then_gate")
    with isoflop_kernels.use_implementation(implementation):
        actual = differentiate(run("silu", "act_then_gate"), inputs, dy)
    assert all(value.dtype == torch.float64 for value in actual.values())
    assert_close(actual, expected, 1e-14)


@pytest.mark.parametrize(("activation", "gate_order"), GATES)
def test_reference_passes_gradcheck(activation, gate_order):
    inputs = Case(T=3, D=3, C=2, K=2, E=3).inputs(torch.float64)
    idx = inputs["idx"]
    leaves = [inputs[name].requires_grad_() for name in GRADIENTS]
    assert torch.autograd.gradcheck(
        lambda x, score, w_in, w_out: reference.gathered_linear(
            x, idx, score, w_in, w_out, activation, gate_order
        ),
        leaves,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_registered_operation_passes_opcheck(autocast, dtype):
    inputs = Case(T=4, C=2).inputs(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        # As in training: rows in bfloat16 go with autocast.
        opcheck("gathered_linear", inputs, "gelu_tanh", "act_then_gate", with_rows=autocast)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype, implementation):
    inputs = Case(T=40, D=24).inputs()
    inputs["x"] = inputs["x"].to(dtype)
    dy = output_gradient(inputs).to(dtype)
    with isoflop_kernels.use_implementation(implementation):
        outside = differentiate(run("silu"), inputs, dy)
        inside = differentiate(run("silu"), inputs, dy, autocast=True)
    for name, value in outside.items():
        assert torch.equal(value, inside[name]), name
        assert inside[name].dtype == (dtype if name in ("x", "y") else torch.float32)


def test_autocast_around_the_backward_pass_changes_nothing_in_the_bag():
    inputs = Case(T=40, D=24).inputs()
    dy = output_gradient(inputs)
    outside = differentiate(run("silu"), inputs, dy)
    with torch.autocast("cpu", torch.bfloat16):
        inside = differentiate(run("silu"), inputs, dy, autocast=True)
    assert all(torch.equal(outside[name], inside[name]) for name in outside)


def test_half_precision_inputs_are_computed_in_float32():
    inputs = Case(T=40, D=24).inputs(torch.bfloat16)
    dy = output_gradient(inputs).bfloat16()
    rounded = {name: t if name == "idx" else t.float() for name, t in inputs.items()}
    expected = differentiate(run(), rounded, dy)
    actual = differentiate(run(), inputs, dy)
    for name, value in expected.items():
        assert torch.equal(actual[name], value.bfloat16()), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [False, True])
def test_rows_are_read_and_gradients_of_the_tables_keep_their_own_type(
    shared, dtype, implementation
):
    with isoflop_kernels.use_implementation(implementation):
        check_rows(Case(T=60, D=33, shared=shared, choice="duplicates"), TOLERANCE, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_equal_to_the_tables_change_no_bit(implementation):
    inputs = Case(T=40, D=24).inputs()
    dy = output_gradient(inputs)
    rows = inputs["w_in"].clone(), inputs["w_out"].clone()
    with isoflop_kernels.use_implementation(implementation):
        plain = differentiate(run("silu"), inputs, dy)
        read = differentiate(run("silu", rows=rows), inputs, dy)
    assert all(torch.equal(plain[name], read[name]) for name in plain)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_of_the_tables_are_added_in_place(shared, dtype, implementation):
    with isoflop_kernels.use_implementation(implementation):
        check_sums(Case(T=60, D=33, shared=shared, choice="unused", E=25), dtype)


@pytest.mark.parametrize("implementation", ["bag", "cpp"])
def test_sums_are_added_to_in_place_in_a_compiled_graph_too(implementation):
    case = Case(T=20, D=16)
    inputs = {n: t.requires_grad_(n in GRADIENTS) for n, t in case.inputs().items()}
    sums = torch.ones_like(inputs["w_in"]), torch.ones_like(inputs["w_out"])
    with isoflop_kernels.use_implementation(implementation):
        run("silu")(inputs).sum().backward()
        expected = [1 + 2 * inputs[name].grad for name in ("w_in", "w_out")]
        compiled = torch.compile(run("silu", sums=sums), fullgraph=True, backend="aot_eager")
        with FlopCounterMode(display=False) as counter:
            run("silu", sums=sums)(inputs).sum().backward()
        compiled(inputs).sum().backward()
    assert counter.get_total_flops() == 12 * case.T * case.C * case.K * case.D
    for total, value in zip(sums, expected, strict=True):
        torch.testing.assert_close(total, value)


@pytest.mark.parametrize(
    "change", [lambda t: t[:, 1:], lambda t: t.clone().requires_grad_(), spread]
)
def test_sums_that_do_not_fit_are_refused(change):
    inputs = Case().inputs()
    total = torch.zeros_like(inputs["w_out"])
    with pytest.raises(ValueError, match=r"sums\[1\]: must have shape \["):
        run(sums=(total, change(total)))(inputs)


@pytest.mark.parametrize("implementation", ["bag", "cpp"])
def test_the_backward_pass_keeps_the_rows_and_not_the_tables(implementation):
    inputs = {n: t.requires_grad_(n in GRADIENTS) for n, t in Case().inputs().items()}
    rows = rows_of(inputs, torch.bfloat16)
    saved = []
    with (
        isoflop_kernels.use_implementation(implementation),
        torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor),
    ):
        run(rows=rows)(inputs)
    kept = {tensor.data_ptr() for tensor in saved}
    assert {row.data_ptr() for row in rows} <= kept
    assert not kept & {inputs["w_in"].data_ptr(), inputs["w_out"].data_ptr()}


@pytest.mark.parametrize("implementation", ["bag", "cpp"])
def test_rows_compile_without_a_break_and_count_the_same_flops(implementation):
    case = Case(T=20, D=16)
    inputs = {n: t.requires_grad_(n in GRADIENTS) for n, t in case.inputs().items()}
    rows = rows_of(inputs, torch.bfloat16)
    with (
        isoflop_kernels.use_implementation(implementation),
        FlopCounterMode(display=False) as counter,
    ):
        run("silu", rows=rows)(inputs).sum().backward()
        expected = inputs["w_in"].grad
        inputs["w_in"].grad = None
    assert counter.get_total_flops() == 12 * case.T * case.C * case.K * case.D
    with isoflop_kernels.use_implementation(implementation):
        compiled = torch.compile(run("silu", rows=rows), fullgraph=True, backend="aot_eager")
        compiled(inputs).sum().backward()
    assert torch.equal(inputs["w_in"].grad, expected)


@pytest.mark.parametrize(
    "wanted", [GRADIENTS, ("x",), ("score",), ("w_in",), ("w_out",), ("w_out", "x")]
)
def test_counted_flops_are_the_formula_and_the_references_own(wanted):
    case = Case(T=11, D=6, C=3, K=2)
    product = 2 * 11 * 3 * 2 * 6
    through_z = any(name in wanted for name in ("x", "score", "w_in"))
    num_products = through_z + sum(name in wanted for name in ("x", "w_in", "w_out"))
    for implementation in IMPLEMENTATIONS:
        inputs = case.inputs()
        for name in wanted:
            inputs[name].requires_grad_()
        with (
            isoflop_kernels.use_implementation(implementation),
            FlopCounterMode(display=False) as n,
        ):
            y = run("silu")(inputs)
            assert n.get_total_flops() == 2 * product
            y.backward(torch.ones_like(y))
        assert n.get_total_flops() == (2 + num_products) * product


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_counts_flops_on_meta_tensors(implementation):
    case = Case(T=1000, D=64, C=4, K=8, E=100)
    meta = {
        "x": torch.empty(1000, 64, device="meta", requires_grad=True),
        "idx": torch.empty(1000, 4, 8, device="meta", dtype=torch.int32),
        "score": torch.empty(1000, 4, 8, device="meta", requires_grad=True),
        "w_in": torch.empty(4, 100, 64, device="meta", requires_grad=True),
        "w_out": torch.empty(4, 100, 64, device="meta", requires_grad=True),
    }
    with isoflop_kernels.use_implementation(implementation), FlopCounterMode(display=False) as n:
        y = run()(meta)
        y.backward(torch.ones_like(y))
    assert n.get_total_flops() == 12 * case.T * case.C * case.K * case.D
    assert meta["w_in"].grad.shape == meta["w_in"].shape


def test_backward_is_bit_identical_across_repeats_and_thread_counts():
    inputs = Case(T=3000, D=24, C=4, K=4, E=60).inputs()
    dy = output_gradient(inputs)
    first = differentiate(run("gelu_tanh"), inputs, dy)
    num_threads = torch.get_num_threads()
    try:
        for repeat_threads in (num_threads, 1, 2):
            torch.set_num_threads(repeat_threads)
            repeat = differentiate(run("gelu_tanh"), inputs, dy)
            assert all(torch.equal(first[name], repeat[name]) for name in first)
    finally:
        torch.set_num_threads(num_threads)


def test_experts_nobody_chose_get_exactly_zero_gradient():
    inputs = Case(choice="unused", E=40).inputs()
    gradients = differentiate(run(), inputs, output_gradient(inputs))
    for name in ("w_in", "w_out"):
        assert torch.equal(gradients[name][:, 1:-1], torch.zeros_like(gradients[name][:, 1:-1]))
        assert gradients[name][:, [0, -1]].abs().amin() > 0


def test_gradients_not_needed_are_not_computed():
    inputs = Case().inputs()
    inputs["w_out"].requires_grad_()
    y = run()(inputs)
    y.sum().backward()
    assert all((inputs[name].grad is None) == (name != "w_out") for name in GRADIENTS)
    with torch.no_grad():
        assert not run()(inputs).requires_grad


def test_int64_indices_and_strided_arguments_give_the_same_result():
    check_int64_and_strided(Case(T=30, D=16))


def test_private_bag_operation_is_the_gathered_dot_product():
    """The path taken off CPU rests on an operation that torch does not document."""
    x, table = torch.randn(3, 5), torch.randn(7, 5)
    row = torch.tensor([6, 0, 0, 2, 5, 6], dtype=torch.int32)
    start = torch.tensor([0, 2, 4], dtype=torch.int32)
    token = torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.int32)
    dot = torch.ops.aten._embedding_bag_per_sample_weights_backward(x, table, row, start, token, 0)
    expected = (x[token.long()] * table[row.long()]).sum(1)
    torch.testing.assert_close(dot, expected)
    ends = torch.tensor([0, 2, 4, 6], dtype=torch.int32)
    torch.testing.assert_close(bag._gathered_dot(x, table, row, ends), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1, -(2**31)])
def test_debug_refuses_experts_out_of_range(bad, implementation, monkeypatch):
    monkeypatch.setenv("ISOFLOP_KERNELS_DEBUG", "1")
    inputs = Case().inputs()
    inputs["idx"][3, 1, 2] = bad
    with (
        isoflop_kernels.use_implementation(implementation),
        pytest.raises(ValueError, match=r"idx_TCK has values .*: must be within 0 to 8"),
    ):
        run()(inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", [9, -1, 2**32])
def test_nothing_out_of_range_is_read_on_cpu(bad, implementation, monkeypatch):
    """9 would be the first row of the next channel's table."""
    monkeypatch.delenv("ISOFLOP_KERNELS_DEBUG", raising=False)
    inputs = Case().inputs()
    inputs["idx"] = inputs["idx"].long()
    inputs["idx"][0, 0, 0] = bad
    with (
        isoflop_kernels.use_implementation(implementation),
        pytest.raises(ValueError, match="must be within 0 to 8"),
    ):
        run()(inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shared", [True, False])
def test_no_tokens_give_nothing_and_gradients_of_zeros(shared, implementation):
    inputs = Case(shared=shared).inputs()
    inputs |= {name: inputs[name][:0] for name in ("x", "idx", "score")}
    with isoflop_kernels.use_implementation(implementation):
        found = differentiate(run("silu"), inputs, inputs["x"])
    assert found["y"].shape == (0, 12)
    for name in GRADIENTS:
        assert found[name].shape == inputs[name].shape
        assert not found[name].any()


BAD_ARGUMENTS = {
    "x_axes": ("x", lambda t: t[0], "x_TD has shape"),
    "x_width": ("x", lambda t: t[:, 1:], "w_in has shape"),
    "x_tokens": ("x", lambda t: t[1:], "idx_TCK has shape"),
    "no_tokens_of_some": ("x", lambda t: t[:0], "idx_TCK has shape"),
    "no_width": ("x", lambda t: t[:, :0], "none of size 0"),
    "no_experts": ("w_in", lambda t: t[:, :0], "none of size 0"),
    "x_dtype": ("x", lambda t: t.int(), "x_TD is torch.int32"),
    "x_device": ("x", lambda t: t.to("meta"), "x_TD is on meta"),
    "idx_axes": ("idx", lambda t: t[:, 0], "idx_TCK has shape"),
    "idx_dtype": ("idx", lambda t: t.float(), "idx_TCK is torch.float32"),
    "idx_int16": ("idx", lambda t: t.short(), "idx_TCK is torch.int16"),
    "score_shape": ("score", lambda t: t[:, :, 1:], "score_TCK has shape"),
    "score_dtype": ("score", lambda t: t.to(torch.complex64), "score_TCK is torch.complex64"),
    "tables": ("w_in", lambda t: t[:2], "w_in has shape"),
    "table_axes": ("w_in", lambda t: t[0], "w_in has shape"),
    "w_out_rows": ("w_out", lambda t: t[:, 1:], "w_out has shape"),
    "w_out_shared": ("w_out", lambda t: t[:1], "w_out has shape"),
    "w_out_device": ("w_out", lambda t: t.to("meta"), "w_out is on meta"),
}


@pytest.mark.parametrize(("name", "change", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_arguments_that_do_not_fit_are_refused(name, change, message):
    inputs = Case().inputs()
    inputs[name] = change(inputs[name])
    # Before an implementation is chosen.
    with pytest.raises(ValueError, match=message):
        run()(inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:, 1:], r"rows\[1\] has shape \[3, 8, 12\]: must be \[3, 9, 12\]"),
        (lambda t: t.int(), r"rows\[1\] is torch.int32"),
        (lambda t: t.to("meta"), r"rows\[1\] is on meta"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change, message):
    inputs = Case().inputs()
    with pytest.raises(ValueError, match=message):
        run(rows=(inputs["w_in"], change(inputs["w_out"])))(inputs)


def test_unknown_names_are_refused():
    inputs = Case().inputs()
    with pytest.raises(ValueError, match="activation = 'gelu': must be one of identity, relu"):
        run("gelu")(inputs)
    with pytest.raises(ValueError, match="gate_order = 'both': must be one of gate_then_act"):
        run("identity", "both")(inputs)


def test_more_choices_than_int32_counts_are_refused():
    meta = {"x": torch.empty(2**27, 1, device="meta")}
    meta["idx"] = torch.empty(2**27, 4, 4, device="meta", dtype=torch.int32)
    meta["score"] = torch.empty(2**27, 4, 4, device="meta")
    meta["w_in"] = meta["w_out"] = torch.empty(4, 2, 1, device="meta")
    with pytest.raises(ValueError, match=r"less than 2\*\*31"):
        run()(meta)
