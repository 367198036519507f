"""The spec of a family from outside the package: what is wrong in it is said in one line."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from isoflop.accounting import Component
from isoflop.errors import UserError, failure_reason
from isoflop.families._counts import parameter_counts

if TYPE_CHECKING:
    from isoflop.recipe import Recipe

_T = TypeVar("_T")

COMPONENTS = ("experts", "router")
"""What the layer of a family may consist of."""


class ExternalSpec:
    """Stands before an external `spec.py` and has the names of a FamilySpec.

    Whatever its functions raise, and whatever they return that nobody can use, becomes a
    UserError that names the file, the line and the reason.
    """

    def __init__(self, name: str, module: ModuleType) -> None:
        self._name = name
        self._module = module
        self.Config: Any = module.Config
        self.free_dimension: tuple[str, ...] = tuple(module.free_dimension)
        self.num_params, self.num_active_params = parameter_counts(self.ledger)
        if not (isinstance(self.Config, type) and dataclasses.is_dataclass(self.Config)):
            raise self._wrong("Config", "a frozen dataclass")
        fields = [field.name for field in dataclasses.fields(self.Config)]
        for field in self.free_dimension:
            if field not in fields:
                raise self._wrong(f"free_dimension {field!r}", f"a field ({', '.join(fields)})")

    def ledger(self, config: Any, d_model: int, seq_len: int) -> tuple[Component, ...]:
        """Return components of one feed-forward layer."""
        found = self._call("ledger", lambda: self._module.ledger(config, d_model, seq_len))
        if not isinstance(found, tuple) or not all(isinstance(c, Component) for c in found):
            raise self._wrong("what ledger returns", "a tuple of Component")
        for component in found:
            if component.name not in COMPONENTS:
                raise self._wrong(f"component {component.name!r}", " or ".join(COMPONENTS))
            counts = dataclasses.asdict(component) | {"name": 0}
            for field, count in counts.items():
                if type(count) is not int or count < 0:
                    raise self._wrong(f"{field} {count!r}", "a whole number (divide by //)")
        return found

    def ladder(self, recipe: Recipe, size: int) -> Any:
        """Return the Config of rung ``size`` of the recipe's ladder."""
        found = self._call("ladder", lambda: self._module.ladder(recipe, size))
        if not isinstance(found, self.Config):
            raise self._wrong("what ladder returns", "a Config")
        return found

    def _call(self, what: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            reason = f"{failure_reason(error)}{_line_of(error, self._module)}"
            raise UserError(
                f"family {self._name}", "spec.py", f"one whose {what} works ({reason})", "mend it"
            ) from error

    def _wrong(self, what: str, allowed: str) -> UserError:
        return UserError(
            f"family {self._name}", "spec.py", f"one with {allowed} for {what}", "mend it"
        )


@lru_cache(maxsize=64)
def external_spec(name: str, module: ModuleType) -> ExternalSpec:
    """Return the guarded spec of a family, made once for each imported module."""
    return ExternalSpec(name, module)


def _line_of(error: Exception, module: ModuleType) -> str:
    """Return where in the family's own folder it happened, if it did."""
    folder = Path(module.__file__ or "").parent
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent == folder]
    return f", line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""
