"""The environment variables of this process, changed for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

OWN_SAFE_PATH = "isoflop"
"""PYTHONSAFEPATH as verbs set it for processes of ours, where the user has not: any text counts."""


@contextmanager
def environment_with(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables, or remove those whose value is None, within the context."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _change(changes)
        yield
    finally:
        _change(before)


def _change(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
