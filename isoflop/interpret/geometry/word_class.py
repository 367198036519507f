"""The class of the word that a token belongs to: planted, or of a short list of English words.

English classes are the closed ones, whose words can be listed; every other word is ``open`` (or
``name``, if it has a capital letter inside a sentence). No tagger: a word has one class wherever it
stands, so "that" is a determiner also where it is a conjunction.

Letters: P patterns (tokens).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.files import read_json
from isoflop.interpret.facts import PLANTED_FILE
from isoflop.interpret.geometry.patterns import TokenRows

if TYPE_CHECKING:
    from isoflop.interpret.load import LoadedRun

_LISTS = {
    "determiner": "a an the this that these those some any no every each all both my your his her"
    " its our their another such",
    "pronoun": "i me you he him she it we us they them who whom which what something anything"
    " nothing everything someone anyone everyone mine yours hers ours theirs himself herself itself"
    " myself yourself themselves ourselves",
    "preposition": "of in to for with on at by from up about into over after under between out"
    " against during without before around among through above across behind near along off",
    "conjunction": "and or but nor so yet because although though while if when where as than"
    " unless until since whether",
    "be": "be am is are was were been being",
    "auxiliary": "have has had having do does did will would shall should can could may might must",
    "adverb": "not very then there here now too also just only never always again soon still how"
    " why",
    "number": "one two three four five six seven eight nine ten hundred thousand million first"
    " second third",
}
ENGLISH: Mapping[str, str] = {
    word: name for name, words in _LISTS.items() for word in words.split()
}
"""Class of each listed word, in lower case."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def classes_of(
    loaded: LoadedRun, tokens: TokenRows, planted: Mapping[str, str] | None = None
) -> list[str]:
    """Return :func:`word_classes` of a run's text.

    Args:
        loaded: whose tokenizer and data they are.
        tokens: whole windows in order.
        planted: class of words; None: those of the data's planted facts, English without any.
    """

    def decode(token: int) -> str:
        return loaded.tokenizer.decode(np.array([token], dtype=np.int64))

    return word_classes(tokens, decode, planted or _planted_in(loaded))


def _planted_in(loaded: LoadedRun) -> Mapping[str, str] | None:
    if loaded.data is None or not (loaded.data.folder / PLANTED_FILE).exists():
        return None
    return planted_classes(read_json(loaded.data.folder / PLANTED_FILE, "planted facts"))


def planted_classes(facts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the classes of words in planted facts, which facts.json of prepared data has."""
    classes = {"the": "frame", "was": "frame"}
    for fact in facts:
        classes |= {fact["noun"]: "noun", fact["adjective"]: "adjective"}
    return classes


def word_classes(
    tokens: TokenRows, decode: Callable[[int], str], planted: Mapping[str, str] | None
) -> list[str]:
    """Return the class of each token's word: of several, the word that its last letter is in.

    Words that ``planted`` does not name are ``background`` there. Tokens without letters are
    ``digit``, ``space`` or ``punctuation``.

    Args:
        tokens: whole windows in order.
        decode: the text of one token.
        planted: class of lower-case words; None: English.
    """
    texts = [decode(int(token)) for token in tokens.input_P]
    labels: list[str] = []
    while len(labels) < len(texts):
        first = len(labels)
        end = first
        while end < len(texts) and tokens.window_P[end] == tokens.window_P[first]:
            end += 1
        labels += _labels(texts[first:end], planted)
    return labels


def _labels(texts: list[str], planted: Mapping[str, str] | None) -> list[str]:
    """Return the classes of the tokens of a window."""
    whole = "".join(texts)
    class_at: dict[int, str] = {}
    for found in _WORD.finditer(whole):
        label = _class_of(found[0], whole[: found.start()].rstrip(" \n\"'“‘"), planted)
        class_at |= dict.fromkeys(range(*found.span()), label)
    labels, position = [], 0
    for text in texts:
        span = range(position, position + len(text))
        position += len(text)
        inside = [class_at[i] for i in span if i in class_at]
        labels.append(inside[-1] if inside else _without_letters(text))
    return labels


def _class_of(word: str, before: str, planted: Mapping[str, str] | None) -> str:
    lower = word.lower()
    if planted is not None:
        return planted.get(lower, "background")
    if lower in ENGLISH:
        return ENGLISH[lower]
    begins_sentence = not before or before[-1] in ".!?\n"
    return "name" if word[0].isupper() and not begins_sentence else "open"


def _without_letters(text: str) -> str:
    if any(character.isdigit() for character in text):
        return "digit"
    return "punctuation" if text.strip() else "space"
