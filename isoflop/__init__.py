"""isoflop: is my architecture better at equal compute, by how much, and how sure are we?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.model.count import count as count

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Return what needs torch, which is imported when it is first asked for."""
    if name == "count":
        from isoflop.model.count import count

        return count
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
