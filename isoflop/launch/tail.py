"""The end of a file that may be long, or be written at this moment."""

from __future__ import annotations

from pathlib import Path

# Enough for the last lines of any traceback, and for some rows of metrics.
TAIL_BYTES = 16_384


def tail(path: Path, max_bytes: int = TAIL_BYTES) -> list[str]:
    """Return the last whole lines of a file that so many bytes hold; none if it is not there."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if size > max_bytes else lines
