"""Which facts are mined, and that none conflicts with another."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import pytest

from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.data.tokenizers import open_tokenizer
from isoflop.data.windows import open_data
from isoflop.errors import UserError
from isoflop.interpret.facts import mined, paper_pairs, planted, texts_of
from isoflop.interpret.load import LoadedRun


def texts(counts: dict[tuple[str, str], int]) -> list[str]:
    return [f"The {n} was {a}." for (n, a), count in counts.items() for _ in range(count)]


def best(counts: dict[tuple[str, str], int]) -> tuple[int, int]:
    """Most facts without a conflict, and then most sentences: by trying every selection."""
    selections = (chosen for size in range(7) for chosen in combinations(counts, size))
    return max(
        (len(chosen), sum(counts[pair] for pair in chosen))
        for chosen in selections
        if len({n for n, _ in chosen}) == len({a for _, a in chosen}) == len(chosen)
    )


def test_no_noun_and_no_adjective_is_in_two_facts() -> None:
    # By hand: with "door open", the largest, there is no third fact.
    counts = {
        ("door", "open"): 9,
        ("door", "shut"): 4,
        ("door", "red"): 2,
        ("lake", "open"): 5,
        ("wind", "shut"): 3,
        ("wind", "open"): 8,
    }
    facts = mined(texts(counts), min_count=2)
    assert {(f.noun, f.adjective, f.count) for f in facts} == {
        ("door", "red", 2),
        ("lake", "open", 5),
        ("wind", "shut", 3),
    }


@pytest.mark.parametrize("shift", range(6))
def test_the_selection_is_the_best_of_all(shift: int) -> None:
    nouns, adjectives = ("door", "lake", "wind"), ("open", "deep", "icy")
    pairs = [(n, a) for n in nouns for a in adjectives]
    counts = {pair: (7 * i * i + 5 * shift * i + shift) % 11 for i, pair in enumerate(pairs)}
    kept = {pair: count for pair, count in counts.items() if count >= 2}
    facts = mined(texts(counts), min_count=2)
    assert (len(facts), sum(f.count or 0 for f in facts)) == best(kept)


def test_a_count_below_the_least_is_no_fact() -> None:
    counts = {("door", "open"): 3, ("lake", "deep"): 3, ("wind", "icy"): 2}
    assert [f.noun for f in mined(texts(counts), min_count=3)] == ["door", "lake"]


def test_words_are_whole_and_lower_case() -> None:
    text = (
        "The door was open. Lathe door was icy. The Door was shut. The sea was cold, The x1 was y."
    )
    facts = mined([text, text], min_count=2)
    assert {(f.noun, f.adjective) for f in facts} == {("door", "open"), ("sea", "cold")}


def test_a_template_of_ones_own() -> None:
    facts = mined(
        ["a cat (is) big, a dog (is) old"], template="{noun} (is) {adjective}", min_count=1
    )
    assert {(f.noun, f.adjective) for f in facts} == {("cat", "big"), ("dog", "old")}


@pytest.mark.parametrize(
    ("given", "template", "said"),
    [
        ([], "The {noun} was {adjective}", "lower the count"),
        (["The door was open."] * 20, "The {noun} was {adjective}", "lower the count"),
        (["x"], "The {noun} was", "with {adjective} once"),
    ],
)
def test_what_cannot_be_mined_is_one_line(given: list[str], template: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        mined(given, template=template)
    assert "\n" not in str(caught.value)


def test_the_papers_pairs_do_not_conflict() -> None:
    facts = paper_pairs()
    assert len(facts) == 8
    assert all(a.noun != b.noun and a.adjective != b.adjective for a, b in permutations(facts, 2))


def test_planted_facts_are_those_of_the_text(tmp_path: Path) -> None:
    folder = prepare("synthetic:3", "byte", tmp_path, options=PrepareOptions(tokens=60_000))
    data = open_data(folder)
    facts = planted(data)
    tokenizer = open_tokenizer(data.tokenizer_spec(), data.folder)
    stated: Counter[str] = Counter()
    for split in ("train", "heldout"):
        for text in texts_of(data, tokenizer, split):
            stated.update(f.noun for f in facts if f"The {f.noun} was {f.adjective}." in text)
    assert len({f.noun for f in facts}) == len(facts) > 50
    assert set(stated) == {f.noun for f in facts}


def test_other_text_has_no_planted_facts_but_they_can_be_mined(facts_run: LoadedRun) -> None:
    assert facts_run.data is not None
    with pytest.raises(UserError, match="one with planted facts"):
        planted(facts_run.data)
    facts = mined(texts_of(facts_run.data, facts_run.tokenizer))
    assert len(facts) >= 2
    assert len({f.adjective for f in facts}) == len(facts)
