"""Bytes and FLOPs that a training step executes, by the parts of an estimate.

Every operator that torch dispatches is counted: its operands once and its results once, rows that
are looked up by the number of rows, matrix products also by FLOPs. No cache is assumed. What a
part is called follows isoflop/plan/estimate/time.py. The modules say where an operator of the
forward pass belongs, the number of its autograd node where one of the backward pass does.

`fused_bytes` is what a compiler would move that makes one kernel of all elementwise operators
between two products: the values that come from elsewhere once, those that are used elsewhere once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from isoflop.model import build_model
from isoflop.model.flop_counter import operator_name, plain_name
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.batch import made_batch
from isoflop.train.optimizer import recipe_adamw
from isoflop.train.step import gradients_of_batch

# No memory is touched: other shapes of the same, or memory that is not yet written.
_FREE = """
    alias as_strided detach diagonal empty empty_like empty_strided expand is_same_size item
    lift_fresh _local_scalar_dense new_empty new_empty_strided permute _reshape_alias reshape resize
    select set slice split split_with_sizes squeeze t transpose unbind unfold unsqueeze _unsafe_view
    view view_as
"""
_NOTHING_MOVED = frozenset(f"aten::{name}" for name in _FREE.split())
# Written without being read.
_OVERWRITES = frozenset(("aten::copy", "aten::fill", "aten::zero", "aten::normal"))
# As many entries of the first operand are read as the result has; the rest are indices.
_LOOKUPS = frozenset(
    f"aten::{name}" for name in ("embedding", "gather", "index", "index_select", "nll_loss_forward")
)
# Operands that give nothing but their shape.
_NOT_READ = frozenset(
    f"aten::{name}"
    for name in ("new_full", "new_ones", "new_zeros", "full_like", "ones_like", "zeros_like")
)
# Entries of the first operand are read and written where the last operand goes.
_SCATTERS = frozenset(f"aten::{name}" for name in ("index_add", "index_put", "scatter_add"))
_CASTS = frozenset(("aten::_to_copy", "aten::copy"))
_ATTENTION = "aten::_scaled_dot_product"
# Names without the mark of operators on lists.
_CLIPPING = frozenset(("aten::linalg_vector_norm", "aten::mul", "aten::norm"))
_SELECTION = frozenset(("aten::sort", "aten::topk"))
_SELECTION_OPERATORS = ("isoflop_kernels::product_key_pairs", "isoflop_kernels::topk_indices")
# Of a choice of the fused operator, rows of tables and rows of tokens that the backward pass reads,
# on the CPU (bag, cpp) and with Triton's first version; the forward pass reads two of tables.
_GATHERED_ROWS = {
    "gathered_linear": (2, 2),
    "gathered_linear_cpp": (2, 2),
    "gathered_linear_triton": (1, 2),
}
# AdamW reads parameter, gradient and both moments, and writes all but the gradient.
_ADAMW_PASSES = 7


@dataclass(kw_only=True, slots=True)
class Traffic:
    """What one part of a step executed."""

    num_bytes: int = 0
    """Read and written."""
    fused_bytes: int = 0
    """The same with each chain of elementwise operators in one kernel."""
    flops: int = 0
    """Of matrix products; attention without what its kernels recompute."""
    operators: Counter[str] = field(default_factory=Counter)
    """Bytes by operator, as `namespace::name`."""


@dataclass(slots=True)
class _Operator:
    """One operator's reads and writes by value, for the fused count."""

    part: str
    chain: int | None
    """Number of the chain of elementwise operators that it is in; None: it is in none."""
    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]


class TrafficCounter(TorchDispatchMode):
    """Counts bytes and FLOPs of what runs inside `with`, by part of the estimate.

        with TrafficCounter(model) as counter:
            gradients_of_batch(model, batch, clip_norm=1.0, precision="bf16")
            optimizer.step()
        counter.parts()["elementwise"].num_bytes

    Parts: attn_proj, attn_scores, router, experts, head, elementwise, selection, loss, casts,
    accumulation, optimizer, clipping; `other` is what surrounds them.

    Args:
        model: an isoflop.model.Transformer, not compiled.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._modules: list[nn.Module] = []
        self._in_optimizer = False
        self._parts: dict[str, Traffic] = {}
        self._by_node: dict[int, dict[bool, str]] = {}
        self._parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self._weights = {
            shape: _part_of_parameter(name)
            for name, p in model.named_parameters()
            if p.dim() > 1
            for shape in (tuple(p.shape), tuple(p.T.shape) if p.dim() == 2 else tuple(p.shape))
        }
        embedding = model.get_parameter("embedding")
        self._vocab_size = embedding.shape[0]
        self._log: list[_Operator] = []
        self._values: dict[int, int] = {}
        self._num_values = 0
        self._chain = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._hooks = [
            register_module_forward_pre_hook(lambda module, _: self._modules.append(module)),
            # Also where a recomputed forward pass ends early, by an exception.
            register_module_forward_hook(self._leave, always_call=True),
            register_optimizer_step_pre_hook(lambda *_: self._set_in_optimizer(True)),
            register_optimizer_step_post_hook(lambda *_: self._set_in_optimizer(False)),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def parts(self) -> Mapping[str, Traffic]:
        """Return what was counted so far, by part."""
        for part in self._parts.values():
            part.fused_bytes = 0
        for name, num_bytes in self._fused():
            self._parts[name].fused_bytes += num_bytes
        return self._parts

    def _leave(self, *_: Any) -> None:
        self._modules.pop()

    def _set_in_optimizer(self, value: bool) -> None:
        self._in_optimizer = value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = plain_name(operator_name(getattr(func, "overloadpacket", func)))
        if name in _NOTHING_MOVED or name.startswith("profiler::"):
            return out
        flops = _flops(func, name, args, kwargs, out)
        reads, writes = _moved(func, name, args, kwargs, out)
        part = self._part(func, name, args, out, is_product=flops is not None)
        traffic = self._parts.setdefault(part, Traffic())
        num_bytes = sum(size for _, size in (*reads, *writes))
        traffic.num_bytes += num_bytes
        traffic.flops += flops or 0
        traffic.operators[name] += num_bytes
        self._note(part, reads, writes)
        return out

    def _part(self, func: Any, name: str, args: Any, out: Any, *, is_product: bool) -> str:
        if self._in_optimizer:
            return "optimizer"
        in_backward = torch._C._current_graph_task_id() != -1
        if self._modules:
            part = self._forward_part(func, name, args, out, is_product)
            if not in_backward:
                # The node of the operator is the last that was made.
                last = torch._C._autograd._get_sequence_nr() - 1
                self._by_node.setdefault(last, {}).setdefault(is_product, part)
            return part
        if not in_backward:
            if self._is_cast_of_parameter(name, args):
                return "casts"
            if name == "aten::zeros_like":
                return self._weight_part(out) or "other"
            return "clipping" if name in _CLIPPING else "other"
        node = torch._C._current_autograd_node()
        if node is not None and node.name().endswith("AccumulateGrad"):
            return "accumulation"
        known = {} if node is None else self._by_node.get(node._sequence_nr(), {})
        if is_product:
            return known.get(True, known.get(False, "other"))
        # The gradient of a weight, set to zero or added up.
        weight = self._weight_part(out)
        if weight is not None and known.get(False) not in ("casts", "selection"):
            return weight
        # What a value was used for twice adds up at the node of one of the products.
        return known.get(False, "elementwise")

    def _forward_part(self, func: Any, name: str, args: Any, out: Any, is_product: bool) -> str:
        module = self._modules[-1]
        path = self._paths.get(id(module), "")
        if name.startswith(_ATTENTION):
            return "attn_scores"
        if is_product:
            return _product_part(func, name, module, path)
        is_cast = name in _CASTS and all(t.is_floating_point() for t in _tensors((args, out)))
        is_chosen = name.startswith(_SELECTION_OPERATORS) or name in _SELECTION
        if is_chosen or (".router" in path and not is_cast):
            return "selection"
        given = list(_tensors(args))
        if self._is_cast_of_parameter(name, args):
            return "casts"
        if (weight := self._weight_part(out)) is not None:
            return weight
        at_head = path == "" and any(t.shape[-1:] == (self._vocab_size,) for t in given)
        return "loss" if at_head or name.startswith("aten::nll_loss") else "elementwise"

    def _is_cast_of_parameter(self, name: str, args: Any) -> bool:
        held = {t.untyped_storage()._cdata for t in _tensors(args)}
        return name in _CASTS and not held.isdisjoint(self._parameters)

    def _weight_part(self, out: Any) -> str | None:
        """Return the part of the weight that has the shape of the result."""
        first = next(_tensors(out), None)
        return None if first is None else self._weights.get(tuple(first.shape))

    def _note(self, part: str, reads: _Sizes, writes: _Sizes) -> None:
        """Log an operator for the fused count; values are numbered anew when written."""
        if part != "elementwise":
            self._chain += 1
        chain = self._chain if part == "elementwise" else None
        read = [(self._value(tensor), size) for tensor, size in reads]
        written = []
        for tensor, size in writes:
            self._num_values += 1
            self._values[tensor.untyped_storage()._cdata] = self._num_values
            written.append((self._num_values, size))
        self._log.append(_Operator(part, chain, read, written))

    def _value(self, tensor: Tensor) -> int:
        key = tensor.untyped_storage()._cdata
        if key not in self._values:
            self._num_values += 1
            self._values[key] = self._num_values
        return self._values[key]

    def _fused(self) -> Iterator[tuple[str, int]]:
        """Yield parts and bytes: of a chain what comes from outside, and what is used there."""
        made_in: dict[int, int | None] = {}
        used_in: dict[int, set[int | None]] = {}
        for operator in self._log:
            for value, _ in operator.reads:
                used_in.setdefault(value, set()).add(operator.chain)
            made_in |= dict.fromkeys((value for value, _ in operator.writes), operator.chain)
        seen: set[tuple[int, int]] = set()
        for operator in self._log:
            for value, size in operator.reads:
                if operator.chain is None:
                    yield operator.part, size
                elif made_in.get(value) != operator.chain and (operator.chain, value) not in seen:
                    seen.add((operator.chain, value))
                    yield operator.part, size
            for value, size in operator.writes:
                if operator.chain is None or used_in.get(value, set()) - {operator.chain}:
                    yield operator.part, size


def counted_step(
    spec: RunSpec, *, micro_batch: int | None = None, checkpointing: bool = False
) -> Mapping[str, Traffic]:
    """Run one training step of a small run on the CPU and return what its parts executed.

    A step is that of training: forward, backward, clipping (which takes place) and AdamW, with the
    moments there already.

    Args:
        spec: the run; its size is what is built, so give a small one.
        micro_batch: sequences that are taken through the model at a time; None: all.
        checkpointing: activations are recomputed in the backward pass.

    Raises:
        UserError: the family or its configuration is not valid.
    """
    model = build_model(spec)
    model.checkpoint_activations = checkpointing
    optimizer = recipe_adamw(model, get_recipe(spec.recipe))
    batch = made_batch(spec)

    def step() -> None:
        gradients_of_batch(
            model, batch, clip_norm=0.0, precision=spec.precision, micro_batch=micro_batch
        )
        optimizer.step()

    step()
    with TrafficCounter(model) as counter:
        step()
    return counter.parts()


_Sizes = list[tuple[Tensor, int]]


def _part_of_parameter(name: str) -> str:
    if "embedding" in name:
        return "head"
    if ".attention." in name:
        return "attn_proj"
    return "router" if ".router." in name or name.endswith(".gate") else "experts"


def _product_part(func: Any, name: str, module: nn.Module, path: str) -> str:
    if ".router" in path:
        return "router"
    if ".attention" in path:
        return "attn_scores" if name == "aten::bmm" else "attn_proj"
    if ".feedforward" not in path:
        return "head"
    # Of coarse experts the gate is a product of all tokens at once.
    is_gate = hasattr(module, "gate") and name == "aten::mm" and "out" not in func._overloadname
    return "router" if is_gate and isinstance(module.gate, nn.Parameter) else "experts"


def _flops(func: Any, name: str, args: Any, kwargs: dict[str, Any], out: Any) -> int | None:
    """Return FLOPs of a matrix product; None where the operator is none."""
    if name.startswith(_ATTENTION):
        if "backward" in name:
            _, query, key, value = args[:4]
            return 2 * _attention_flops(query, key, value)
        return _attention_flops(*args[:3])
    formula = flop_registry.get(getattr(func, "overloadpacket", func))
    if formula is None or name.startswith(_SELECTION_OPERATORS):
        return None
    return int(formula(*args, **kwargs, out_val=out))


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _moved(
    func: Any, name: str, args: Any, kwargs: dict[str, Any], out: Any
) -> tuple[_Sizes, _Sizes]:
    """Return the tensors that an operator reads and those it writes, with the bytes of each."""
    namespace, _, operator = name.partition("::")
    if namespace == "isoflop_kernels" and _forward_name(operator) in _GATHERED_ROWS:
        return _gathered(operator, func, args, out)
    written = [t for each in _mutated(func, args, kwargs) for t in _tensors(each)]
    # The same operand twice is read once.
    given = list(
        {id(t): t for t in _tensors((args, [v for k, v in kwargs.items() if k != "out"]))}.values()
    )
    if name == "aten::_fused_adamw":
        parameters = list(_tensors(args[0]))
        # Passes over the parameter stand for all four.
        return [(t, (_ADAMW_PASSES - 3) * _size(t)) for t in parameters], [
            (t, 3 * _size(t)) for t in parameters
        ]
    made = [t for t in _tensors(out) if not any(_same(t, w) for w in (*written, *given))]
    writes = [(t, _size(t)) for t in (*written, *made)]
    if name in _LOOKUPS:
        table, *rest = given
        rows = sum(math.prod(t.shape) for t in _tensors(out)) * table.element_size()
        return [(table, rows), *((t, _size(t)) for t in rest)], writes
    if name in _SCATTERS and written:
        table, *rest = given
        touched = rest[-1].numel() * table.element_size()
        return [(table, touched), *((t, _size(t)) for t in rest)], [(table, touched)]
    if name in _NOT_READ:
        return [], writes
    if name == "aten::nll_loss_backward":
        # Of the log-probabilities the shape alone is used.
        given = [t for t in given if t.shape != out.shape]
    if name in _OVERWRITES:
        given = [t for t in given if not any(_same(t, w) for w in written)]
    return [(t, _size(t)) for t in given], writes


def _forward_name(operator: str) -> str:
    return operator.removesuffix("_sum").removesuffix("_backward")


def _gathered(operator: str, func: Any, args: Any, out: Any) -> tuple[_Sizes, _Sizes]:
    """Return reads and writes of the layer of chosen rows: each row once for each product.

    The tables as they are read come last, behind those that are differentiated. Sums are read and
    written where gradients are added to them, and only handed on in the forward pass.
    """
    is_backward = operator != _forward_name(operator)
    names = [argument.name for argument in func._schema.arguments]
    given_by_name = list(zip(names, args, strict=False))
    given = list(_tensors([value for name, value in given_by_name if "sum_" not in name]))
    sums = _tensors([v for n, v in given_by_name if is_backward and "sum_" in n])
    x_TD = given[0]
    index = next(t for t in given if not t.is_floating_point() and t.dim() == 3)
    tables = [
        t for t in given if t.dim() == 3 and t.shape[2] == x_TD.shape[1] and t.shape != index.shape
    ]
    rest = [t for t in given if not any(t is table for table in tables)]
    of_tables, of_tokens = _GATHERED_ROWS[_forward_name(operator)]
    if not is_backward:
        of_tables, of_tokens = 2, 0
    values = index.numel() * x_TD.shape[1]
    reads = [
        (tables[-1], values * of_tables * tables[-1].element_size()),
        (x_TD, values * of_tokens * x_TD.element_size()),
    ]
    added = [(t, _size(t)) for t in sums]
    return (
        reads + [(t, _size(t)) for t in rest] + added,
        [(t, _size(t)) for t in _tensors(out)] + added,
    )


def _mutated(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Any]:
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[number] if number < len(args) else kwargs.get(argument.name)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _size(tensor: Tensor) -> int:
    """Return bytes of the entries that are distinct in memory; a stretched axis counts once."""
    if tensor.layout != torch.strided:
        return tensor.numel() * tensor.element_size()
    sizes = (s for s, d in zip(tensor.shape, tensor.stride(), strict=True) if d or s == 0)
    return math.prod(sizes) * tensor.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner)
