"""Facts that a model may have learned, "The NOUN was ADJECTIVE": mined, the paper's, or planted.

A fact pairs a noun with the adjective that follows it in the text. What a model answers to one noun
is compared with what it answers to another (isoflop.interpret.activation_patching).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isoflop.errors import UserError
from isoflop.files import read_json

if TYPE_CHECKING:
    from isoflop.data.tokenizers import Tokenizer
    from isoflop.data.windows import TokenData
    from isoflop.interpret.load import LoadedRun


TEMPLATE = "The {noun} was {adjective}"
"""The template of the paper, and of the facts planted in made-up text."""
MIN_COUNT = 10
"""Sentences that must state a fact before it is mined: the paper's number."""
PLANTED_FILE = "facts.json"
"""The file of facts in a prepared folder whose source plants them."""
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
MAX_PAIRS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A noun and its adjective."""

    noun: str
    adjective: str
    count: int | None = None
    """Sentences that say so; None: not counted."""


def facts_of(which: str, loaded: LoadedRun, *, min_count: int = MIN_COUNT) -> tuple[Fact, ...]:
    """Return facts that a run may have learned.

    Args:
        which: ``planted`` in its synthetic text, ``mined`` from its training text, or those of the
            ``paper``.
        loaded: the run, with its data.
        min_count: sentences that state a mined fact, at least.

    Raises:
        UserError: there is no such choice; its text has no such facts.
    """
    assert loaded.data is not None
    if which == "planted":
        return planted(loaded.data)
    if which == "mined":
        return mined(texts_of(loaded.data, loaded.tokenizer), min_count=min_count)
    if which == "paper":
        return paper_pairs()
    raise UserError("--facts", which, "one of planted, mined, paper", "choose one of them")


def paper_pairs() -> tuple[Fact, ...]:
    """Return the eight facts of the paper's TinyStories model (arXiv 2606.07414, "circuits")."""
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
    """Choose most facts, then most sentences: a pair is worth more than all counts together."""
    from scipy.optimize import linear_sum_assignment

    nouns = sorted({noun for noun, _ in counts})
    adjectives = sorted({adjective for _, adjective in counts})
    worth = np.zeros((len(nouns), len(adjectives)))
    for (noun, adjective), count in counts.items():
        worth[nouns.index(noun), adjectives.index(adjective)] = sum(counts.values()) + 1 + count
    chosen = zip(*linear_sum_assignment(worth, maximize=True), strict=True)
    pairs = [(nouns[row], adjectives[column]) for row, column in chosen if worth[row, column]]
    return {pair: counts[pair] for pair in pairs}


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A fact in tokens: begin, "The NOUN was ADJECTIVE"."""

    fact: Fact
    tokens: tuple[int, ...]
    noun: tuple[int, int]
    """First token of the noun, and the one after its last."""
    answer: int
    """First token of the adjective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two prompts of one layout with different adjectives."""

    clean: Prompt
    cf: Prompt
    third: Prompt | None
    """The control's prompt; None: no noun has this layout and another adjective."""
    read: int
    """Position whose prediction is the first token in which the adjectives differ."""

    @property
    def noun(self) -> range:
        """Positions of the noun."""
        return range(*self.clean.noun)

    @property
    def clean_answer(self) -> int:
        """The token that the clean fact has after the read."""
        return self.clean.tokens[self.read + 1]

    @property
    def cf_answer(self) -> int:
        """The token that the counterfactual fact has there."""
        return self.cf.tokens[self.read + 1]

    @property
    def elsewhere(self) -> list[int]:
        """As many other positions, if there are, those next after the noun first; not the read."""
        after = range(self.clean.noun[1], self.read)
        before = range(self.clean.noun[0] - 1, -1, -1)
        return [*after, *before][: len(self.noun)]


def make_prompts(
    facts: Sequence[Fact], tokenizer: Tokenizer, *, template: str = TEMPLATE
) -> list[Prompt]:
    """Return the facts in tokens; those whose noun or adjective is no run of tokens are left out.

    Raises:
        UserError: a special token is in a fact.
    """
    prompts = (_make_prompt(fact, tokenizer, template) for fact in facts)
    return [prompt for prompt in prompts if prompt is not None]


def _make_prompt(fact: Fact, tokenizer: Tokenizer, template: str) -> Prompt | None:
    whole = template.format(noun=fact.noun, adjective=fact.adjective)
    before, after = template.partition("{noun}")[0], template.partition("{adjective}")[0]
    ends = [
        before.rstrip(),
        template.partition("{noun}")[0] + fact.noun,
        after.format(noun=fact.noun).rstrip(),
    ]
    ids = tuple(tokenizer.encode(whole).tolist())
    parts = [tuple(tokenizer.encode(text).tolist()) for text in ends]
    # A token that begins in one word and ends in the next belongs to neither.
    if any(ids[: len(part)] != part for part in parts):
        return None
    first, end, answer = (1 + len(part) for part in parts)
    tokens = (tokenizer.spec.begin_id, *ids)
    return Prompt(fact=fact, tokens=tokens, noun=(first, end), answer=answer)


def make_pairs(
    prompts: Sequence[Prompt], *, max_pairs: int = MAX_PAIRS, seed: int = 0
) -> list[Pair]:
    """Return ordered pairs of nouns of equal length and other adjectives, drawn if too many.

    Raises:
        UserError: there is none.
    """
    rng = np.random.default_rng(seed)
    alike = [p for p in itertools.permutations(prompts, 2) if _comparable(*p)]
    if not alike:
        allowed = "two whose nouns have as many tokens and whose adjectives differ"
        raise UserError("facts", len(prompts), allowed, "give more facts")
    if len(alike) > max_pairs:
        chosen = sorted(rng.choice(len(alike), max_pairs, replace=False).tolist())
        alike = [alike[index] for index in chosen]
    return [_make_pair(clean, cf, prompts, rng) for clean, cf in alike]


def _comparable(a: Prompt, b: Prompt) -> bool:
    shared = _num_shared(a, b)
    longest = min(len(_answer(a)), len(_answer(b)))
    return a.noun == b.noun and a.answer == b.answer and shared < longest


def _make_pair(
    clean: Prompt, cf: Prompt, prompts: Sequence[Prompt], rng: np.random.Generator
) -> Pair:
    others = [p for p in prompts if _comparable(p, clean) and _comparable(p, cf)]
    third = others[int(rng.integers(len(others)))] if others else None
    read = clean.answer + _num_shared(clean, cf) - 1
    return Pair(clean=clean, cf=cf, third=third, read=read)


def _answer(prompt: Prompt) -> tuple[int, ...]:
    return prompt.tokens[prompt.answer :]


def _num_shared(a: Prompt, b: Prompt) -> int:
    """Return how many tokens the adjectives have in common at their beginning."""
    same = [x == y for x, y in zip(_answer(a), _answer(b), strict=False)]
    return same.index(False) if False in same else len(same)
