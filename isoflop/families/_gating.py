"""The strict FLOP gate for families from elsewhere, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from isoflop.errors import UserError
from isoflop.families._registry import FamilySource, family_digest, find_family
from isoflop.files import from_here

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
    """What `isoflop flops` takes: the folder of a family that a study names, else the name."""
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
