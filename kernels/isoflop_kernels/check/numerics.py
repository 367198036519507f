"""The operators of every implementation against float64, on shapes that break careless kernels."""

# T tokens, D width, C channels, K experts chosen per channel, N sub-keys per half, E experts

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from isoflop_kernels import command, gathered_linear, product_key_topk, stable_topk

# Largest error of an output or gradient, in the norm, relative to the norm of the exact one. In
# bfloat16 it is two roundings of half a unit in the last place, of weights and of the result.
LIMITS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}
# Triton's interpreter cuts bfloat16 off, which is wrong by a whole unit.
INTERPRETED_LIMITS = LIMITS | {torch.bfloat16: 16e-3}
OUTPUTS = ("y", "dx", "dscore", "dw_in", "dw_out")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Sizes, how experts are chosen, and the gate."""

    T: int = 7
    D: int = 12
    C: int = 3
    K: int = 4
    E: int = 9
    shared: bool = False
    # "random", "same" expert for all K, "few" experts chosen at all, or one "popular" with all.
    choice: str = "random"
    activation: str = "identity"
    gate_order: str = "gate_then_act"

    def inputs(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Return arguments of the operator and `dy`, the same numbers on every device."""
        generator = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        idx = torch.randint(self.E, (self.T, self.C, self.K), generator=generator)
        if self.choice == "same":
            idx = idx[..., :1].expand_as(idx)
        elif self.choice == "few":
            idx = idx % 2 * (self.E - 1)
        elif self.choice == "popular":
            idx = torch.full_like(idx, self.E - 1)
        num_tables = 1 if self.shared else self.C
        return {
            "x": normal(self.T, self.D),
            "idx": idx.to(device, torch.int32, copy=True),
            "score": normal(self.T, self.C, self.K),
            "w_in": normal(num_tables, self.E, self.D),
            "w_out": normal(num_tables, self.E, self.D),
            "dy": normal(self.T, self.D),
        }


QUICK = (
    Case(),
    Case(T=1, D=33, K=1, activation="silu"),
    Case(shared=True, choice="same", activation="gelu_tanh", gate_order="act_then_gate"),
    Case(T=20, C=1, choice="popular", activation="relu"),
)
CASES = (
    *QUICK,
    Case(T=5, D=96, C=2, K=8, E=16),
    Case(D=1),
    Case(T=13, D=33, C=1, activation="gelu_tanh"),
    Case(K=6, E=2, activation="relu", gate_order="act_then_gate"),
    Case(T=1, C=1, K=1, E=1, D=1),
    Case(choice="few", E=30),
    Case(T=70, C=1, K=8, E=3, D=5, choice="popular", activation="silu", gate_order="act_then_gate"),
)
# What only a compiled implementation does in reasonable time: long segments, wide rows, many tiles.
LARGE = (
    Case(T=300, D=256, C=4, K=8, E=144, activation="gelu_tanh"),
    Case(T=200, D=1100, C=2, K=4, E=25),
    # Twelve hundred terms: more, added one by one, would leave float32 short of the limit.
    Case(T=300, D=64, C=2, K=8, E=16, choice="few"),
)
# [T, C, N] and k; similarities are whole numbers, so that many sums tie.
SELECTIONS = ((5, 2, 6, 4), (3, 1, 1, 1), (4, 2, 17, 8), (2, 3, 5, 5))


def worst_error(
    contender: str, case: Case, dtype: torch.dtype, device: torch.device
) -> tuple[float, str]:
    """Return the largest relative error among y and the four gradients, and whose it is."""
    inputs = case.inputs(dtype, device)
    exact = {n: t if n == "idx" else t.double() for n, t in inputs.items()}
    expected = differentiate("reference", case, {n: t.cpu() for n, t in exact.items()})
    with poisoned():
        actual = differentiate(contender, case, inputs)
    errors = {}
    for name in OUTPUTS:
        error = (actual[name].cpu().double() - expected[name]).norm()
        # NaN compares with nothing, and must not pass for that.
        errors[name] = float(error / expected[name].norm()) if error.isfinite() else float("inf")
        if actual[name].dtype != dtype:
            raise TypeError(f"{name} came as {actual[name].dtype}, not {dtype}")
    name = max(errors, key=lambda name: errors[name])
    return errors[name], name


def differentiate(contender: str, case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the output and all gradients by one implementation."""
    names = ("x", "score", "w_in", "w_out")
    leaf = {name: inputs[name].detach().clone().requires_grad_() for name in names}
    with command.using(contender):
        y = gathered_linear(
            leaf["x"],
            inputs["idx"],
            leaf["score"],
            leaf["w_in"],
            leaf["w_out"],
            case.activation,
            case.gate_order,
        )
        grads = torch.autograd.grad(y, list(leaf.values()), inputs["dy"])
    return dict(zip(OUTPUTS, (y.detach(), *grads), strict=True))


def repeats(contender: str, case: Case, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a second run gives the same bits."""
    inputs = case.inputs(dtype, device)
    first, second = (differentiate(contender, case, inputs) for _ in range(2))
    return all(torch.equal(first[name], second[name]) for name in OUTPUTS)


def selects_exactly(contender: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether scores and experts are those of the stable sort of all sums, ties included."""
    for num_tokens, num_channels, num_keys, k in SELECTIONS:
        generator = torch.Generator().manual_seed(num_keys)
        size = (num_tokens, 2, num_channels, num_keys)
        ties = torch.randint(-3, 4, size, generator=generator).to(dtype)
        for sim in (ties, torch.randn(size, generator=generator).to(dtype)):
            for select in (product_key_topk, stable_topk):
                with command.using("reference"):
                    expected = select(sim, k)
                with command.using(contender):
                    actual = select(sim.to(device), k)
                if not all(torch.equal(a.cpu(), e) for a, e in zip(actual, expected, strict=True)):
                    return False
    return True


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill new memory with NaN inside the context, by torch's deterministic mode."""
    mode = torch.get_deterministic_debug_mode()
    with warnings.catch_warnings():
        # Operations of other implementations that a GPU has no deterministic form of.
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
