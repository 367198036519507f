"""Nearest neighbours by cosine, and the words around them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from interpret.test_patterns import made_tokens
from isoflop.interpret.geometry.neighbours import (
    cosine_blocks,
    excerpt,
    nearest,
    neighbour_rows,
    unit_rows,
)
from isoflop.interpret.geometry.word_class import planted_classes, word_classes

VECTORS = np.array([[1.0, 0, 0], [2, 2, 0], [0, 0, 0], [-1, 0, 0], [9, 1, 0]])


def everyone(block: slice) -> np.ndarray:
    return np.ones((block.stop - block.start, len(VECTORS)), dtype=bool)


@pytest.mark.parametrize("kind", [np.array, csr_array])
def test_cosines_by_hand(kind: type) -> None:
    ((block, cosine),) = cosine_blocks(kind(VECTORS))
    assert block == slice(0, 5)
    half = 0.5**0.5
    nine = 9 / 82**0.5
    np.testing.assert_allclose(cosine[0], [1, half, 0, -1, nine])
    np.testing.assert_allclose(cosine[2], 0)
    length = np.asarray((unit_rows(kind(VECTORS)) ** 2).sum(axis=1)).ravel()
    np.testing.assert_allclose(length, [1, 1, 0, 1, 1])


def test_blocks_make_no_difference() -> None:
    matrix = np.random.default_rng(0).standard_normal((700, 5))
    whole = np.concatenate([cosine for _, cosine in cosine_blocks(matrix)])
    np.testing.assert_allclose(whole, np.corrcoef(np.c_[matrix, -matrix])[:700, :700], atol=1e-12)


def test_only_allowed_rows_are_neighbours_and_missing_ones_are_marked() -> None:
    def others(block: slice) -> np.ndarray:
        allowed = everyone(block)
        allowed[:, 0] = False
        allowed[4] = False
        return allowed

    found = nearest(VECTORS, {"all": everyone, "some": others}, num_neighbours=2, seed=0)
    assert sorted(found["all"][0]) == [0, 4]
    assert sorted(found["some"][0]) == [1, 4]
    assert found["some"][4].tolist() == [-1, -1]
    assert nearest(VECTORS, {"all": everyone}, num_neighbours=9, seed=0)["all"].shape == (5, 5)


def test_equal_cosines_favour_no_place() -> None:
    """Rows that are all alike have neighbours all over, not at the beginning of the text."""
    alike = np.ones((600, 2))

    def allowed(block: slice) -> np.ndarray:
        return np.ones((block.stop - block.start, 600), dtype=bool)

    found = nearest(alike, {"all": allowed}, num_neighbours=10, seed=0)["all"]
    count = np.bincount(found.ravel(), minlength=600)
    # Binomial with mean 10: a deviation of 6 standard deviations is 19.
    assert count.max() < 30
    assert found.mean() == pytest.approx(299.5, abs=12)


def test_rows_have_the_query_first_then_the_nearest_with_excerpts() -> None:
    letters = "abcdefgh"
    tokens = made_tokens(
        8, window_P=[0] * 5 + [1] * 3, input_P=[*range(8)], target_P=[1, 2, 3, 4, 9, 6, 7, 9]
    )
    matrix = np.array([[1.0, 0], [0, 1], [1, 0.1], [1, 1], [1, 0], [0, 1], [-1, 0], [1, 0.5]])
    rows = neighbour_rows(
        csr_array(matrix),
        tokens,
        [0],
        lambda ids: "".join("abcdefgh.."[i] for i in ids),
        [3] * 8,
        layer=1,
        num_neighbours=3,
    )
    assert [(row["rank"], row["token"]) for row in rows] == [(0, "a"), (1, "e"), (2, "c"), (3, "h")]
    assert rows[2]["cosine"] == pytest.approx(1 / 1.01**0.5)
    assert (rows[2]["before"], rows[2]["after"]) == ("ab", "de.")
    assert {row["predicted"] for row in rows} == {letters[3]}
    assert {(row["layer"], row["query"]) for row in rows} == {(1, 0)}


def test_an_excerpt_stays_in_its_window_and_has_five_tokens_a_side() -> None:
    tokens = made_tokens(
        20, window_P=[0] * 3 + [1] * 17, input_P=[*range(20)], target_P=[*range(1, 21)]
    )
    before, after = excerpt(tokens, 4)
    assert before.tolist() == [3]
    assert after.tolist() == [5, 6, 7, 8, 9]
    assert excerpt(tokens, 12)[0].tolist() == [7, 8, 9, 10, 11]


def test_word_classes_of_english() -> None:
    pieces = ["Th", "e", " ca", "t", " saw", " Lil", "y", ".", " Sh", "e", " was", " 7", "\n", "?"]
    tokens = made_tokens(14, window_P=[0] * 14, input_P=[*range(14)])
    assert word_classes(tokens, pieces.__getitem__, None) == [
        *["determiner"] * 2,
        *["open"] * 3,
        *["name"] * 2,
        "punctuation",
        *["pronoun"] * 2,
        "be",
        "digit",
        "space",
        "punctuation",
    ]


def test_words_end_with_their_window() -> None:
    tokens = made_tokens(2, window_P=[0, 1], input_P=[0, 1])
    assert word_classes(tokens, ["th", "e"].__getitem__, None) == ["open", "open"]


def test_planted_classes() -> None:
    planted = planted_classes([{"noun": "baku", "adjective": "awum"}])
    pieces = ["The", " ba", "ku", " was", " awum", ".", " bakus"]
    tokens = made_tokens(7, window_P=[0] * 7, input_P=[*range(7)])
    assert word_classes(tokens, pieces.__getitem__, planted) == [
        "frame",
        "noun",
        "noun",
        "frame",
        "adjective",
        "punctuation",
        "background",
    ]
