"""The grouped product of the mixture of experts: torch's own against the loop, both on the CPU."""

# R rows sorted by group, E groups, I and O the widths of a row before and after

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isoflop.families.moe import grouped
from isoflop.families.moe.grouped import fits_grouped_mm, one_product, product_loop
from isoflop.model.flop_counter import StrictFlopCounter

SIZES = {
    "ragged": [5, 1, 13, 2],
    "empty": [0, 7, 0, 0, 9, 0],
    "popular": [0, 40, 0],
    "one_row_each": [1, 1, 1, 1],
}
NAMES = ("y", "x", "weight", "bias")


def inputs(sizes: list[int], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(sizes), 16), (len(sizes), 16, 24), (len(sizes), 24))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    group_R = torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(torch.tensor(sizes))
    return tensors, group_R


def results(function, tensors: list[Tensor], group_R: Tensor, dy: Tensor) -> dict[str, Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, group_R)
    y.backward(dy.to(y.dtype))
    return dict(zip(NAMES, [y.detach(), *(leaf.grad for leaf in leaves)], strict=True))


def gradient(tensors: list[Tensor]) -> Tensor:
    """Positive, so that no partial sum is larger than the whole."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(len(tensors[0]), 24, generator=generator).to(tensors[0].dtype)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_one_product_equals_the_loop_in_float32(sizes):
    tensors, group_R = inputs(sizes, torch.float32)
    dy = gradient(tensors)
    actual, expected = (results(f, tensors, group_R, dy) for f in (one_product, product_loop))
    for name in NAMES:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_what_a_compiler_calls_is_the_loop_bit_for_bit(sizes):
    tensors, group_R = inputs(sizes, torch.float32)
    dy = gradient(tensors)
    opaque = torch.ops.isoflop.product_loop
    actual, expected = (results(f, tensors, group_R, dy) for f in (opaque, product_loop))
    assert all(torch.equal(actual[name], expected[name]) for name in NAMES)


@pytest.mark.slow
def test_what_a_compiler_calls_is_registered_whole():
    tensors, group_R = inputs(SIZES["ragged"], torch.float32)
    leaves = [t.requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.isoflop.product_loop.default, (*leaves, group_R))


def test_a_gradient_may_be_one_number_for_all():
    """As that of a sum comes; torch's own backward refuses it."""
    tensors, group_R = inputs(SIZES["ragged"], torch.float32)
    ones = torch.ones(()).expand(len(tensors[0]), 24)
    actual, expected = (
        results(one_product, tensors, group_R, dy) for dy in (ones, ones.contiguous())
    )
    assert all(torch.equal(actual[name], expected[name]) for name in NAMES)


@pytest.mark.parametrize("function", [one_product, product_loop])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_bfloat16_is_a_rounding_away_from_float64(sizes, function):
    tensors, group_R = inputs(sizes, torch.bfloat16)
    dy = gradient(tensors)
    actual = results(function, tensors, group_R, dy)
    exact = results(product_loop, [t.double() for t in tensors], group_R, dy)
    rounding = 2**-8
    for name in ("y", "x", "weight"):
        assert actual[name].dtype == torch.bfloat16
        bound = rounding * exact[name].abs() + 1e-5
        if name == "y":
            # The product is rounded too, before the bias is added.
            bound += rounding * (exact["y"].abs() + tensors[2].abs().max())
        assert ((actual[name].double() - exact[name]).abs() <= bound).all(), name
    # The CPU rounds after every row.
    bound = rounding * max(sizes) * exact["bias"].abs().max()
    assert (actual["bias"].double() - exact["bias"]).abs().max() <= bound


@pytest.mark.parametrize("function", [one_product, product_loop])
def test_groups_without_rows_are_not_read_and_get_zero_gradients(function):
    sizes = SIZES["empty"]
    tensors, group_R = inputs(sizes, torch.float32)
    empty = torch.tensor(sizes) == 0
    for parameter in tensors[1:]:
        parameter[empty] = torch.nan
    found = results(function, tensors, group_R, gradient(tensors))
    for name, value in found.items():
        assert value.isfinite().all(), name
    for name in ("weight", "bias"):
        assert found[name][empty].count_nonzero() == 0
        assert (found[name][~empty] != 0).all()


def test_garbage_that_a_kernel_leaves_in_empty_groups_is_not_a_gradient(monkeypatch):
    """As on some GPUs; see the comment in the backward pass."""
    grouped_mm = torch.nn.functional.grouped_mm
    sizes = SIZES["empty"]

    def careless(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        out = grouped_mm(a, b, offs=offs)
        if b.dim() == 2:
            out[torch.tensor(sizes) == 0] = torch.nan
        return out

    tensors, group_R = inputs(sizes, torch.float32)
    expected = results(one_product, tensors, group_R, gradient(tensors))
    monkeypatch.setattr(grouped.F, "grouped_mm", careless)
    actual = results(one_product, tensors, group_R, gradient(tensors))
    assert all(torch.equal(actual[name], expected[name]) for name in NAMES)


@pytest.mark.parametrize("function", [one_product, product_loop])
def test_both_count_the_flops_of_the_rows(function):
    tensors, group_R = inputs(SIZES["empty"], torch.bfloat16)
    with StrictFlopCounter() as counter:
        results(function, tensors, group_R, gradient(tensors))
    assert counter.total == 3 * 2 * 16 * 16 * 24


# Dynamo looks at the gradient by making an object of its class.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_one_product_compiles_for_any_number_of_rows():
    """One graph: nothing waits for the sizes of the groups."""
    compiled = torch.compile(one_product, backend="aot_eager", fullgraph=True, dynamic=True)
    for sizes in ([5, 0, 13, 2], [0, 30, 1, 0]):
        tensors, group_R = inputs(sizes, torch.bfloat16)
        dy = gradient(tensors)
        actual, expected = (results(f, tensors, group_R, dy) for f in (compiled, one_product))
        assert all(torch.equal(actual[name], expected[name]) for name in NAMES)


def test_only_aligned_bfloat16_fits():
    assert fits_grouped_mm(torch.bfloat16, 16, 24)
    assert not fits_grouped_mm(torch.bfloat16, 16, 28)
    assert not fits_grouped_mm(torch.bfloat16, 12, 24)
    assert not fits_grouped_mm(torch.float32, 16, 24)
    assert not fits_grouped_mm(torch.float16, 16, 24)


def test_the_cpu_takes_the_loop(monkeypatch):
    monkeypatch.setattr(grouped, "one_product", None)
    (x, weight, bias), group_R = inputs(SIZES["ragged"], torch.bfloat16)
    expected = product_loop(x, weight, bias, group_R)
    assert torch.equal(grouped.grouped_linear(x, weight, bias, group_R), expected)
    with torch.autocast("cpu", torch.bfloat16):
        y = grouped.grouped_linear(x.float(), weight.float(), bias.float(), group_R)
    assert torch.equal(y, expected)
