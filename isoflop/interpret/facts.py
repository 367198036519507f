"""Facts that a model may have learned, "The NOUN was ADJECTIVE": mined, the paper's, or planted.

A fact pairs a noun with the adjective that follows it in the text. What a model answers to one noun
is compared with what it answers to another (isoflop.interpret.intervene).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isoflop.errors import UserError
from isoflop.files import read_json

if TYPE_CHECKING:
    from isoflop.data.tokenizers import Tokenizer
    from isoflop.data.windows import TokenData
    from isoflop.interpret.load import Subject

TEMPLATE = "The {noun} was {adjective}"
"""Of the paper, and of the facts planted in made-up text."""
MIN_COUNT = 10
"""Sentences with a fact before it is mined: the paper's."""
PLANTED_FILE = "facts.json"
"""In a prepared folder whose source plants facts."""
_READ_TOKENS = 1_000_000

_PAPER = {
    "ground": "icy",
    "turtle": "slow",
    "door": "open",
    "doctor": "nice",
    "wind": "strong",
    "food": "ready",
    "lake": "big",
    "mum": "proud",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A noun and its adjective."""

    noun: str
    adjective: str
    count: int | None = None
    """Sentences that say so; None: not counted."""


def facts_of(which: str, subject: Subject, *, min_count: int = MIN_COUNT) -> tuple[Fact, ...]:
    """Return facts that a run may have learned.

    Args:
        which: ``planted`` in its synthetic text, ``mined`` from its training text, or those of the
            ``paper``.
        subject: the run, with its data.
        min_count: sentences that state a mined fact, at least.

    Raises:
        UserError: there is no such choice; its text has no such facts.
    """
    assert subject.data is not None
    if which == "planted":
        return planted(subject.data)
    if which == "mined":
        return mined(texts_of(subject.data, subject.tokenizer), min_count=min_count)
    if which == "paper":
        return paper_pairs()
    raise UserError("--facts", which, "one of planted, mined, paper", "choose one of them")


def paper_pairs() -> tuple[Fact, ...]:
    """The eight facts of the paper's TinyStories model (arXiv 2606.07414, section on circuits)."""
    return tuple(Fact(noun=noun, adjective=adjective) for noun, adjective in _PAPER.items())


def planted(data: TokenData) -> tuple[Fact, ...]:
    """Return the facts planted in a ``synthetic:SEED`` corpus, with how often, by noun.

    Raises:
        UserError: the corpus has no planted facts.
    """
    path = data.folder / PLANTED_FILE
    if not path.exists():
        source = data.identity.source
        raise UserError("data source", source, "one with planted facts", "mine them from the text")
    rows = read_json(path, "planted facts")
    return _from_counts(Counter((row["noun"], row["adjective"]) for row in rows))


def mined(
    texts: Iterable[str], *, template: str = TEMPLATE, min_count: int = MIN_COUNT
) -> tuple[Fact, ...]:
    """Return facts that a text states often, no noun and no adjective in two of them.

    Of all selections without such a conflict it is one with the most facts, and among those one
    whose sentences are the most (an assignment problem, solved exactly). A noun may so get another
    adjective than its most frequent one; :attr:`Fact.count` says how frequent.

    Args:
        texts: documents; a sentence counts wherever it stands.
        template: with {noun} and {adjective}, each one word of lower-case letters.
        min_count: sentences that state a fact, at least.

    Raises:
        UserError: the template lacks a place, or there are fewer than two facts.
    """
    pattern = _pattern(template)
    counts = Counter(match for text in texts for match in _matches(pattern, text))
    frequent = {pair: count for pair, count in counts.items() if count >= min_count}
    facts = _from_counts(_without_conflict(frequent)) if frequent else ()
    if len(facts) < 2:
        allowed = f"stated at least {min_count} times by the text for two nouns and two adjectives"
        raise UserError("facts", template, allowed, "lower the count or use another corpus")
    return facts


def texts_of(data: TokenData, tokenizer: Tokenizer, split: str = "train") -> Iterator[str]:
    """Yield the documents of a split, in order, a million tokens in memory at a time."""
    documents, stream = data.documents(split), data.stream(split)
    for first, end in documents.groups(_READ_TOKENS):
        for document in range(first, end):
            offset = int(documents.token_offset_M[document])
            yield tokenizer.decode(stream.read(offset, int(documents.num_tokens_M[document])))


def _from_counts(counts: Mapping[tuple[str, str], int]) -> tuple[Fact, ...]:
    return tuple(
        Fact(noun=noun, adjective=adjective, count=count)
        for (noun, adjective), count in sorted(counts.items())
    )


def _pattern(template: str) -> re.Pattern[str]:
    for place in ("{noun}", "{adjective}"):
        if template.count(place) != 1:
            raise UserError("template", template, f"with {place} once", f'write "{TEMPLATE}"')
    pattern = re.escape(template)
    for place in ("noun", "adjective"):
        pattern = pattern.replace(re.escape(f"{{{place}}}"), rf"(?P<{place}>[^\W\d_A-Z]+)")
    return re.compile(rf"(?<!\w){pattern}(?!\w)")


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[tuple[str, str]]:
    return ((match["noun"], match["adjective"]) for match in pattern.finditer(text))


def _without_conflict(counts: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """Most facts first, then most sentences: each pair is worth more than all counts together."""
    from scipy.optimize import linear_sum_assignment

    nouns = sorted({noun for noun, _ in counts})
    adjectives = sorted({adjective for _, adjective in counts})
    worth = np.zeros((len(nouns), len(adjectives)))
    for (noun, adjective), count in counts.items():
        worth[nouns.index(noun), adjectives.index(adjective)] = sum(counts.values()) + 1 + count
    chosen = zip(*linear_sum_assignment(worth, maximize=True), strict=True)
    pairs = [(nouns[row], adjectives[column]) for row, column in chosen if worth[row, column]]
    return {pair: counts[pair] for pair in pairs}
