"""What every autograd.Function of the package keeps to, so that torch.compile may trace it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import isoflop

ROOT = Path(isoflop.__file__).parent.parent

# Results that are filled part by part: where the compiler traces, an operator stands for it.
FILLED = {"_ProductLoop"}


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def one_product_inputs() -> tuple[Any, ...]:
    half = torch.bfloat16
    group_R = torch.tensor([0, 0, 2, 2, 2], dtype=torch.int32)
    return rows(5, 8, dtype=half), rows(3, 8, 16, dtype=half), rows(3, 16, dtype=half), group_R


INPUTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "_AddTo": lambda: (rows(2, 3), torch.zeros(2, 3)),
    "_ChunkedSum": lambda: (rows(6, 4), rows(9, 4), torch.arange(6), True, False),
    "_Exchange": lambda: (rows(2, 3), None, lambda x, _: x * 2, lambda x, _: x * 2),
    "_NormaliseAndRotate": lambda: (rows(2, 3, 16), rows(2, 4)),
    "_OneProduct": one_product_inputs,
    "_Permute": lambda: (rows(3, 2), torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])),
    "_ProductLoop": lambda: (rows(3, 4), rows(2, 4, 5), rows(2, 5), [(0, slice(0, 3))]),
    "_RMSNorm": lambda: (rows(3, 4), rows(4)),
    "_ReadAs": lambda: (rows(2, 3), torch.zeros(2, 3)),
    "_SigmoidForm": lambda: (rows(3, 4),),
    "_SortByExpert": lambda: (rows(2, 3), torch.tensor([3, 0, 2, 1]), torch.arange(4), 2),
}


def own_functions() -> dict[str, type[torch.autograd.Function]]:
    """Return the Functions that the source of the package and of its kernels defines, by name."""
    found = {}
    for folder in ("isoflop", "kernels/isoflop_kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            names = re.findall(r"^ *class (\w+)\(.*\bFunction\):", path.read_text(), re.MULTILINE)
            if names:
                parts = path.relative_to(ROOT).with_suffix("").parts
                module = importlib.import_module(".".join(parts).removeprefix("kernels."))
                found |= {name: getattr(module, name) for name in names}
    return found


class Written(TorchDispatchMode):
    """Note the memory that operators write in place."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = func._schema.arguments
        given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
        for argument in arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                tensors = [t for t in tree_leaves(given.get(argument.name)) if t is not None]
                self.storages |= {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return func(*args, **kwargs)


def returns_what_it_wrote(function: type[torch.autograd.Function], inputs: tuple[Any, ...]) -> bool:
    with Written() as written:
        results = function.apply(*inputs)
    outputs = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
    assert outputs
    assert all(output.grad_fn is not None for output in outputs)
    return any(output.untyped_storage().data_ptr() in written.storages for output in outputs)


def test_every_function_of_the_source_is_tried() -> None:
    assert set(own_functions()) == set(INPUTS)


@pytest.mark.parametrize("name", sorted(set(INPUTS) - FILLED))
def test_no_forward_returns_what_it_wrote_in_place(name: str) -> None:
    # Compiled by torch 2.11, such a function has no gradient: zeros, without a word.
    assert not returns_what_it_wrote(own_functions()[name], INPUTS[name]())


@pytest.mark.parametrize("last", ["in_place", "out", "view", "list"])
def test_a_result_written_in_place_is_noticed(last: str) -> None:
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            if last == "in_place":
                return (x * 2).addcmul_(x, x)
            if last == "out":
                return torch.mul(x, 2, out=torch.empty_like(x))
            if last == "list":
                made = x * 2
                torch._foreach_mul_([made], 2.0)
                return made
            return (x * 2).mul_(3).view(-1)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise NotImplementedError

    assert returns_what_it_wrote(Scaled, (rows(2, 3),))


# What torch imports for it uses what torch advises against.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_forward_mode_is_refused_and_not_taken_for_zero(name: str) -> None:
    first, *others = INPUTS[name]()
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(
            lambda value: own_functions()[name].apply(value, *others),
            (first.detach(),),
            (torch.ones_like(first),),
        )
