"""FLOPs of any module: one forward and backward pass on shapes, strictly counted.

What is not counted is refused by name: operators without a FLOP formula, work that depends on
values, recurrent cells, higher-order operators, inference mode. What counts 0 by convention is
everything but matrix products (isoflop/accounting/README.md).
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.accounting.count import Count, ModuleFlops
from isoflop.accounting.ledger import COMPONENT_NAMES, Component
from isoflop.errors import UserError, failure_reason
from isoflop.families.moe import grouped  # noqa: F401 - registers the formula of grouped products
from isoflop.model.flop_counter import StrictFlopCounter, UncountedOperatorError, operator_name
from isoflop.model.parts import Parameter, Parts, upwards
from isoflop.model.products import Record, tensors_in
from isoflop.model.shapes import Twins, on_shapes
from isoflop_kernels import use_implementation

_ON_VALUES = (
    "counting runs on shapes without values, on which this depends: declare the FLOPs of the model"
)
_WITHOUT_SHAPES = (
    "a kernel does not run on shapes: make it a custom operator of torch with a FLOP formula "
    "(torch.utils.flop_counter.register_flop_formula), or declare the FLOPs of the model"
)
# Where torch calls the user's code.
_CALLS = (nn.Module.__module__, torch.autograd.Function.__module__)
_CONTRACTION = (
    "a matrix product written as an elementwise product and a sum counts 0: write it as a matrix "
    "product or einsum, or declare the FLOPs of the model"
)
# The share of the FLOPs below which such a product does not matter.
_LITTLE = 0.001
# Entries of elementwise work for each FLOP above which it is worth a note.
_MUCH_ELEMENTWISE = 0.1


def count(module: Callable[..., Any], *example_inputs: Any, **kwargs: Any) -> Count:
    """Return the FLOPs per token and the parameters of a module or any callable, as it trains.

    Its forward pass runs on the example, and the backward pass from the loss it gives (`.loss`, or
    the first scalar), else from the sum of all that it gives; on shapes without values, wherever
    the module is, in training mode. Nothing of it is changed. The first tensor of whole numbers
    holds the token ids; without one, the first tensor's last dimension is the width of a token.

    Args:
        module: a module, or a function that calls some.
        example_inputs: what it is called with.
        kwargs: the same by name.

    Raises:
        UncountedOperatorError: something ran whose FLOPs cannot be vouched for; it is named.
        UserError: it does not run, trains nothing, or has no tensor among its inputs.
    """
    modules = _modules_of(module)
    _refuse_unknown(modules)
    with on_shapes(modules.values()) as twins, use_implementation("reference"):
        args, named = twins.inside(example_inputs), twins.inside(kwargs)
        num_tokens, seq_len = _tokens((args, named))
        record = Record(seq_len=seq_len, paths=_paths(modules))
        parameters = _watched_parameters(module, modules, twins, record)
        for tensor in tensors_in((args, named)):
            record.add_input(tensor)
        counter = StrictFlopCounter(record.observe)
        try:
            with counter, record.follow_modules():
                loss = _loss(module(*args, **named))
                record.is_forward = False
                loss.backward()
        except (UncountedOperatorError, UserError):
            raise
        except Exception as error:
            raise _refusal(error, counter, twins) from error
    assert counter.total == sum(p.training_flops for p in record.products)
    return _Result(record, parameters, counter, num_tokens, modules).count()


def _modules_of(function: Any) -> dict[str, nn.Module]:
    """Return the modules that a callable is or calls, by the name it knows them by."""
    if isinstance(function, nn.Module):
        return {"": function}
    held: dict[str, Any] = {}
    if isinstance(function, functools.partial):
        return _modules_of(function.func)
    if inspect.ismethod(function):
        held[""] = function.__self__
    elif inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        held |= {**variables.globals, **variables.nonlocals}
    else:
        held |= getattr(function, "__dict__", {})
    return {name: value for name, value in held.items() if isinstance(value, nn.Module)}


def _refuse_unknown(modules: Mapping[str, nn.Module]) -> None:
    """Refuse modules whose operators or shapes are out of reach."""
    for _, path, part in _named(modules):
        if isinstance(part, torch.jit.ScriptModule):
            why = "a module of TorchScript cannot be looked into: count what it was made of"
            raise UncountedOperatorError((f"torch.jit in {path or 'the model'}",), why)
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and torch.nn.parameter.is_lazy(tensor):
                do = "give its sizes, or run it once before"
                raise UserError("module", f"{path}.{name}", "of a known shape", do)


def _paths(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """Return the first name of each module by its id."""
    paths: dict[int, str] = {}
    for name, path, module in _named(modules):
        del name
        paths.setdefault(id(module), path)
    return paths


def _named(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, nn.Module]]:
    for name, module in modules.items():
        for inner, part in module.named_modules():
            # torch.compile's wrapper is no part of the model.
            names = [name, *inner.split(".")]
            yield name, ".".join(n for n in names if n and n != "_orig_mod"), part


def _watched_parameters(
    module: Any, modules: Mapping[str, nn.Module], twins: Twins, record: Record
) -> list[Parameter]:
    """Return the model's parameters, each once; what is met on the way is added to the list."""
    found: list[Parameter] = []
    known: set[int] = set()

    def add(path: str, twin: Tensor) -> None:
        if id(twin) not in known:
            known.add(id(twin))
            record.add_parameter(twin, len(found))
            found.append(Parameter(path=path, tensor=twin))

    for _, path, part in _named(modules):
        for name, parameter in part.named_parameters(recurse=False):
            add(f"{path}.{name}" if path else name, parameter)
    if not modules and callable(getattr(module, "parameters", None)):
        for number, parameter in enumerate(module.parameters()):
            add(str(number), twins.of(parameter))
    twins.met = lambda tensor, twin: add(f"met.{len(found)}", twin)
    return found


def _tokens(inputs: Any) -> tuple[int, int]:
    """Return the numbers of tokens of an example and of one of its sequences."""
    tensors = [t for t in tensors_in(inputs) if t.dim()]
    ids = [t for t in tensors if not (t.is_floating_point() or t.is_complex())]
    if not tensors:
        raise UserError(
            "example inputs", None, "with a tensor", "give what the module is called with"
        )
    shape = ids[0].shape if ids else tensors[0].shape[:-1]
    return max(shape.numel(), 1), shape[-1] if len(shape) else 1


def _loss(output: Any) -> Tensor:
    """Return what the backward pass starts from."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(loss, Tensor) and loss.requires_grad:
        return loss.sum()
    trained = [t for t in tensors_in(output) if t.requires_grad]
    if not trained:
        allowed = "one with a result that depends on a trained parameter"
        raise UserError("module", type(output).__name__, allowed, "let requires_grad be true")
    scalars = [t for t in trained if t.dim() == 0]
    # The same work as from any loss of these results.
    whole = scalars[:1] or [torch.view_as_real(t) if t.is_complex() else t for t in trained]
    return functools.reduce(torch.add, (t.sum() for t in whole))


def _refusal(error: Exception, counter: StrictFlopCounter, twins: Twins) -> Exception:
    """Return what to raise where the module did not run: an operator's name, if it needs values."""
    kernel = _kernel(error)
    if kernel is not None:
        return UncountedOperatorError((kernel,), _WITHOUT_SHAPES)
    function, raised = twins.failed
    names = [counter.failed_in(error), function if raised is error else None]
    operators = tuple(dict.fromkeys(name for name in names if name)) or (_called(error),)
    if isinstance(error, NotImplementedError) or "meta" in str(error).lower():
        return UncountedOperatorError(operators, _ON_VALUES)
    reason = failure_reason(error)
    allowed = f"one that runs on shapes of its example inputs ({reason})"
    return UserError("module", operators[-1], allowed, "mend it, or declare its FLOPs")


def _called(error: BaseException) -> str:
    """Return the function of torch that was called, or else the last of the user's that ran."""
    name = "forward"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("torch."):
            name = frame.f_code.co_qualname
        elif module not in _CALLS:
            return frame.f_code.co_name
    return name


def _kernel(error: BaseException) -> str | None:
    """Return the name of the Triton kernel that was to be started, if one was."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("triton.runtime"):
            kernel = getattr(frame.f_locals.get("self"), "fn", None)
            return f"triton::{getattr(kernel, '__name__', 'kernel')}"
    return None


class _Result:
    """What a record says of a model, per token."""

    def __init__(
        self,
        record: Record,
        parameters: list[Parameter],
        counter: StrictFlopCounter,
        num_tokens: int,
        modules: Mapping[str, nn.Module],
    ) -> None:
        self._record = record
        self._parameters = parameters
        self._counter = counter
        self._num_tokens = num_tokens
        self._modules = modules
        self._products = [p for p in record.products if not p.is_constant]
        self._parts = Parts(self._products, parameters, record.tables)

    def count(self) -> Count:
        """Return the whole of it."""
        self._refuse_contractions()
        if not self._products:
            allowed = "one with a matrix product"
            raise UserError("module", "no product", allowed, "declare its FLOPs")
        tables = self._record.tables
        n_params = sum(p.tensor.numel() for p in self._parameters)
        return Count(
            flops=self._per_token(sum(p.flops for p in self._products)),
            training_flops=self._per_token(sum(p.training_flops for p in self._products)),
            n_params=n_params,
            n_active=sum(map(self._active, range(len(self._parameters)))),
            n_nonembed=n_params - sum(self._parameters[n].tensor.numel() for n in tables),
            declared_operators=self._declared_operators(),
            components=self._components(),
            modules=tuple(self._by_module()),
            num_tokens=self._num_tokens,
            seq_len=self._record.seq_len,
            n_layers=len(self._parts.attention) or None,
            n_heads=self._n_heads(),
            all_pairs=self._all_pairs(),
            elementwise_per_token=self._per_token(self._record.elementwise),
            notes=tuple(self._notes()),
        )

    def _refuse_contractions(self) -> None:
        """Refuse products in disguise, unless they are next to nothing."""
        # A product of as many entries, forward.
        flops = 2 * sum(self._record.contracted.values())
        if flops > _LITTLE * sum(p.flops for p in self._products):
            names = (
                f"aten::mul and aten::sum in {path or 'the model'}"
                for path in self._record.contracted
            )
            raise UncountedOperatorError(tuple(names), _CONTRACTION)

    def _per_token(self, total: int) -> int:
        return -(-total // self._num_tokens)

    def _components(self) -> tuple[Component, ...]:
        """Return the components that are there; they add up to the totals, rounded up or not."""
        forward, training, held, active = ({n: 0 for n in COMPONENT_NAMES} for _ in range(4))
        for product in self._products:
            name = self._parts.component(product)
            forward[name] += product.flops
            training[name] += product.training_flops
        for number, parameter in enumerate(self._parameters):
            name = self._parts.of_parameter(number)
            held[name] += parameter.tensor.numel()
            active[name] += self._active(number)
        forward, training = self._shared_out(forward), self._shared_out(training)
        return tuple(
            Component(
                name=name,
                flops_per_token=forward[name],
                counted_training_flops_per_token=training[name],
                num_params=held[name],
                num_active_params=active[name],
            )
            for name in COMPONENT_NAMES
            if forward[name] or training[name] or held[name]
        )

    def _active(self, number: int) -> int:
        """Return how much of a parameter a token uses: all, or what the model chose for it."""
        held = self._parameters[number].tensor.numel()
        chosen = self._record.chosen.get(number)
        return held if chosen is None else min(held, self._per_token(chosen))

    def _shared_out(self, totals: Mapping[str, int]) -> dict[str, int]:
        shares, before = {}, 0
        for name, total in totals.items():
            after = before + total
            shares[name] = self._per_token(after) - self._per_token(before)
            before = after
        return shares

    def _by_module(self) -> Iterator[ModuleFlops]:
        kinds: dict[str, str] = {}
        for _, path, part in _named(self._modules):
            kinds.setdefault(path, type(part).__name__)
        flops, training, held = Counter[str](), Counter[str](), Counter[str]()
        for product in self._products:
            for path in upwards(product.path):
                flops[path] += product.flops
                training[path] += product.training_flops
        for parameter in self._parameters:
            for path in upwards(parameter.owner):
                held[path] += parameter.tensor.numel()
        for path, kind in {"": "callable", **kinds}.items():
            yield ModuleFlops(
                path=path,
                kind=kind,
                flops=self._per_token(flops[path]),
                training_flops=self._per_token(training[path]),
                num_params=held[path],
            )

    def _n_heads(self) -> int | None:
        """Return the batch of the scores' products for each sequence, where all have the same."""
        sequences = self._num_tokens // self._record.seq_len
        batches = {p.shape[0] for p in self._parts.scores if len(p.shape) == 3}
        if len(batches) != 1 or any(len(p.shape) != 3 for p in self._parts.scores):
            return None
        heads, rest = divmod(batches.pop(), max(sequences, 1))
        return heads if heads and not rest else None

    def _all_pairs(self) -> bool:
        length = self._record.seq_len
        return all(
            [*p.shape[-2:], p.inner].count(length) >= 2 for p in self._parts.scores if p.shape
        )

    def _declared_operators(self) -> tuple[str, ...]:
        names = {p.operator: operator_name(p.operator) for p in self._products}
        return tuple(sorted(n for p, n in names.items() if self._counter.is_registered_by_user(p)))

    def _notes(self) -> Iterator[str]:
        tokens = self._num_tokens
        training = sum(p.training_flops for p in self._products)
        if training % tokens or sum(p.flops for p in self._products) % tokens:
            yield f"rounded up: the {tokens} tokens of the example do not divide its FLOPs"
        share = self._record.elementwise / training
        if share > _MUCH_ELEMENTWISE:
            yield (
                f"elementwise operators went through {share:.0%} as many entries as there are "
                "FLOPs of products, and count 0"
            )
        heads = [p for p in self._parts.head if p.shape]
        rows = sum(torch.Size(p.shape[:-1]).numel() for p in heads)
        if heads and rows < tokens:
            yield (
                f"logits of {rows} of {tokens} tokens only: give the module its targets, as in "
                "training"
            )
