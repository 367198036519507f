"""Initial values, from one random stream per (seed, parameter name).

A parameter's values depend on the seed, its name and its shape alone, so attention and embedding
start identically in all families of a seed, and on every device. The distributions are those of
the reference implementation (section "Initialisers" of its specification).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from isoflop.errors import UserError

Initialiser = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Draws the float32 values of a parameter of the given shape."""

# Standard deviation of a unit normal cut at +-2, and the probability it keeps.
CUT = 2.0
_KEPT = math.erf(CUT / math.sqrt(2.0))
CUT_STD = math.sqrt(
    1.0 - 2.0 * CUT * math.exp(-(CUT**2) / 2.0) / (math.sqrt(2.0 * math.pi) * _KEPT)
)


def stream(seed: int, name: str) -> torch.Generator:
    """Return the random stream of one parameter (CPU), keyed by the run's seed and its name."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    # Generators take a signed 64-bit seed.
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def constant(value: float) -> Initialiser:
    """Return an initialiser of one value: 0 for biases, 1 for scales."""
    return lambda shape, generator: torch.full(shape, value)


def normal(std: float) -> Initialiser:
    """Return a normal with standard deviation ``std``."""
    return lambda shape, generator: torch.randn(shape, generator=generator) * std


def trunc_normal(std: float) -> Initialiser:
    """Return a normal cut at two sigma, rescaled so that its final deviation is ``std``."""
    return lambda shape, generator: _cut_normal(shape, generator) * (std / CUT_STD)


def trunc_normal_uncorrected(std: float) -> Initialiser:
    """Return a normal cut at two sigma, not rescaled: deviation ``std`` * CUT_STD (0.8796)."""
    return lambda shape, generator: _cut_normal(shape, generator) * std


def _cut_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return a unit normal cut at +-2: the inverse distribution function of a uniform draw."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    values = torch.erfinv((2.0 * uniform - 1.0) * _KEPT) * math.sqrt(2.0)
    return values.clamp_(-CUT, CUT).float()


def initialise(model: nn.Module, seed: int) -> None:
    """Set each parameter that a module of ``model`` names in its ``initialisers()``.

    A module's ``initialisers()`` maps its own parameters' names to an :data:`Initialiser`.

    Raises:
        UserError: a parameter that no module names: its values would not follow from the seed.
    """
    drawn: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        declared: Mapping[str, Initialiser] = getattr(module, "initialisers", dict)()
        for name, draw in declared.items():
            parameter = getattr(module, name)
            full_name = f"{module_name}.{name}" if module_name else name
            with torch.no_grad():
                parameter.copy_(draw(tuple(parameter.shape), stream(seed, full_name)))
            drawn.add(parameter)
    for name, parameter in model.named_parameters():
        if parameter not in drawn:
            raise UserError(
                "parameter",
                name,
                "one that its module names in initialisers(), so that it follows from the seed",
                "add it (isoflop/families/README.md)",
            )
