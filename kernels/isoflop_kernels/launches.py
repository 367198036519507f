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

from isoflop_kernels import triton_config
from isoflop_kernels.gathered_linear import choice, triton_op
from isoflop_kernels.product_key_topk import triton_op as selection

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One layer's call of the operators: its sizes, and the types that its tensors come in.

    `version` is one of Triton's two; None where sizes and types decide.
    """

    num_tokens: int = 2**17
    width: int
    num_channels: int = 16
    num_chosen: int
    num_keys: int
    shared: bool = False
    tokens: torch.dtype = torch.bfloat16
    scores: torch.dtype = torch.bfloat16
    tables: torch.dtype = torch.bfloat16
    activation: str = "identity"
    gate_order: str = "gate_then_act"
    version: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A kernel as the compiler sees it: types of arguments, those that are constants, its warps.

    `divisible` are arguments of which the compiler knows that 16 divides them.
    """

    name: str
    module: str
    function: str
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    num_warps: int

    @property
    def kernel(self) -> Any:
        """The function itself, which cannot be sent to another process."""
        return getattr(importlib.import_module(self.module), self.function)


def launches(arch: str, call: Call) -> list[Launch]:
    """Return each different launch of a forward and backward pass on an architecture, once."""
    asked = {} if call.version is None else {choice.VARIABLE: call.version}
    with _recording() as found, triton_config.assuming(arch), mock.patch.dict(os.environ, asked):
        _run(call)
    return found


def _run(call: Call) -> None:
    def made(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    num_tables = 1 if call.shared else call.num_channels
    table = (num_tables, call.num_keys**2, call.width)
    chosen = (call.num_tokens, call.num_channels, call.num_chosen)
    sim = made(call.scores, call.num_tokens, 2, call.num_channels, call.num_keys)
    selection.select_pairs(sim, call.num_chosen)
    x, idx = made(call.tokens, call.num_tokens, call.width), made(torch.int32, *chosen)
    score, w_in, w_out = (
        made(call.scores, *chosen),
        made(call.tables, *table),
        made(call.tables, *table),
    )
    names = (call.activation, call.gate_order)
    y, h = triton_op._forward(x, idx, score, w_in, w_out, *names)
    triton_op._backward(y, x, idx, score, w_in, w_out, h, *names, [True] * 4)


@contextlib.contextmanager
def _recording() -> Iterator[list[Launch]]:
    """Write launches down instead of making them."""
    found: list[Launch] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, num_warps: int, **named: Any) -> None:
        launch = _launch(kernel, args, named, num_warps)
        if launch not in found:
            found.append(launch)

    with mock.patch.object(JITFunction, "run", run):
        yield found


def _launch(kernel: Any, args: tuple[Any, ...], named: dict[str, Any], num_warps: int) -> Launch:
    """Return what the JIT would make of the arguments: a number that is 1 is a constant, too."""
    signature, constants, divisible = {}, {}, []
    arguments = dict(zip(kernel.arg_names, args, strict=False)) | named
    for parameter in kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        is_tensor, specialized = isinstance(value, Tensor), not parameter.do_not_specialize
        if parameter.is_constexpr or (specialized and not is_tensor and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = POINTERS[value.dtype] if is_tensor else "i32"
        if is_tensor or (specialized and value % 16 == 0):
            divisible.append(name)
    name = kernel.__name__.removesuffix("_kernel")
    return Launch(
        name=f"{name}_grad" if constants.get("BACKWARD") else name,
        module=kernel.__module__,
        function=kernel.__name__,
        signature=signature,
        constants=constants,
        divisible=tuple(divisible),
        num_warps=num_warps,
    )
