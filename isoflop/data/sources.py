"""Sources, the options of a preparation, and its progress.

A source is documents in a fixed order, in parts that may have a split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from isoflop.errors import UserError

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
    """Where the texts were taken from; with the options it tells whether they are the same."""
    parts: tuple[Part, ...]
    """Held-out documents before training documents, so that copies of them can be left out."""
    facts: Callable[[int], list[dict[str, Any]]] | None = field(default=None)
    """Facts planted in the first so many documents (synthetic sources)."""


BAD_DOCUMENT_RULES = ("refuse", "drop")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions:
    """How a source is read; None leaves a choice to the source."""

    tokens: int | None = None
    """Training tokens to take: reading stops at the document that reaches them."""
    workers: int = 1
    """Processes that tokenise; no part of the result."""
    from_glob: str | None = None
    """Files of a copy of the recipe's data set, read in place of the published one."""
    column: str | None = None
    """Name of the text column."""
    config: str | None = None
    """Configuration of a Hugging Face data set."""
    split: str | None = None
    """Split that trains."""
    heldout_split: str | None = None
    """Split that is held out; without one, documents are held out by their hash."""
    on_bad_document: str = "refuse"
    """``refuse`` or ``drop`` documents that are no UTF-8 or that the tokenizer cannot take."""

    def __post_init__(self) -> None:
        """Check the numbers and the rule."""
        for name, value in (("--tokens", self.tokens), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise UserError(name, value, "1 or more", "correct it")
        if self.on_bad_document not in BAD_DOCUMENT_RULES:
            raise UserError(
                "--on-bad-document", self.on_bad_document, "refuse or drop", "choose one of them"
            )

    def content(self) -> dict[str, Any]:
        """Return the options that can change the result, without those that were left out.

        Not the glob of a copy: what its files hold is in the source's origin.
        """
        values = {
            "tokens": self.tokens,
            "column": self.column,
            "config": self.config,
            "split": self.split,
            "heldout_split": self.heldout_split,
        }
        given: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
        return {**given, "on_bad_document": self.on_bad_document}


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a preparation is."""

    stage: str
    """``hash`` (local files), ``tokenizer`` (training it), ``read`` (and tokenise), ``write``."""
    num_documents: int
    num_bytes: int
    """Of text."""
    num_tokens: int
    """Of training, end-of-text tokens included."""
    goal_tokens: int | None
    """Training tokens at the end of the stage; None where not known."""
    seconds: float
    """Since the stage began."""

    @property
    def bytes_per_second(self) -> float | None:
        """Text per second; None at the start."""
        return self.num_bytes / self.seconds if self.seconds > 0 else None

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end of the stage; None where not known."""
        if self.goal_tokens is None or self.num_tokens == 0:
            return None
        return self.seconds * max(0, self.goal_tokens - self.num_tokens) / self.num_tokens


OnProgress = Callable[[Progress], None] | None
"""Called now and then with the progress of a preparation."""


class Meter:
    """Adds up what one stage has done and reports it."""

    def __init__(
        self,
        stage: str,
        goal_tokens: int | None,
        on_progress: OnProgress,
    ) -> None:
        self._stage = stage
        self._goal_tokens = goal_tokens
        self._on_progress = on_progress
        self._start_s = time.monotonic()
        self._documents = self._bytes = self._tokens = 0

    def add(self, num_documents: int, num_bytes: int, num_tokens: int) -> None:
        """Count documents, bytes of text and training tokens."""
        self._documents += num_documents
        self._bytes += num_bytes
        self._tokens += num_tokens
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    stage=self._stage,
                    num_documents=self._documents,
                    num_bytes=self._bytes,
                    num_tokens=self._tokens,
                    goal_tokens=self._goal_tokens,
                    seconds=time.monotonic() - self._start_s,
                )
            )
