"""Feed-forward families: one folder each, found by looking; nothing is registered by hand.

A folder NAME holds `spec.py` (shapes, ledger, ladder; imports no torch) and `module.py` (torch).
Folders whose name starts with an underscore hold what several families share.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from isoflop.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from isoflop.accounting import Component
    from isoflop.recipe import Recipe

_FOLDER = Path(__file__).parent


class FamilySpec(Protocol):
    """What a family's `spec.py` defines at module level."""

    Config: Any
    """Frozen dataclass of the family's own shape; its __post_init__ refuses impossible ones."""
    free_dimension: tuple[str, ...]
    """The fields that equal-FLOP matching may solve for."""

    def ledger(self, config: Any, d_model: int, seq_len: int) -> tuple[Component, ...]:
        """Components of one feed-forward layer."""

    def num_params(self, config: Any, d_model: int) -> int:
        """Parameters of one feed-forward layer."""

    def num_active_params(self, config: Any, d_model: int) -> int:
        """Parameters of one layer that a token uses."""

    def ladder(self, recipe: Recipe, size: int) -> Any:
        """The Config of rung ``size`` of the recipe's ladder."""


def family_names() -> tuple[str, ...]:
    """All families there are, sorted."""
    return tuple(
        sorted(
            entry.parent.name
            for entry in _FOLDER.glob("*/spec.py")
            if not entry.parent.name.startswith("_")
        )
    )


def _check_known(name: str) -> None:
    if name not in family_names():
        raise UserError("family", name, f"one of {', '.join(family_names())}", "correct the study")


def get_spec(name: str) -> FamilySpec:
    """The torch-free half of a family.

    Raises:
        UserError: there is no such family.
    """
    _check_known(name)
    return cast(FamilySpec, importlib.import_module(f"isoflop.families.{name}.spec"))


def get_build(name: str) -> Callable[[Any, int], nn.Module]:
    """The family's `build(config, d_model)`; importing it imports torch.

    Raises:
        UserError: there is no such family.
    """
    _check_known(name)
    module = importlib.import_module(f"isoflop.families.{name}.module")
    return cast("Callable[[Any, int], nn.Module]", module.build)


def config_from_mapping(name: str, values: Mapping[str, Any]) -> Any:
    """A family's Config from plain values, checked.

    Raises:
        UserError: an unknown field, a value of the wrong type, or an impossible shape.
    """
    config_class = get_spec(name).Config
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    for key, value in values.items():
        if key not in fields:
            raise UserError(
                f"{name}.{key}", value, f"a field of {name} ({', '.join(fields)})", "rename it"
            )
        expected = int if fields[key].type == "int" else str
        if type(value) is not expected:
            kind = "a whole number" if expected is int else "a word in quotes"
            raise UserError(f"{name}.{key}", value, kind, "correct the study")
    missing = [
        key for key, f in fields.items() if key not in values and f.default is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{name}.{missing[0]}", None, "given", "add the field")
    return config_class(**values)
