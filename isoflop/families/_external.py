"""Families from outside the package: what is wrong in one becomes one line, and the FLOP gate.

The gate runs in a process of its own, so that planning imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from isoflop.accounting import Component
from isoflop.errors import UserError, failure_reason
from isoflop.families._registry import FamilySource, family_digest, find_family
from isoflop.families._shared.spec import Routing, parameter_counts
from isoflop.files import from_here

if TYPE_CHECKING:
    from isoflop.recipe import Recipe


_T = TypeVar("_T")

COMPONENTS = ("experts", "router")
"""What the layer of a family may consist of."""


class ExternalSpec:
    """A FamilySpec around an external `spec.py` that checks what its functions do.

    Whatever they raise, and whatever they return that cannot be used, becomes a UserError that
    names the file, the line and the reason.
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

    def routing(self, config: Any) -> Routing | None:
        """Return how the layer chooses experts; None where its spec does not say."""
        if not hasattr(self._module, "routing"):
            return None
        found = self._call("routing", lambda: self._module.routing(config))
        if not isinstance(found, Routing | None):
            raise self._wrong("what routing returns", "a Routing, or None,")
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


# A gate takes seconds; this is for a family that never comes back.
_TIMEOUT_S = 600


def ensure_gated(name: str, *configs: Mapping[str, Any]) -> None:
    """Check that an external family's ledger is what torch counts, before it may be planned.

    Runs in a subprocess, so that planning imports no torch; once per process, source and
    configuration. Built-in families are gated by the project's own tests.

    Args:
        name: the family.
        configs: configurations to be planned. The gate runs each combination of their words (such
            as a router's name) at a small size, and always the family's own ladder.

    Raises:
        UserError: the ledger or the parameters differ, an operator is not counted, or the code
            fails.
    """
    source = find_family(name)
    if source is None or source.built_in:
        return
    words = {_in_words(config): json.dumps(dict(config), sort_keys=True) for config in configs}
    for problem in _problems(name, family_digest(name) or "", tuple(sorted(words.values()))):
        raise UserError(
            "family",
            name,
            f"one whose ledger is what its module computes ({problem})",
            f"correct it and see `isoflop flops {_as_typed(source)} --check`",
        )


def _as_typed(source: FamilySource) -> str:
    """Return the folder of a family that a study names, else its name, as `isoflop flops` takes."""
    if source.folder is None:
        return source.name
    typed = from_here(source.folder)
    return str(typed) if typed.is_absolute() else f"./{typed}"


def _in_words(config: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((k, v) for k, v in config.items() if isinstance(v, str)))


@lru_cache(maxsize=128)
def _problems(name: str, digest: str, configs: tuple[str, ...]) -> tuple[str, ...]:
    import subprocess  # slow to import, and only families from elsewhere need it

    try:
        done = subprocess.run(
            [sys.executable, "-m", "isoflop.model.flop_gate", name, *configs],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            # One core is plenty, and other work may be running.
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (f"the gate took more than {_TIMEOUT_S} s",)
    if done.returncode == 0:
        return ()
    lines = (done.stdout if done.returncode == 1 else done.stderr).strip().splitlines()
    return (lines[-1] if lines else f"the gate ended with {done.returncode}",)
