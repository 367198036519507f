"""Linear CKA: its definition by hand, its invariances, and what it is by chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from interpret.test_patterns import made_tokens
from isoflop.interpret.geometry.cka import (
    cka_rows,
    cka_with_chance,
    first_occurrences,
)
from isoflop.interpret.geometry.patterns import Matrix, Patterns
from isoflop.interpret.load import GateShape

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 6)) + 3.0
SPARSE = csr_array(np.where(RNG.random((40, 30)) < 0.2, RNG.standard_normal((40, 30)), 0.0))


def linear_cka(x: Matrix, y: Matrix) -> float | None:
    return cka_with_chance(x, y, num_shuffles=0, seed=0).value


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """With Gram matrices and a centring matrix, another way to the same number."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = (centre @ a @ a.T @ centre for a in (x, y))
    return float(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def test_by_hand() -> None:
    # Centred: x = (-1, 0, 1), y = (-1, 2, -1), z = (-1, -1, 2).
    x, y, z = (np.array(v, dtype=float)[:, None] for v in ([0, 1, 2], [1, 4, 1], [0, 0, 3]))
    assert linear_cka(x, y) == pytest.approx(0.0, abs=1e-15)
    # The squared correlation: 3^2 / (2 * 6).
    assert linear_cka(x, z) == pytest.approx(0.75)


def test_sparse_and_dense_agree_with_the_definition() -> None:
    expected = by_definition(X, SPARSE.toarray())
    assert 0.05 < expected < 0.95
    for y in (SPARSE, SPARSE.toarray()):
        assert linear_cka(X, y) == pytest.approx(expected, rel=1e-12)
        assert linear_cka(y, X) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("matrix", [X, SPARSE])
def test_a_matrix_with_itself_is_one(matrix: object) -> None:
    assert linear_cka(matrix, matrix) == pytest.approx(1.0, abs=1e-12)  # type: ignore[arg-type]


def test_rotation_scale_and_shift_change_nothing_but_a_linear_map_does() -> None:
    rotation, _ = np.linalg.qr(RNG.standard_normal((6, 6)))
    moved = 7.0 * X @ rotation + 5.0
    assert linear_cka(X, moved) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(moved, SPARSE) == pytest.approx(linear_cka(X, SPARSE), rel=1e-10)
    stretched = X * np.array([100.0, 1, 1, 1, 1, 1])
    assert linear_cka(X, stretched) < 0.9  # type: ignore[operator]


def test_the_order_of_columns_and_an_empty_one_change_nothing() -> None:
    other = csr_array(np.c_[SPARSE.toarray()[:, ::-1], np.zeros(40)])
    assert linear_cka(X, other) == pytest.approx(linear_cka(X, SPARSE), rel=1e-12)


@pytest.mark.parametrize("kind", [np.array, csr_array])
def test_what_does_not_vary_has_none(kind: type) -> None:
    constant = kind(np.full((40, 3), 0.1))
    assert linear_cka(X, constant) is None
    assert cka_with_chance(X, constant, num_shuffles=2, seed=0).shuffled_mean is None


def test_chance_is_far_from_zero_where_columns_are_many() -> None:
    """Why it is reported: unrelated wide matrices of few rows look alike to CKA."""
    x, y = RNG.standard_normal((20, 200)), RNG.standard_normal((20, 200))
    found = cka_with_chance(x, y, num_shuffles=50, seed=0)
    assert found.shuffled_mean is not None
    assert found.shuffled_hi is not None
    assert found.shuffled_mean > 0.8
    assert found.value == pytest.approx(found.shuffled_mean, abs=0.03)
    related = cka_with_chance(x, x + 0.1 * y, num_shuffles=50, seed=0)
    assert related.value is not None
    assert related.shuffled_hi is not None
    assert related.value > related.shuffled_hi + 0.05


def test_rows_are_the_first_occurrences() -> None:
    token = np.array([5, 3, 5, 9, 3, 9])
    assert first_occurrences(token).tolist() == [0, 1, 3]
    shape = GateShape(num_layers=1, num_channels=2, num_experts=2)
    gates = csr_array(
        np.array([[1.0, 0, 2, 0], [0, 1, 2, 0], [8, 8, 8, 8], [1, 0, 0, 3]] + [[9] * 4] * 2)
    )
    patterns = Patterns(tokens=made_tokens(6, input_P=token.tolist()), layers=(gates,), shape=shape)
    embedding = np.random.default_rng(1).standard_normal((10, 4)).astype(np.float32)
    rows = cka_rows(patterns, embedding, model="trained", num_shuffles=3, seed=0)
    assert [row["channel"] for row in rows] == [None, 0, 1]
    used = gates.toarray()[[0, 1, 3]]
    for row, columns in zip(rows, (slice(0, 4), slice(0, 2), slice(2, 4)), strict=True):
        assert row["num_tokens"] == 3
        expected = by_definition(embedding[[5, 3, 9]].astype(np.float64), used[:, columns])
        assert row["cka"] == pytest.approx(expected, rel=1e-9)
