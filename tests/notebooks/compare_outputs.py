"""What a notebook's cells showed, and in what two executions of it differ."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


def outputs_of(cell: Any) -> list[tuple[str, str]]:
    """(kind, text) of all that a cell showed; a picture's text is empty."""
    return list(_outputs(cell.get("outputs", ())))


def _outputs(outputs: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for output in outputs:
        if output["output_type"] == "stream":
            yield output["name"], output["text"]
        elif output["output_type"] == "error":
            yield "error", output["evalue"]
        elif "image/png" in output["data"]:
            yield "image/png", ""
        else:
            # A table also has a plain text, which names an object's address.
            kind = "text/markdown" if "text/markdown" in output["data"] else "text/plain"
            yield kind, output["data"][kind]


def difference(before: str, after: str, tolerance: float) -> str | None:
    """The first difference of two texts in words or, beyond a relative tolerance, in numbers."""
    if _NUMBER.split(before) != _NUMBER.split(after):
        return f"not the same words: {before!r} and {after!r}"
    for old, new in zip(_NUMBER.findall(before), _NUMBER.findall(after), strict=True):
        a, b = (float(text.replace(",", "")) for text in (old, new))
        if not math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance / 100):
            return f"{old} has become {new}"
    return None
