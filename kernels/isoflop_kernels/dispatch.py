"""Choice of implementation: the environment variable ISOFLOP_KERNELS, or a context manager."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

IMPLEMENTATIONS = ("reference", "bag", "cpp", "triton")
DEFAULT = "bag"
# The implementation for tensors of a device where none is chosen; other devices take DEFAULT.
DEVICE_DEFAULTS = {"cuda": "triton"} if importlib.util.find_spec("triton") else {}
VARIABLE = "ISOFLOP_KERNELS"
DEBUG_VARIABLE = "ISOFLOP_KERNELS_DEBUG"

# Names of the open `use_implementation` blocks. A plain global, because torch.compile can trace it.
_overrides: list[str] = []


def implementation(device_type: str = "cpu", elsewhere: str = DEFAULT) -> str:
    """Name of the implementation that the next operator call uses for tensors of a device.

    The innermost `use_implementation` wins over ISOFLOP_KERNELS, which is read at every call and
    wins over the default: "triton" on GPUs where it is installed, `elsewhere` on other devices. An
    empty variable counts as unset.

    Raises:
        ValueError: the variable names an implementation that does not exist.
    """
    if _overrides:
        return _overrides[-1]
    default = DEVICE_DEFAULTS.get(device_type, elsewhere)
    return _checked(VARIABLE, os.environ.get(VARIABLE) or default)


@contextlib.contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Use the implementation `name` inside the `with` block, whatever the environment says.

    The choice holds for the forward calls of the whole process while the block is open; a backward
    pass always belongs to the implementation that ran its forward pass.

    Raises:
        ValueError: `name` is not an implementation.
    """
    _overrides.append(_checked("use_implementation", name))
    try:
        yield
    finally:
        _overrides.pop()


def debug() -> bool:
    """Return whether ISOFLOP_KERNELS_DEBUG=1 asks for checks that read tensor values."""
    return os.environ.get(DEBUG_VARIABLE) == "1"


def _checked(source: str, name: str) -> str:
    if name == "triton" and not DEVICE_DEFAULTS:
        raise ValueError(f"{source} = 'triton' needs the package triton, which is not installed")
    if name in IMPLEMENTATIONS:
        return name
    allowed = ", ".join(IMPLEMENTATIONS)
    raise ValueError(f"{source} = {name!r} is unknown: must be one of {allowed}")
