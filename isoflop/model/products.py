"""Each matrix product of a module's forward and backward pass, and where its values come from.

Values are followed from operator to operator, by the memory that holds them: whether they depend on
the inputs, on which parameters, and of which products they are made without another product in
between. What a product of the backward pass belongs to is told by the node of autograd that runs
it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from isoflop.model.flop_counter import ARITHMETIC, UncountedOperatorError

# What values depend on.
INPUT = 1
PARAMETER = 2

_RANDOM = {
    f"aten::{name}{form}"
    for name in ("bernoulli", "normal", "rand", "randint", "randn", "randperm", "uniform")
    for form in ("", "_like")
}
_GATHERS = {"aten::embedding", "aten::gather", "aten::index", "aten::index_select"}
_GATHERS |= {"aten::take_along_dim", "aten::_unsafe_index"}
_SELECTS = {"aten::argmax", "aten::argsort", "aten::max", "aten::sort", "aten::topk"}
# One step of a loop over a sequence looks at one of its positions.
_STEPS = {"aten::select", "aten::unbind", "aten::slice", "aten::split"}
_SCALES = {"aten::mul", "aten::addcmul", "aten::lerp", "aten::_foreach_mul"}
# An outer product stays one in these, and becomes a matrix product in those that add up.
_KEEPS = {"aten::cat", "aten::clone", "aten::_to_copy", "aten::div", "aten::neg", "aten::stack"}
_SUMS = {"aten::mean", "aten::sum"}
_PLUS = {"aten::add", "aten::addcmul", "aten::sub"}
_SCANS = {"aten::cumprod", "aten::cumsum", "aten::logcumsumexp"}
_GROUPED = {"aten::_grouped_mm", "isoflop::product_loop"}
# The first argument of these is added to the product.
_ADDS = {"aten::addmm", "aten::baddbmm", "aten::addbmm"}
# Values made of more products than this are those of a residual stream.
_MOST_SOURCES = 16

SCAN = (
    "a recurrence along the sequence does its work element by element, which counts 0: declare the "
    "FLOPs of the model, or write it with matrix products"
)
RECOMPUTED = (
    "a forward pass that is run again in the backward pass is no work of the model: turn it off"
)


@dataclass(kw_only=True, slots=True, eq=False)
class Product:
    """One product of the forward pass, and what the backward pass computes because of it."""

    operator: Any
    path: str
    """Of the innermost module that ran it."""
    parameters: frozenset[int] = frozenset()
    """Numbers of the parameters that the operand which is a weight is made of."""
    of_activations: bool = False
    """Whether both operands are made of the inputs."""
    shape: tuple[int, ...] = ()
    """Of the result."""
    inner: int = 0
    """The dimension that is summed over."""
    sources: frozenset[Product] = frozenset()
    """Products that the operands are made of."""
    is_selected_by: bool = False
    """Whether a choice (top-k, sort) is made of the result."""
    is_constant: bool = False
    """Whether nothing in it depends on inputs or parameters: a table made anew in each pass."""
    flops: int = 0
    training_flops: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Origin:
    """Where the values in some memory come from."""

    depends: int = 0
    parameters: frozenset[int] = frozenset()
    sources: frozenset[Product] = frozenset()
    scales: int = 0
    """Multiplications one after the other since the last product."""
    is_outer: bool = False
    """Whether it is the elementwise product of two that were both stretched for it."""


_NOWHERE = _Origin()


@dataclass(kw_only=True, slots=True)
class _Call:
    """A module that is running."""

    path: str
    steps: int = 0
    """Looks at one position of a sequence."""


@dataclass(kw_only=True, slots=True, eq=False)
class Record:
    """Notes the products of one example; give :meth:`observe` to the strict counter."""

    seq_len: int
    paths: Mapping[int, str]
    """Names of modules by id."""
    products: list[Product] = field(default_factory=list)
    tables: dict[int, bool] = field(default_factory=dict)
    """Parameters that are looked up by inputs (True) or by constants (positions)."""
    chosen: dict[int, int] = field(default_factory=dict)
    """Entries of a parameter that all tokens together use, where the model chooses them."""
    contracted: dict[str, int] = field(default_factory=dict)
    """Entries of products that were written as an elementwise product and a sum, by module."""
    elementwise: int = 0
    """Entries that arithmetic other than products went through."""
    is_forward: bool = True
    _of_node: dict[int, Product] = field(default_factory=dict)
    _calls: list[_Call] = field(default_factory=lambda: [_Call(path="")])

    def add_input(self, tensor: Tensor) -> None:
        """Mark a tensor as an example input."""
        _set(tensor, _Origin(depends=INPUT))

    def add_parameter(self, tensor: Tensor, number: int) -> None:
        """Mark a tensor as a parameter."""
        _set(tensor, _Origin(depends=PARAMETER, parameters=frozenset((number,))))

    @contextmanager
    def follow_modules(self) -> Iterator[None]:
        """Note which module runs."""
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if torch._C._current_autograd_node() is not None:
            raise UncountedOperatorError((f"{type(module).__name__}.forward",), RECOMPUTED)
        self._calls.append(_Call(path=self.paths.get(id(module), self._calls[-1].path)))

    def _leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._calls.pop()

    def observe(
        self,
        packet: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        flops: int | None,
    ) -> None:
        """Note one operator: an Observer of the strict counter."""
        if torch.is_inference_mode_enabled():
            raise UncountedOperatorError(
                ("torch.inference_mode",), "nothing in it is trained: take it out of the module"
            )
        if name in ARITHMETIC:
            self.elementwise += max(t.numel() for t in tensors_in((args, out)))
        node = torch._C._current_autograd_node()
        if node is not None:
            if flops:
                self._add_backward(packet, node._sequence_nr(), flops)
            return
        given = list(tensors_in((args, kwargs)))
        origin = self._joined(map(_origin, given))
        if flops is not None:
            origin = self._add(packet, name, args, out, flops, origin)
        elif name in _RANDOM:
            origin = dataclasses.replace(origin, depends=origin.depends | INPUT)
        elif name in _GATHERS:
            origin = self._looked_up(given, out, origin)
        elif name in _SELECTS:
            for product in origin.sources:
                product.is_selected_by = True
        else:
            self._follow_steps(name, given, out, origin)
            scales = origin.scales + (name in _SCALES)
            is_outer = self._follow_outer(name, given, out)
            origin = dataclasses.replace(origin, scales=scales, is_outer=is_outer)
        for tensor in tensors_in(out):
            # What memory held before in other places is still there.
            before = _origin(tensor)
            is_outer = origin.is_outer or before.is_outer
            _set(tensor, dataclasses.replace(self._joined((before, origin)), is_outer=is_outer))

    def _joined(self, origins: Iterable[_Origin]) -> _Origin:
        depends, scales = 0, 0
        parameters: set[int] = set()
        sources: set[Product] = set()
        for origin in origins:
            depends |= origin.depends
            scales = max(scales, origin.scales)
            parameters |= origin.parameters
            sources |= origin.sources
        return _Origin(
            depends=depends,
            # Activations are made of all parameters before them, which says nothing.
            parameters=frozenset() if depends & INPUT else frozenset(parameters),
            sources=frozenset(sources) if len(sources) <= _MOST_SOURCES else frozenset(),
            scales=scales,
        )

    def _add(
        self, packet: Any, name: str, args: tuple[Any, ...], out: Any, flops: int, origin: _Origin
    ) -> _Origin:
        operands = list(tensors_in(args))[1:] if name in _ADDS else list(tensors_in(args))[:2]
        origins = [_origin(t) for t in operands[:2]]
        weights = [o for o in origins if o.depends == PARAMETER]
        first = next(tensors_in(out))
        product = Product(
            operator=packet,
            path=self._calls[-1].path,
            parameters=frozenset().union(*(o.parameters for o in weights)),
            of_activations=len(origins) == 2 and all(o.depends & INPUT for o in origins),
            shape=tuple(first.shape),
            inner=operands[0].shape[-1] if operands[0].dim() else 0,
            sources=frozenset().union(*(o.sources for o in origins)),
            is_constant=not any(o.depends for o in origins),
            flops=flops,
            training_flops=flops,
        )
        self.products.append(product)
        if name in _GROUPED:
            self._choose_groups(args)
        # The node of the operator is the last that was made; there is none without gradients.
        self._of_node.setdefault(_last_node(), product)
        return dataclasses.replace(origin, sources=frozenset((product,)), scales=0)

    def _add_backward(self, packet: Any, sequence: int, flops: int) -> None:
        product = self._of_node.get(sequence)
        if product is None:
            product = Product(operator=packet, path="")
            self.products.append(product)
            self._of_node[sequence] = product
        product.training_flops += flops
        if self.is_forward:
            product.flops += flops
        # Gradients of gradients.
        self._of_node.setdefault(_last_node(), product)

    def _choose_groups(self, args: tuple[Any, ...]) -> None:
        """Note that of matrices (and biases) by group a token uses those of its rows."""
        rows, weight, *others = tensors_in(args)
        for tensor in (weight, *others):
            if weight.dim() == 3 and tensor.shape[:1] == weight.shape[:1]:
                used = rows.shape[0] * tensor.shape[1:].numel()
                for number in _origin(tensor).parameters:
                    self.chosen[number] = self.chosen.get(number, 0) + used

    def _looked_up(self, given: list[Tensor], out: Any, origin: _Origin) -> _Origin:
        """Return where rows of a table come from, and note what kind of a table it is."""
        table, index = _origin(given[0]), self._joined(_origin(t) for t in given[1:])
        if table.depends != PARAMETER:
            return origin
        if index.depends == INPUT or index.depends == 0:
            by_input = index.depends == INPUT
            for number in table.parameters:
                self.tables[number] = by_input or self.tables.get(number, False)
            return origin
        # Rows that the model itself chose are weights, as those of experts.
        for number in table.parameters:
            self.chosen[number] = self.chosen.get(number, 0) + next(tensors_in(out)).numel()
        return table

    def _follow_steps(self, name: str, given: list[Tensor], out: Any, origin: _Origin) -> None:
        if not origin.depends & INPUT or not given or not given[0].is_floating_point():
            return
        if name in _SCANS:
            raise UncountedOperatorError((name,), SCAN)
        call = self._calls[-1]
        if name in _STEPS and self.seq_len in given[0].shape:
            made = list(tensors_in(out))
            gone = made and made[0].numel() * self.seq_len == given[0].numel()
            call.steps += len(made) if gone else 0
        elif name in _SCALES and self._is_recurrence(origin, call):
            where = call.path or "the model"
            raise UncountedOperatorError((f"{name} in a loop over tokens in {where}",), SCAN)

    def _follow_outer(self, name: str, given: list[Tensor], out: Any) -> bool:
        """Return whether an outer product comes out, and note where entries of some are added."""
        outer = [_origin(t).is_outer for t in given]
        if name in _SUMS:
            if outer[0]:
                self._note_contraction(given[0])
            return False
        if name == "aten::addcmul":
            # The first is added to the product of the others.
            outer = [outer[0], _is_outer(given[1:], out)]
        elif name in _SCALES:
            return outer.count(True) == 1 or _is_outer(given, out)
        if name in _PLUS:
            if outer[:2] == [True, True]:
                self._note_contraction(next(tensors_in(out)))
            # What was made without values, as zeros, is none of the terms.
            return any(outer) and all(
                is_outer or not _origin(t).depends
                for is_outer, t in zip(outer, given, strict=False)
            )
        return name in _KEEPS and any(outer)

    def _note_contraction(self, products: Tensor) -> None:
        path = self._calls[-1].path
        self.contracted[path] = self.contracted.get(path, 0) + products.numel()

    def _is_recurrence(self, origin: _Origin, call: _Call) -> bool:
        """Return whether values were scaled again at each position that a module looked at."""
        length = self.seq_len
        return length >= _FEWEST_STEPS and min(origin.scales + 1, call.steps) >= length - 1


# The loop over a shorter sequence cannot be told from other loops.
_FEWEST_STEPS = 4


def _is_outer(given: list[Tensor], out: Any) -> bool:
    """Return whether both factors of an elementwise product have fewer entries than it."""
    if len(given) < 2 or not all(_origin(t).depends for t in given[:2]):
        return False
    most = max(math.prod(s for s, d in zip(t.shape, t.stride(), strict=True) if d) for t in given)
    return most < next(tensors_in(out)).numel()


def _last_node() -> int:
    """Return the number of the node of autograd that was made last, that of what runs now."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number - 1


def _origin(tensor: Tensor) -> _Origin:
    return getattr(tensor.untyped_storage(), "_isoflop_origin", _NOWHERE)


def _set(tensor: Tensor, origin: _Origin) -> None:
    tensor.untyped_storage()._isoflop_origin = origin  # type: ignore[attr-defined]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a module or an operator is given or gives."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors_in(inner)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors_in(vars(value))
