"""Initial values, from one random stream per (seed, parameter name).

A parameter's values depend on the seed, its name and its shape alone, so attention and embedding
start identically in all families of a seed, and on every device. The distributions are those of
the reference implementation (section "Initialisers" of its specification).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import UserError, failure_reason, shown

Initialiser = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Draws the float32 values of a parameter of the given shape."""

NUM_SHOWN = 4
"""Parameters that a message lists."""

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


def torch_default(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise a module and those in it as torch does, by their ``reset_parameters()``.

    An entry of ``initialisers()`` under a module's name: ``{"gate": torch_default}``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        # As they are built: what a module holds, then the module itself.
        for part in reversed(list(module.modules())):
            reset = _reset_of(part)
            if reset is not None:
                reset()


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    """Return what draws a module's own parameters; attention's and transformers' is private."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return reset if callable(reset) else None


def initialise(model: nn.Module, seed: int) -> None:
    """Set each parameter that a module of ``model`` names in its ``initialisers()``.

    A module's ``initialisers()`` maps names of its parameters to an :data:`Initialiser`. Dotted
    names reach into the modules that it holds, such as ``gate.weight`` of an ``nn.Linear``, and
    come before what those name themselves; the name of a module maps to :func:`torch_default`.

    Raises:
        UserError: a name that is none, an initialiser that fails, or parameters that no module
            names: their values would not follow from the seed.
    """
    drawn: set[nn.Parameter] = set()
    named_from_outside: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        declared: Mapping[str, Any] = getattr(module, "initialisers", dict)()
        reached: set[nn.Parameter] = set()
        # What is said of one parameter comes after what is said of the module that has it.
        for name in sorted(declared, key=lambda name: declared[name] is not torch_default):
            target = _target(module, name, declared[name])
            if target in named_from_outside:
                continue
            generator = stream(seed, f"{module_name}.{name}" if module_name else name)
            try:
                found = _draw(target, declared[name], generator)
            except (TypeError, ValueError, RuntimeError) as error:
                allowed = f"one whose function draws values of its shape ({failure_reason(error)})"
                raise _wrong(module, name, allowed) from error
            drawn.update(found)
            if isinstance(target, nn.Module) or "." in name:
                reached.update(found)
        named_from_outside |= reached
    _check_all_drawn(model, drawn)


def _target(module: nn.Module, name: str, draw: object) -> nn.Module | nn.Parameter:
    """Return the parameter, or the module for :func:`torch_default`, that a name means."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    modules = {key: value for key, value in module.named_modules() if key}
    found = modules.get(name) if draw is torch_default else parameters.get(name)
    if found is not None:
        return found
    if draw is torch_default:
        allowed = f"a module that it holds ({', '.join(modules) or 'none'}) for torch_default"
    else:
        allowed = f"a parameter ({', '.join(parameters) or 'none'}), or torch_default for a module"
    raise _wrong(module, name, allowed)


def _draw(
    target: nn.Module | nn.Parameter, draw: Initialiser, generator: torch.Generator
) -> list[nn.Parameter]:
    """Set the values of a parameter, or a module's own; return the parameters that have them."""
    if isinstance(target, nn.Module):
        torch_default(target, generator)
        parts = [part for part in target.modules() if _reset_of(part) is not None]
        return [p for part in parts for p in part.parameters(recurse=False)]
    with torch.no_grad():
        target.copy_(draw(tuple(target.shape), generator))
    return [target]


def _wrong(module: nn.Module, name: str, allowed: str) -> UserError:
    return UserError(
        f"initialisers() of {type(module).__name__}",
        name,
        allowed,
        "correct it (isoflop/families/README.md)",
    )


def _check_all_drawn(model: nn.Module, drawn: set[nn.Parameter]) -> None:
    left = [name for name, parameter in model.named_parameters() if parameter not in drawn]
    if not left:
        return
    more = f" and {len(left) - NUM_SHOWN} more" if len(left) > NUM_SHOWN else ""
    raise UserError(
        "parameters",
        shown(", ".join(left[:NUM_SHOWN]) + more),
        "named in initialisers() of the family's module, so that they follow from the seed",
        'add them, as "gate.weight": trunc_normal(std), or "gate": torch_default to begin as torch '
        "does (isoflop/families/README.md)",
    )
