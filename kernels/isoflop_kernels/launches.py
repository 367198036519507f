"""Which Triton kernels a training step launches, and with what: no GPU and no values are needed.

The operators run on meta tensors, of which only shapes and types exist, while the launches are
written down instead of made. A recorded launch has what the compiler needs and can be sent to
another process, so that all of them are compiled beside each other before the first is needed.
"""

# T tokens, D width, C channels, K experts chosen per channel, N sub-keys per half, E = N * N

# mypy: disable-error-code="import-untyped, import-not-found"
# Triton has no types and may be absent.

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from isoflop_kernels import cross_entropy, triton_config
from isoflop_kernels.gathered_linear import choice, triton_op
from isoflop_kernels.product_key_topk import triton_op as selection


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One layer's call of the operators: its sizes, and the types that its tensors come in.

    `rows` are the tables as they are read, `tables` those whose gradients are wanted; with `sums`
    they are added to those of earlier micro-batches. `version` is one of Triton's two; None where
    sizes and types decide.
    """

    num_tokens: int = 2**17
    width: int
    num_channels: int = 16
    num_chosen: int
    num_keys: int
    shared: bool = False
    tokens: torch.dtype = torch.bfloat16
    scores: torch.dtype = torch.bfloat16
    rows: torch.dtype = torch.bfloat16
    tables: torch.dtype = torch.float32
    sums: bool = False
    activation: str = "identity"
    gate_order: str = "gate_then_act"
    version: str | None = None
    vocab_size: int = 50258


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A kernel's arguments, of tensors the element type, its constants and its warps."""

    name: str
    module: str
    function: str
    arguments: dict[str, torch.dtype | int]
    constants: dict[str, Any]
    num_warps: int

    @property
    def kernel(self) -> Any:
        """The function itself, which cannot be sent to another process."""
        return getattr(importlib.import_module(self.module), self.function)


def launches(arch: str, call: Call) -> list[Launch]:
    """Return each different launch of a forward and backward pass on an architecture, once."""
    asked = {} if call.version is None else {choice.VARIABLE: call.version}
    with _recording() as found, triton_config.assuming(arch), mock.patch.dict(os.environ, asked):
        run(call)
    return found


def run(call: Call) -> None:
    """Call the operators, forward and backward, on meta tensors: launches must be recorded."""

    def made(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    num_tables = 1 if call.shared else call.num_channels
    table = (num_tables, call.num_keys**2, call.width)
    chosen = (call.num_tokens, call.num_channels, call.num_chosen)
    sim = made(call.scores, call.num_tokens, 2, call.num_channels, call.num_keys)
    selection.select_pairs(sim, call.num_chosen)
    x, idx = made(call.tokens, call.num_tokens, call.width), made(torch.int32, *chosen)
    score = made(call.scores, *chosen)
    rows_in, rows_out = made(call.rows, *table), made(call.rows, *table)
    act, order, dtypes = call.activation, call.gate_order, (call.tables, call.tables)
    logits, targets = made(torch.float32, 64, -(-call.vocab_size // 64) * 64), made(torch.int64, 64)
    logits = logits[:, : call.vocab_size]
    cross_entropy.losses_and_gradient(logits, targets, logits, ignored=0)
    y, h = triton_op._forward(x, idx, score, rows_in, rows_out, act, order)
    tensors = (y, x, idx, score, rows_in, rows_out, h)
    if call.sums:
        sums = made(call.tables, *table), made(call.tables, *table)
        triton_op._add_backward(*tensors, act, order, [True] * 4, sums)
    else:
        triton_op._backward(*tensors, act, order, [True] * 4, dtypes)


@contextlib.contextmanager
def _recording() -> Iterator[list[Launch]]:
    """Write launches down instead of making them."""
    found: list[Launch] = []

    def record(kernel: Any, *args: Any, num_warps: int, **named: Any) -> None:
        constants = {name: value for name, value in named.items() if name in kernel.arg_names}
        launch = _launch(kernel, args, constants, num_warps)
        if launch not in found:
            found.append(launch)

    with mock.patch.object(JITFunction, "run", record):
        yield found


def _launch(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any], warps: int) -> Launch:
    values = [arg.dtype if isinstance(arg, Tensor) else arg for arg in args]
    name = kernel.__name__.removesuffix("_kernel")
    return Launch(
        name=f"{name}_grad" if constants.get("BACKWARD") else name,
        module=kernel.__module__,
        function=kernel.__name__,
        arguments=dict(zip(kernel.arg_names, values, strict=False)),
        constants=constants,
        num_warps=warps,
    )
