"""What every source gives: documents in a fixed order, in parts that may have a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TRAIN = "train"
HELDOUT = "heldout"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawDocument:
    """One document as its source has it."""

    id: str
    """Where it lies in its source: file and row, or split and row."""
    text: bytes
    """UTF-8, unless the source is damaged; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Documents of one split, or (``split`` None) documents that are still to be split."""

    split: str | None
    read: Callable[[], Iterator[RawDocument]]
    """The same documents in the same order each time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Documents and where they come from."""

    name: str
    licence: str
    origin: Mapping[str, Any]
    """Where the texts were taken from; with the options it says whether they are the same."""
    parts: tuple[Part, ...]
    """Held-out documents before training documents, so that copies of them can be left out."""
    facts: Callable[[int], list[dict[str, Any]]] | None = field(default=None)
    """Facts planted in the first so many documents (synthetic sources)."""
