"""The tiny corpus of planted facts: the same bytes, facts that no letter tells, one answer each."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from itertools import islice

import pytest

from isoflop.data.synthetic import TINY_FACTS, synthetic_source
from isoflop.errors import UserError


def texts(seed: str, number: int) -> list[bytes]:
    source = synthetic_source(f"synthetic:tiny:{seed}", endless=True)
    return [document.text for document in islice(source.parts[0].read(), number)]


def test_the_texts_of_a_seed_are_pinned() -> None:
    digest = hashlib.sha256(b"\n".join(texts("0", 50))).hexdigest()
    assert digest == "264a18c42ba1b0599038358df4b611593c2e2775cc370d16bd8df69c252fb959"
    assert not set(texts("0", 50)) & set(texts("1", 50))


def test_every_fact_is_planted_and_where_it_is_said_to_be() -> None:
    documents = texts("3", 60)
    facts = synthetic_source("synthetic:tiny:3", endless=False).facts(60)
    assert {(fact["noun"], fact["adjective"]) for fact in facts} == set(TINY_FACTS)
    for fact in facts:
        text = documents[int(fact["document"])][fact["position"] :].decode()
        assert text.startswith(f"The {fact['noun']} was {fact['adjective']}.")
    assert len(facts) == sum(text.count(b" was ") for text in documents)


def test_no_letter_of_a_noun_tells_its_adjective() -> None:
    assert {len(noun) for noun, _ in TINY_FACTS} == {4}
    assert len({noun for noun, _ in TINY_FACTS}) == 16
    for place in range(4):
        answers = defaultdict(set)
        for noun, adjective in TINY_FACTS:
            answers[noun[place]].add(adjective)
        assert min(len(found) for found in answers.values()) > 1


@pytest.mark.parametrize("name", ["synthetic:tiny:", "synthetic:tiny:x", "synthetic:tiny"])
def test_a_seed_that_is_none_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="synthetic:tiny:SEED") as caught:
        synthetic_source(name, endless=False)
    assert "\n" not in str(caught.value)
