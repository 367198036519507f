"""isoflop: is my architecture better at equal compute, by how much, and how sure are we?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.api.load import fit as fit
    from isoflop.api.load import load as load
    from isoflop.api.load import optima as optima
    from isoflop.api.load import read_runs as read_runs
    from isoflop.api.results import Results as Results
    from isoflop.model.count import count as count

__version__ = "0.1.0"

# By name, the module that is imported when it is first asked for: they need pandas or torch.
_HOME = {
    "Results": "api.results",
    "count": "model.count",
    "fit": "api.load",
    "load": "api.load",
    "optima": "api.load",
    "read_runs": "api.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    # What a person completes: not what this module imports for itself.
    return sorted({*_HOME, *(name for name in globals() if name.startswith("__"))})
