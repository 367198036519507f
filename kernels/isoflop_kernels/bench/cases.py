"""What is timed: layer sizes, and an operator or its rival on inputs made from a seed."""

# T tokens, D width, C channels, K experts chosen per channel, N sub-keys per half,
# E = N * N experts per channel, M = C * K

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from isoflop_kernels import (
    command,
    gathered_linear,
    product_key_topk,
    stable_topk,
    use_implementation,
)
from isoflop_kernels.gathered_linear.flops import backward_flops, forward_flops


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One layer with a table per channel, and its tokens."""

    name: str
    T: int
    D: int
    C: int
    K: int
    N: int

    @property
    def E(self) -> int:
        """Experts per channel."""
        return self.N * self.N

    @property
    def num_choices(self) -> int:
        """Rows gathered from each of the two tables: T * C * K."""
        return self.T * self.C * self.K

    @property
    def table_size(self) -> int:
        """Numbers in one of the two tables, all channels: C * E * D."""
        return self.C * self.E * self.D

    def flops(self, mode: str) -> int:
        """Return the counted FLOPs of a mode, with all four gradients."""
        x, idx, w = (self.T, self.D), (self.T, self.C, self.K), (self.C, self.E, self.D)
        forward = forward_flops(x, idx)
        backward = backward_flops(x, x, idx, idx, w, w, idx, "identity", "", [True] * 4)
        return {"forward": forward, "backward": backward, "both": forward + backward}[mode]

    def __str__(self) -> str:
        sizes = f"T {self.T}, D {self.D}, C {self.C}, K {self.K}, N {self.N}, E {self.E}"
        return f"{self.name} ({sizes})"


# Layers that a CPU trains, and the size that the CPU's requirements are stated at.
SMALL = {
    shape.name: shape
    for shape in (
        Shape(name="micro-16", T=1024, D=16, C=4, K=4, N=12),
        Shape(name="micro-32", T=1024, D=32, C=4, K=4, N=16),
        Shape(name="micro-48", T=1024, D=48, C=4, K=4, N=20),
        Shape(name="micro-64", T=2048, D=64, C=4, K=4, N=24),
        Shape(name="width-128", T=2048, D=128, C=16, K=8, N=28),
    )
}
# Width and sub-keys per half of the scales of arXiv 2606.07414, all with 16 channels and 8 chosen.
SCALES = {
    2: (256, 40),
    3: (384, 52),
    4: (512, 64),
    5: (640, 76),
    6: (768, 88),
    7: (896, 100),
    8: (1024, 112),
}


def scale(number: int, num_tokens: int) -> Shape:
    """Return one layer at one of the paper's scales."""
    width, num_keys = SCALES[number]
    return Shape(name=f"scale-{number}", T=num_tokens, D=width, C=16, K=8, N=num_keys)


MODES = ("forward", "backward", "both")
# What each operator is compared with besides its own implementations.
RIVALS = {"gathered_linear": "mlp", "product_key_topk": "two topk", "stable_topk": "topk"}
# A router without sub-keys sorts all experts; beyond this many it would not be used.
MAX_PLAIN_EXPERTS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A function of `leaves`, whose gradients are wanted, and the gradient of its result."""

    contender: str
    leaves: Sequence[Tensor]
    function: Callable[[], Tensor]
    gradient: Tensor

    def forward(self) -> Tensor:
        """Return the result, ready to be differentiated."""
        with self._chosen():
            return self.function()

    def call(self, mode: str) -> Callable[[], object]:
        """Return the work of a mode; that of "backward" holds what a forward pass has saved."""
        if mode == "forward":
            return self.forward
        if mode == "backward":
            result = self.forward()
            return lambda: self._differentiate(result, keep=True)
        return lambda: self._differentiate(self.forward(), keep=False)

    def _differentiate(self, result: Tensor, *, keep: bool) -> object:
        with self._chosen():
            return torch.autograd.grad(result, self.leaves, self.gradient, retain_graph=keep)

    def _chosen(self) -> AbstractContextManager[None]:
        rival = self.contender in RIVALS.values()
        return command.using("reference" if rival else self.contender)


def make_cases(
    operator: str,
    shape: Shape,
    contenders: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
) -> list[Case]:
    """Return the contenders on the same inputs; those of a rival have its own weights."""
    make = {
        "gathered_linear": _gathered_linear,
        "product_key_topk": _product_key_topk,
        "stable_topk": _stable_topk,
    }[operator]
    with torch.device(device):
        return make(shape, contenders, dtype)


def _gathered_linear(shape: Shape, contenders: Sequence[str], dtype: torch.dtype) -> list[Case]:
    torch.manual_seed(0)
    x = _normal((shape.T, shape.D), dtype)
    dy = torch.randn(shape.T, shape.D).to(dtype)
    cases = []
    if "mlp" in contenders:
        cases.append(_mlp(shape, x, dy))
    if set(contenders) - {"mlp"}:
        # Chosen as a router would: experts of one token share first and second sub-keys.
        with use_implementation("bag"), torch.no_grad():
            score, idx = product_key_topk(torch.randn(shape.T, 2, shape.C, shape.N), shape.K)
        score = score.to(dtype).requires_grad_()
        table = (shape.C, shape.E, shape.D)
        w_in, w_out = _normal(table, dtype), _normal(table, dtype)

        def function() -> Tensor:
            return gathered_linear(x, idx, score, w_in, w_out)

        leaves = (x, score, w_in, w_out)
        cases += [
            Case(contender=name, leaves=leaves, function=function, gradient=dy)
            for name in contenders
            if name != "mlp"
        ]
    return cases


def _mlp(shape: Shape, x: Tensor, dy: Tensor) -> Case:
    """Return C * K hidden units: the dense layer that counts as many FLOPs."""
    hidden = shape.C * shape.K
    w_in, w_out = _normal((shape.D, hidden), x.dtype), _normal((hidden, shape.D), x.dtype)

    def function() -> Tensor:
        return torch.nn.functional.gelu(x @ w_in) @ w_out

    return Case(contender="mlp", leaves=(x, w_in, w_out), function=function, gradient=dy)


def _product_key_topk(shape: Shape, contenders: Sequence[str], dtype: torch.dtype) -> list[Case]:
    torch.manual_seed(0)
    sim = _normal((shape.T, 2, shape.C, shape.N), dtype)
    gradient = torch.randn(shape.T, shape.C, shape.K).to(dtype)

    def case(name: str) -> Case:
        ours = name != RIVALS["product_key_topk"]
        select = product_key_topk if ours else two_topk
        return Case(
            contender=name,
            leaves=(sim,),
            function=lambda: select(sim, shape.K)[0],
            gradient=gradient,
        )

    return [case(name) for name in contenders]


def two_topk(sim: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Prune each half by `torch.topk`, then select among the K * K sums; no rule on ties."""
    values, keys = sim.topk(k)
    sums = values[:, 0, :, :, None] + values[:, 1, :, None, :]
    score, pair = sums.flatten(-2).topk(k)
    first = keys[:, 0].gather(-1, pair // k)
    return score, first * sim.shape[-1] + keys[:, 1].gather(-1, pair % k)


def _stable_topk(shape: Shape, contenders: Sequence[str], dtype: torch.dtype) -> list[Case]:
    torch.manual_seed(0)
    values = _normal((shape.T, shape.C, shape.E), dtype)
    gradient = torch.randn(shape.T, shape.C, shape.K).to(dtype)

    def case(name: str) -> Case:
        ours = name != RIVALS["stable_topk"]

        def function() -> Tensor:
            return (stable_topk if ours else torch.topk)(values, shape.K)[0]

        return Case(contender=name, leaves=(values,), function=function, gradient=gradient)

    return [case(name) for name in contenders]


def _normal(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(size).to(dtype).requires_grad_()
