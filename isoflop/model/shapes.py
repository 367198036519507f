"""A user's module run as shapes: every tensor of it on the meta device, which holds no values.

Parameters, buffers and inputs are replaced by twins for as long as the context is open and put back
afterwards, so that nothing is copied, no device is touched and the module is as it was. What the
code makes on the way, or brings along from elsewhere, comes to the meta device too; small tables
of constants stay on the CPU with their values until they meet it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch._higher_order_ops.utils
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, resolve_name

from isoflop.model.flop_counter import UncountedOperatorError, operator_name

_META = torch.device("meta")
# Code asks these for their values: rates of dropout by layer, tables of positions.
_CONSTANTS = {
    torch.arange,
    torch.as_tensor,
    torch.linspace,
    torch.logspace,
    torch.scalar_tensor,
    torch.tensor,
}
_MOVES = {Tensor.cpu, Tensor.cuda, Tensor.pin_memory, Tensor.xpu}
_RECURRENT = {
    torch.gru,
    torch.gru_cell,
    torch.lstm,
    torch.lstm_cell,
    torch.rnn_relu,
    torch.rnn_relu_cell,
    torch.rnn_tanh,
    torch.rnn_tanh_cell,
}
_RECURRENT_CELL = "the work of recurrent cells is not counted: declare the FLOPs of the model"

_HIGHER_ORDER = (
    "what a higher-order operator runs is not counted: write it out, or declare the FLOPs of the "
    "model"
)

# The package has a function of the module's name.
_SCANS = "torch._higher_order_ops.associative_scan"


class Twins:
    """Tensors of the meta device in the place of others, one for each, however often it is used."""

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[Tensor, Tensor]] = {}
        self.met: Callable[[Tensor, Tensor], None] = lambda tensor, twin: None
        """Called with a trained tensor outside of all known modules, when it is met on the way."""
        self.failed: tuple[str, BaseException | None] = ("", None)
        """The torch function that raised the last error, as `torch.Tensor.item`, and the error."""

    def of(self, tensor: Tensor) -> Tensor:
        """Return a tensor's twin: same shape, strides and type, trained if it is."""
        if id(tensor) not in self._by_id:
            twin = torch.empty_like(tensor.detach(), device=_META)
            if isinstance(tensor, nn.Parameter):
                twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
            else:
                twin.requires_grad_(tensor.requires_grad)
            # With the tensor itself, whose id would be another's when it is gone.
            self._by_id[id(tensor)] = (tensor, twin)
        return self._by_id[id(tensor)][1]

    def inside(self, value: Any) -> Any:
        """Return inputs with twins for their tensors: tuples, lists and tables of them."""
        return _mapped(value, self.of)

    def brought(self, value: Any) -> Any:
        """Return arguments of an operator, all on the meta device."""
        return _mapped(value, self._of_stray)

    def _of_stray(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        is_new = id(tensor) not in self._by_id
        twin = self.of(tensor)
        if is_new and tensor.requires_grad:
            self.met(tensor, twin)
        return twin


@contextlib.contextmanager
def on_shapes(modules: Iterable[nn.Module]) -> Iterator[Twins]:
    """Run what is inside on shapes, in training mode, with attention as plain products.

    Activation checkpointing, autocast and compilation are off: they change memory, types and speed,
    and a recomputed forward pass is no work of the model.
    """
    twins = Twins()
    every = {id(m): m for module in modules for m in module.modules()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_as_before(every.values()))
        for module in every.values():
            module.training = True
            _replace_tensors(module, twins)
        stack.enter_context(_plain_torch())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # A choice of a backend by the module's own code would bring back what has no formula.
        stack.enter_context(_changed(torch.nn.attention, "_sdpa_kernel", lambda *_, **__: None))
        stack.enter_context(_META)
        stack.enter_context(_OnMeta(twins))
        yield twins


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Build what is inside on the meta device, whatever device the code asks for."""
    with _META, _OnMeta(Twins()):
        yield


class _OnMeta(TorchFunctionMode):
    """Brings all tensors that a torch function is given or makes to the meta device."""

    def __init__(self, twins: Twins) -> None:
        super().__init__()
        self._twins = twins

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _RECURRENT:
            raise UncountedOperatorError((f"aten::{func.__name__}",), _RECURRENT_CELL)
        if func in _MOVES:
            return args[0]
        if func is Tensor.to:
            args, kwargs = _to_types(args, kwargs)
            if len(args) == 1 and not kwargs:
                return args[0]
        elif func in _CONSTANTS:
            kwargs["device"] = torch.device("cpu")
        elif kwargs.get("device") is not None:
            kwargs["device"] = _META
        if _any_tensor((args, kwargs), lambda t: t.is_meta or t.requires_grad):
            args, kwargs = self._twins.brought((args, kwargs))
        try:
            return func(*args, **kwargs)
        except Exception as error:
            # The innermost function is the first that the error passes.
            if self._twins.failed[1] is not error:
                self._twins.failed = (resolve_name(func) or func.__name__, error)
            raise


def _to_types(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return arguments of `Tensor.to` without a device other than meta."""

    def stays(value: Any) -> bool:
        is_device = isinstance(value, str | torch.device) or type(value) is int
        return not is_device or value in ("meta", _META)

    like = [a.dtype if isinstance(a, Tensor) and not a.is_meta else a for a in args[1:]]
    named = {k: v for k, v in kwargs.items() if k != "device" or stays(v)}
    named = {k: v for k, v in named.items() if k not in ("copy", "non_blocking")}
    return (args[0], *(a for a in like if stays(a) and type(a) is not bool)), named


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(inner, change) for inner in value)
    if type(value) is dict:
        return {key: _mapped(inner, change) for key, inner in value.items()}
    return value


def _any_tensor(value: Any, holds: Callable[[Tensor], bool]) -> bool:
    if isinstance(value, Tensor):
        return holds(value)
    if type(value) is dict:
        value = value.values()
    elif type(value) not in (tuple, list):
        return False
    return any(_any_tensor(inner, holds) for inner in value)


def _replace_tensors(module: nn.Module, twins: Twins) -> None:
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is not None:
                table[name] = twins.of(tensor)  # type: ignore[assignment]
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            vars(module)[name] = twins.of(value)


@contextlib.contextmanager
def _as_before(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put back all attributes of some modules at the end, what they kept of a forward pass too."""
    tables = [
        table for m in modules for table in (m.__dict__, m._parameters, m._buffers, m._modules)
    ]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, values in zip(tables, before, strict=True):
            table.clear()
            table.update(values)


@contextlib.contextmanager
def _plain_torch() -> Iterator[None]:
    """Turn off what changes how a pass is run and not what it computes."""
    made = torch.amp.autocast_mode.autocast.__init__

    def no_autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        made(self, "cpu", enabled=False)

    with contextlib.ExitStack() as stack:
        changes: tuple[tuple[Any, str, Any], ...] = (
            (torch.amp.autocast_mode.autocast, "__init__", no_autocast),
            (torch, "is_autocast_enabled", lambda *_: False),
            (torch.utils.checkpoint, "CheckpointFunction", _NoCheckpoint),
            (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _no_checkpoint),
            (HigherOrderOperator, "__call__", _no_operator),
            (torch._higher_order_ops.utils, "_hop_compile_and_call", _no_function),
            (sys.modules.get(_SCANS), "generic_associative_scan", _no_function),
        )
        for owner, name, value in changes:
            stack.enter_context(_changed(owner, name, value))
        # Importing it takes seconds; where nothing has, nothing was compiled.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


class _NoCheckpoint:
    """In the place of torch's function that recomputes what it runs."""

    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        """Return what the function gives."""
        return function(*args)


def _no_checkpoint(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def _no_operator(operator: Any, *args: Any, **kwargs: Any) -> Any:
    raise UncountedOperatorError((operator_name(operator),), _HIGHER_ORDER)


def _no_function(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # Called by the one that users know, as `scan`.
    name = sys._getframe(1).f_code.co_name
    if name.startswith("_"):
        name = sys._getframe(2).f_code.co_name
    raise UncountedOperatorError((f"higher_order::{name}",), _HIGHER_ORDER)


@contextlib.contextmanager
def _changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object another attribute in the context, if it has one of that name."""
    if not hasattr(owner, name):
        # Not in this version of torch.
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
