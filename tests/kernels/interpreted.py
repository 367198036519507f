"""What the tests of Triton's interpreter share."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop_kernels import use_implementation
from kernels.gathered_cases import (
    GRADIENTS,
    TOLERANCE,
    Case,
    assert_close,
    differentiate,
    expected_of,
    opcheck,
    output_gradient,
    run,
)


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
    expected = expected_of(inputs, dy, activation, gate_order)
    actual = differentiate(run(activation, gate_order), inputs, dy)
    assert all(value.dtype == dtype for value in actual.values())
    assert_close(actual, expected, limit or TOLERANCE)


def check_repeats(inputs: dict[str, Tensor], dy: Tensor) -> None:
    """The same bits a second time."""
    first, second = (differentiate(run("silu"), inputs, dy) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def check_unchosen(num_experts: int) -> None:
    """Exactly zero gradients of experts that nobody chose."""
    inputs = Case(choice="unused", E=num_experts).inputs()
    gradients = differentiate(run(), inputs, output_gradient(inputs))
    assert not gradients["w_in"][:, 1:-1].any()
    assert not gradients["w_out"][:, 1:-1].any()


def check_any_set_of_gradients(case: Case) -> None:
    """One or two gradients alone are what they are among all."""
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


def check_registered() -> None:
    """torch's checks of the operation, which exists from its first call on."""
    inputs = Case(T=2, C=1).inputs()
    run()(inputs)
    torch.utils.deterministic.fill_uninitialized_memory = False  # empty results compare unequal
    opcheck("gathered_linear_triton", inputs)


def check_flops_and_graph() -> None:
    """FLOPs are counted, and the operation compiles without a break."""
    case = Case(T=3, C=2)
    inputs = {n: t.requires_grad_(n in GRADIENTS) for n, t in case.inputs().items()}
    with FlopCounterMode(display=False) as counter:
        run("silu")(inputs).sum().backward()
    assert counter.get_total_flops() == 12 * case.T * case.C * case.K * case.D
    compiled = torch.compile(run("silu"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs), run("silu")(inputs))


def check_positive(case: Case) -> None:
    """As `check`, of positive numbers: sums that cancel have no small error of their own."""
    inputs = {n: t if n == "idx" else t.abs() for n, t in case.inputs().items()}
    dy = output_gradient(inputs).abs()
    expected = expected_of(inputs, dy, "relu", "gate_then_act")
    assert_close(differentiate(run("relu"), inputs, dy), expected, TOLERANCE)
