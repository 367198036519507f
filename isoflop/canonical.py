"""The one form in which values are hashed: run ids, data ids, the seals of manifests."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; only str, int, bool, None, list and dict.

    A float has no one spelling and an unknown object no meaning, so both raise.

    Raises:
        TypeError: any other type, at any depth.
    """
    _check_canonical(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _check_canonical(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if type(key) is not str:
                raise TypeError(f"key {key!r} has no canonical form")
            _check_canonical(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_canonical(inner)
    elif value is not None and type(value) not in (str, int, bool):
        raise TypeError(f"{type(value).__name__} {value!r} has no canonical form")


def sha256_json(value: Any) -> str:
    """Hex sha256 of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()
