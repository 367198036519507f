"""A made-up corpus with planted facts: the same bytes for a seed on every machine and version.

Background: invented words, drawn by Zipf's law or as one of a few followers of the word before
(a Markov chain). Some sentences are facts, "The NOUN was ADJECTIVE.", one adjective for each noun
in the whole corpus, so that what a model has stored can be looked for.

``synthetic:tiny:SEED`` has 16 facts, the same for every seed, and a background of 60 words drawn
evenly: a model of two layers learns it in seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, count
from typing import Any

from isoflop.data.sources import Part, RawDocument, Source
from isoflop.errors import UserError

VERSION = 1
"""Goes up with any change to the texts."""
NUM_DOCUMENTS = 2_000
"""About 2 MB, where no number of tokens is asked for."""

NUM_WORDS = 2_000
NUM_FACTS = 200
NUM_ADJECTIVES = 50
NUM_FOLLOWERS = 8
FOLLOW_PERCENT = 60
SENTENCES = (8, 24)
WORDS_PER_SENTENCE = (4, 14)
FACT_PERCENT = 15

TINY_VERSION = 1
TINY_ADJECTIVES = ("awum", "bexi", "coly", "dusk", "erif", "fant", "gomp", "hask")
TINY_NOUNS = tuple(
    first + "aeiou"[(2 * i + j) % 5] + second + "aeiou"[(i + 3 * j + 1) % 5]
    for i, first in enumerate("bdgk")
    for j, second in enumerate("lnrs")
)
"""Of four letters each: with bytes for tokens, every pair of facts has one layout."""
TINY_FACTS = tuple(
    (noun, TINY_ADJECTIVES[(2 * (number // 4) + number % 4) % 8])
    for number, noun in enumerate(TINY_NOUNS)
)
"""No letter of a noun determines its adjective: a model has to know the noun as a whole."""
TINY_NUM_WORDS = 60
TINY_SENTENCES = 12
TINY_WORDS_PER_SENTENCE = (3, 5)
TINY_FACT_PERCENT = 50

_ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "t")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("", "", "n", "r", "s", "l", "nd")
_TINY = "tiny:"
_MASK = 2**64 - 1


def synthetic_source(name: str, *, endless: bool) -> Source:
    """Return ``synthetic:SEED`` or ``synthetic:tiny:SEED``.

    Args:
        name: the source's name.
        endless: give documents for as long as they are asked for, not :data:`NUM_DOCUMENTS`.

    Raises:
        UserError: SEED is no whole number below 2^64.
    """
    text = name.partition(":")[2]
    seed = text.removeprefix(_TINY)
    if not (seed.isascii() and seed.isdigit() and int(seed) <= _MASK):
        allowed = "synthetic:SEED or synthetic:tiny:SEED, a whole number"
        raise UserError("data source", name, allowed, "write synthetic:0")
    maker = _TinyMaker(int(seed)) if seed != text else _Maker(int(seed))
    version = TINY_VERSION if seed != text else VERSION
    numbers = (lambda: count()) if endless else (lambda: iter(range(NUM_DOCUMENTS)))

    def read() -> Iterator[RawDocument]:
        return (RawDocument(id=str(number), text=maker.text(number)) for number in numbers())

    return Source(
        name=name,
        licence="CC0-1.0 (made up by a program)",
        origin={"generator": "isoflop synthetic", "version": version, "seed": text},
        parts=(Part(split=None, read=read),),
        facts=maker.facts,
    )


class _Random:
    """SplitMix64 (Steele, Lea and Flood, 2014), so that no library's version matters."""

    def __init__(self, *key: int) -> None:
        self._state = 0
        for value in key:
            self._state = (self.next() ^ value) & _MASK

    def next(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def below(self, bound: int) -> int:
        return (self.next() * bound) >> 64

    def between(self, ends: tuple[int, int]) -> int:
        return ends[0] + self.below(ends[1] - ends[0] + 1)


class _Planter(ABC):
    """Documents of one seed, each made from its number alone."""

    def text(self, number: int) -> bytes:
        """Return the document of a number, ASCII."""
        return " ".join(sentence for sentence, _ in self._sentences(number)).encode()

    def facts(self, num_documents: int) -> list[dict[str, Any]]:
        """Return noun, adjective, document id and first byte of the sentence, of each fact."""
        rows = []
        for number in range(num_documents):
            position = 0
            for sentence, fact in self._sentences(number):
                if fact is not None:
                    noun, adjective = fact
                    rows.append(
                        {
                            "noun": noun,
                            "adjective": adjective,
                            "document": str(number),
                            "position": position,
                        }
                    )
                position += len(sentence) + 1
        return rows

    @abstractmethod
    def _sentences(self, number: int) -> Iterator[tuple[str, tuple[str, str] | None]]:
        """Yield the sentences of a document, each with its fact or None."""


class _Maker(_Planter):
    """Many words and facts, drawn by the seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        random = _Random(seed, VERSION)
        words = _make_words(random, NUM_WORDS + NUM_FACTS + NUM_ADJECTIVES)
        self._words = words[:NUM_WORDS]
        adjectives = words[NUM_WORDS + NUM_FACTS :]
        self._facts = [
            (noun, adjectives[random.below(NUM_ADJECTIVES)])
            for noun in words[NUM_WORDS : NUM_WORDS + NUM_FACTS]
        ]
        # Zipf: the word of rank r has weight 1/r; in integers, whose sums are exact.
        self._sums = list(accumulate(10**9 // rank for rank in range(1, NUM_WORDS + 1)))
        self._followers = [
            [self._draw(random) for _ in range(NUM_FOLLOWERS)] for _ in range(NUM_WORDS)
        ]

    def _sentences(self, number: int) -> Iterator[tuple[str, tuple[str, str] | None]]:
        random = _Random(self._seed, VERSION, number + 1)
        for _ in range(random.between(SENTENCES)):
            if random.below(100) < FACT_PERCENT:
                noun, adjective = self._facts[random.below(NUM_FACTS)]
                yield f"The {noun} was {adjective}.", (noun, adjective)
            else:
                yield self._background(random), None

    def _background(self, random: _Random) -> str:
        word = self._draw(random)
        words = [word]
        for _ in range(random.between(WORDS_PER_SENTENCE) - 1):
            if random.below(100) < FOLLOW_PERCENT:
                word = self._followers[word][random.below(NUM_FOLLOWERS)]
            else:
                word = self._draw(random)
            words.append(word)
        return " ".join(self._words[word] for word in words).capitalize() + "."

    def _draw(self, random: _Random) -> int:
        return bisect_right(self._sums, random.below(self._sums[-1]))


class _TinyMaker(_Planter):
    """The same few words and facts for every seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        made = _make_words(_Random(0, TINY_VERSION), TINY_NUM_WORDS + len(TINY_NOUNS))
        self._words = [word for word in made if word not in TINY_NOUNS][:TINY_NUM_WORDS]

    def _sentences(self, number: int) -> Iterator[tuple[str, tuple[str, str] | None]]:
        random = _Random(self._seed, TINY_VERSION, number + 1)
        for _ in range(TINY_SENTENCES):
            if random.below(100) < TINY_FACT_PERCENT:
                noun, adjective = TINY_FACTS[random.below(len(TINY_FACTS))]
                yield f"The {noun} was {adjective}.", (noun, adjective)
            else:
                count = random.between(TINY_WORDS_PER_SENTENCE)
                words = (self._words[random.below(len(self._words))] for _ in range(count))
                yield " ".join(words).capitalize() + ".", None


def _make_words(random: _Random, number: int) -> list[str]:
    """Return different words of one to three syllables."""
    words: dict[str, None] = {}
    while len(words) < number:
        syllables = [
            _ONSETS[random.below(len(_ONSETS))]
            + _VOWELS[random.below(len(_VOWELS))]
            + _CODAS[random.below(len(_CODAS))]
            for _ in range(1 + random.below(3))
        ]
        words["".join(syllables)] = None
    return list(words)
