"""Families from outside the package: what is wrong in one becomes one line, and the FLOP gate.

The gate runs in a process of its own, so that planning imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from isoflop.accounting import Component
from isoflop.errors import UserError, failure_reason
from isoflop.families._registry import FamilySource, family_digest, find_family
from isoflop.families._shared.spec import Routing, parameter_counts
from isoflop.files import cache_folder, from_here, sha256_json, write_text_atomic

if TYPE_CHECKING:
    from isoflop.recipe import Recipe
    from isoflop.spec import RunSpec


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
            if component.counted_training_flops_per_token is not None:
                raise self._wrong(
                    "counted_training_flops_per_token", "None (training is three times forward)"
                )
            counts = dataclasses.asdict(component)
            for field in ("name", "counted_training_flops_per_token"):
                del counts[field]
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

_ANY_RUN = {
    "n_layers": 1,
    "vocab_size": 1,
    "seq_len": 1,
    "batch_size": 1,
    "steps": 1,
    "data_id": "",
    "tokenizer_hash": "",
    "seed": 0,
}


def ensure_gated(name: str, *specs: RunSpec) -> None:
    """Check that an external family's ledger is what torch counts, before it may be planned.

    Runs in a subprocess, so that planning imports no torch. What passed once is not run again while
    the family, the package and torch are the same. Built-in families are gated by the project's own
    tests, on every rung of their ladders.

    Args:
        name: the family.
        specs: runs to be planned. The gate takes each at its own width and configuration, each
            combination of words (such as a router's name) at a small size, and always the first
            rungs of the family's own ladder.

    Raises:
        UserError: the ledger or the parameters differ, an operator is not counted, or the code
            fails.
    """
    source = find_family(name)
    if source is None or source.built_in:
        return
    # A gate depends on nothing that differs between runs of one model.
    models = {json.dumps(spec.to_json() | _ANY_RUN, sort_keys=True) for spec in specs}
    for problem in _problems(name, family_digest(name) or "", tuple(sorted(models))):
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


@lru_cache(maxsize=128)
def _problems(name: str, digest: str, specs: tuple[str, ...]) -> tuple[str, ...]:
    passed = cache_folder() / "gated" / _key(name, digest, specs)
    if passed.is_file():
        return ()
    problems = _run_gate(name, specs)
    if not problems:
        # Without a cache the next plan takes some seconds more.
        with contextlib.suppress(OSError):
            write_text_atomic(passed, "")
    return problems


def _key(name: str, digest: str, specs: tuple[str, ...]) -> str:
    """Return a digest of all that the outcome of a gate rests on."""
    from importlib.metadata import version

    package = Path(__file__).parents[1]
    code = hashlib.sha256()
    for part in ("accounting", "families", "model"):
        for path in sorted((package / part).rglob("*.py")):
            code.update(path.read_bytes())
    return sha256_json([name, digest, *specs, code.hexdigest(), version("torch")])


def _run_gate(name: str, specs: tuple[str, ...]) -> tuple[str, ...]:
    import subprocess  # slow to import, and only families from elsewhere need it

    try:
        done = subprocess.run(
            [sys.executable, "-m", "isoflop.model.flop_gate", name, *specs],
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
