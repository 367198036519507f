"""Feed-forward families: one folder each, found by looking; nothing is registered by hand.

A folder NAME holds `spec.py` (shapes, ledger, ladder; imports no torch) and `module.py` (torch).
What starts with an underscore is shared by several families. Families from outside the package are
found through entry points and folders (`_registry.py`); their mistakes become one line, and their
FLOPs are gated before they are planned (`_external.py`). README.md teaches how to write one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from isoflop.errors import UserError, shown
from isoflop.families._external import COMPONENTS, ensure_gated, external_spec
from isoflop.families._registry import (
    PATHS_VARIABLE,
    FamilySource,
    add_family_folder,
    all_families,
    check_digest,
    family_digest,
    find_family,
    import_half,
    is_built_in,
    name_of_folder,
    use_planned_families,
)
from isoflop.families._shared.spec import Routing

if TYPE_CHECKING:
    from torch import nn

    from isoflop.accounting import Component
    from isoflop.recipe import Recipe

__all__ = [
    "COMPONENTS",
    "PATHS_VARIABLE",
    "FamilySpec",
    "Routing",
    "add_family_folder",
    "check_digest",
    "config_from_mapping",
    "ensure_gated",
    "family_digest",
    "family_names",
    "get_build",
    "get_routing",
    "get_spec",
    "is_built_in",
    "is_family",
    "name_of_folder",
    "use_planned_families",
]

_SPEC_NAMES = ("Config", "free_dimension", "ledger", "ladder")


class FamilySpec(Protocol):
    """The names that a family's `spec.py` defines at module level; it imports no torch."""

    Config: Any
    """Frozen dataclass of the family's own shape; its __post_init__ refuses impossible ones."""
    free_dimension: tuple[str, ...]
    """The fields that equal-FLOP matching may solve for."""

    def ledger(self, config: Any, d_model: int, seq_len: int) -> tuple[Component, ...]:
        """Return components of one feed-forward layer, named `experts` or `router`."""

    def num_params(self, config: Any, d_model: int) -> int:
        """Return parameters of one feed-forward layer, which follow from its ledger."""

    def num_active_params(self, config: Any, d_model: int) -> int:
        """Return parameters of one layer that a token uses, which follow from its ledger."""

    def ladder(self, recipe: Recipe, size: int) -> Any:
        """Return the Config of rung ``size`` of the recipe's ladder."""

    # Optional: routing(config) -> Routing | None, see get_routing.


def family_names() -> tuple[str, ...]:
    """Return all families there are, sorted."""
    return all_families()


def is_family(name: str) -> bool:
    """Return whether there is a family of that name; cheaper than `family_names()`."""
    return find_family(name) is not None


def _source(name: str) -> FamilySource:
    source = find_family(name)
    if source is None:
        raise UserError("family", name, f"one of {', '.join(family_names())}", "correct the study")
    return source


def get_spec(name: str) -> FamilySpec:
    """Return the torch-free half of a family.

    Raises:
        UserError: there is no such family, or its code does not define what a spec must.
    """
    source = _source(name)
    spec = import_half(source, "spec")
    if source.built_in:
        return cast(FamilySpec, spec)
    for needed in _SPEC_NAMES:
        if not hasattr(spec, needed):
            raise UserError(f"family {name}", "spec.py", f"one with {needed}", "define it")
    return external_spec(name, spec)


def get_build(name: str) -> Callable[[Any, int], nn.Module]:
    """Return the family's `build(config, d_model)`; importing it imports torch.

    Raises:
        UserError: there is no such family, or its code does not define `build`.
    """
    module = import_half(_source(name), "module")
    if not hasattr(module, "build"):
        raise UserError(f"family {name}", "module.py", "one with build", "define it")
    return cast("Callable[[Any, int], nn.Module]", module.build)


def get_routing(name: str, values: Mapping[str, Any]) -> Routing | None:
    """Return how a family with a configuration chooses experts; None where it does not.

    What it says is all that estimates, usage logs and `isoflop interpret` know of it.

    Raises:
        UserError: as :func:`get_spec` and :func:`config_from_mapping`.
    """
    routing = getattr(get_spec(name), "routing", None)
    return None if routing is None else routing(config_from_mapping(name, values))


def config_from_mapping(name: str, values: Mapping[str, Any]) -> Any:
    """Return a family's Config from plain values, checked.

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
        # A string, unless the family's module does without postponed annotations.
        expected = int if fields[key].type in ("int", int) else str
        if type(value) is not expected:
            kind = "a whole number" if expected is int else "a word in quotes"
            raise UserError(f"{name}.{key}", value, kind, "correct the study")
    missing = [
        key for key, f in fields.items() if key not in values and f.default is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{name}.{missing[0]}", None, "given", "add the field")
    try:
        return config_class(**values)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise UserError(
            f"{name} configuration", shown(given), f"a possible one ({error})", "correct it"
        ) from error
