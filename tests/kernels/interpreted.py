"""What the tests of Triton's interpreter share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from test_gathered_linear import (
    TOLERANCE,
    as_float64,
    assert_close,
    differentiate,
    exact,
    output_gradient,
    run,
)

from isoflop_kernels import use_implementation


@contextlib.contextmanager
def poisoned_triton() -> Iterator[None]:
    """Triton's kernels, whose outputs hold NaN until one of them writes them."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    with use_implementation("triton"):
        yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


def check(case, activation="identity", gate_order="gate_then_act", dtype=torch.float32, limit=None):
    """Output and gradients of a case against float64."""
    inputs = case.inputs(dtype)
    dy = output_gradient(inputs).to(dtype)
    expected = differentiate(lambda t: exact(t, activation, gate_order), as_float64(inputs), dy)
    actual = differentiate(run(activation, gate_order), inputs, dy)
    assert all(value.dtype == dtype for value in actual.values())
    assert_close(actual, expected, limit or TOLERANCE)
