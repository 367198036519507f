"""Two-dimensional embeddings of patterns."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from isoflop.errors import UserError
from isoflop.interpret.geometry import embedding
from isoflop.interpret.geometry.embedding import choose_method, embed, principal

RNG = np.random.default_rng(0)
MATRIX = np.where(RNG.random((50, 20)) < 0.3, RNG.standard_normal((50, 20)), 0.0) + np.arange(20)


def by_svd(matrix: np.ndarray) -> np.ndarray:
    u, size, _ = np.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
    return u[:, :2] * size[:2]


@pytest.mark.parametrize("kind", [np.array, csr_array])
def test_principal_components_are_those_of_the_centred_matrix(kind: type) -> None:
    found = principal(kind(MATRIX), 0)
    np.testing.assert_allclose(np.abs(found), np.abs(by_svd(MATRIX)), rtol=1e-7, atol=1e-9)
    assert np.array_equal(found, principal(kind(MATRIX), 0))
    np.testing.assert_allclose(found, principal(kind(MATRIX), 1), rtol=1e-7, atol=1e-9)


def test_clusters_come_apart() -> None:
    label = RNG.integers(2, size=60)
    points = embed(csr_array(np.eye(4)[label] + 0.01 * RNG.random((60, 4))), "pca", seed=0)
    assert points.shape == (60, 2)
    first = points[:, 0]
    assert (first[label == 0].max() < first[label == 1].min()) or (
        first[label == 1].max() < first[label == 0].min()
    )


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (2, 4), (5, 1), (5, 2)])
def test_small_matrices(rows: int, columns: int) -> None:
    points = embed(csr_array(RNG.random((rows, columns))), "pca", seed=0)
    assert points.shape == (rows, 2)
    assert np.isfinite(points).all()


def pretend_umap(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(
        embedding, "find_spec", lambda name: object() if there and name == "umap" else None
    )


def test_umap_is_chosen_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_umap(monkeypatch, True)
    assert choose_method("auto") == "umap"
    assert choose_method("pca") == "pca"
    pretend_umap(monkeypatch, False)
    assert choose_method("auto") == "pca"
    with pytest.raises(UserError, match="pip install umap-learn"):
        choose_method("umap")
    with pytest.raises(UserError, match="auto, umap or pca"):
        choose_method("tsne")


def test_umap_is_asked_for_what_the_paper_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Umap:
        def __init__(self, **settings: Any) -> None:
            asked.update(settings)

        def fit_transform(self, matrix: Any) -> np.ndarray:
            return np.zeros((matrix.shape[0], 2), dtype=np.float32)

    module = ModuleType("umap")
    module.UMAP = Umap  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    assert embed(csr_array(MATRIX), "umap", seed=7).shape == (50, 2)
    assert asked["metric"] == "cosine"
    assert asked["n_neighbors"] == 15
    assert asked["random_state"] == 7
