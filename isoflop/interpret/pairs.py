"""Facts as prompts, and prompts in pairs that differ in nothing but the noun.

A noun may span several tokens, and adjectives may share a beginning (bytes): a pair's nouns have as
many tokens, and its answers are compared where they first differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isoflop.errors import UserError
from isoflop.interpret.facts import TEMPLATE, Fact

if TYPE_CHECKING:
    from isoflop.data.tokenizers import Tokenizer

MAX_PAIRS = 2000


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
    """Of the control; None: no noun has this layout and another adjective."""
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
    """Ordered pairs of nouns with as many tokens and different adjectives, drawn if too many.

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
    """Return tokens that the adjectives have in common at their beginning."""
    same = [x == y for x, y in zip(_answer(a), _answer(b), strict=False)]
    return same.index(False) if False in same else len(same)
