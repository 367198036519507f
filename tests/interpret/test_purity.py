"""Purity of neighbourhoods: by hand, by chance, and against what the token alone explains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from interpret.made_models import untrained_run
from interpret.test_patterns import made_tokens
from isoflop.data.synthetic import TINY_ADJECTIVES, TINY_NOUNS
from isoflop.errors import UserError
from isoflop.interpret.geometry.analyse import Options, analyse
from isoflop.interpret.geometry.patterns import (
    Activations,
    Patterns,
    TokenRows,
    activations_of,
    input_embedding,
    one_hot,
    shuffled_rows,
)
from isoflop.interpret.geometry.purity import POOLS, Bootstrap, chance, neighbours_by_pool
from isoflop.interpret.geometry.purity_tests import (
    BEYOND,
    CHANCE,
    EXPLAINED,
    PURITY,
    VERDICTS,
    Settings,
    purity_rows,
    verdict_rows,
)
from isoflop.interpret.interval import Interval, interval_of
from isoflop.interpret.load import GateShape, LoadedRun, untrained
from isoflop.interpret.recorder import record
from isoflop.tables import read_table

NUM_DOCUMENTS, PER_DOCUMENT, NUM_TOKENS, NUM_LABELS = 30, 20, 8, 4


def made_text(seed: int = 0) -> TokenRows:
    """Tokens drawn evenly, in documents."""
    rng = np.random.default_rng(seed)
    num = NUM_DOCUMENTS * PER_DOCUMENT
    return made_tokens(
        num,
        document_P=np.repeat(np.arange(NUM_DOCUMENTS), PER_DOCUMENT).tolist(),
        input_P=rng.integers(NUM_TOKENS, size=num).tolist(),
    )


def clusters_of(label: np.ndarray, seed: int = 1) -> csr_array:
    """Vectors that are near where the label is the same."""
    noise = 0.1 * np.random.default_rng(seed).standard_normal((len(label), 12))
    return csr_array(np.eye(12)[label] + noise)


def test_purity_by_hand() -> None:
    found = np.array([[1, 2], [0, -1], [-1, -1]])
    boot = Bootstrap(np.arange(3), num_draws=20, seed=0)
    purity = boot.purity(found, np.array([7, 7, 8]))
    # Row 0 has one of two, row 1 its only one, row 2 has none.
    assert purity.value == pytest.approx(0.75)
    assert purity.num_tokens == 2


def test_draws_weigh_a_pair_by_both_its_documents() -> None:
    document = np.array([0, 0, 1, 2])
    found = np.array([[2, 3], [2, -1], [0, 3], [1, 2]])
    label = np.array([5, 6, 5, 6])
    boot = Bootstrap(document, num_draws=6, seed=3)
    draws = boot.purity(found, label).draws_B
    for picked, drawn in zip(np.random.default_rng(3).integers(3, size=(6, 3)), draws, strict=True):
        times = np.bincount(picked, minlength=3)
        same = total = 0.0
        for row, near in enumerate(found):
            others = near[near >= 0]
            for other in others:
                weight = times[document[row]] * times[document[other]] / len(others)
                same += weight * (label[row] == label[other])
                total += weight
        np.testing.assert_allclose(drawn, same / total if total else np.nan)


def test_chance_by_hand() -> None:
    tokens = made_tokens(5, document_P=[0, 0, 1, 1, 2], input_P=[0, 1, 0, 0, 1])
    label = np.array([0, 0, 0, 1, 1])
    # Of row 0 the candidates are 2, 3, 4; of these 2 and 3 have its token.
    np.testing.assert_allclose(chance(tokens, label, "any"), [1 / 3, 1 / 3, 2 / 3, 1 / 3, 1 / 4])
    np.testing.assert_allclose(chance(tokens, label, "different_token"), [0, 0.5, 0.5, 0.5, 1 / 3])
    np.testing.assert_allclose(chance(tokens, label, "same_token"), [0.5, 0, 1, 0, 0])


def test_chance_is_unknown_where_there_is_no_candidate() -> None:
    tokens = made_tokens(2, document_P=[0, 1], input_P=[0, 1])
    assert np.isnan(chance(tokens, np.zeros(2, dtype=np.int64), "same_token")).all()


@pytest.mark.parametrize("pool", POOLS)
def test_neighbours_are_of_other_documents_and_of_the_pool(pool: str) -> None:
    """Documents, and tokens, that are clusters by themselves help nothing unless asked for."""
    tokens = made_text()
    gates = csr_array(np.eye(NUM_DOCUMENTS)[tokens.document_P])
    boot = Bootstrap(tokens.document_P, num_draws=2, seed=0)
    near = neighbours_by_pool(gates, tokens, num_neighbours=5, seed=0)[pool]
    assert boot.purity(near, tokens.document_P).value == 0.0
    near = neighbours_by_pool(one_hot(tokens.input_P), tokens, num_neighbours=5, seed=0)[pool]
    expected = {"any": 1.0, "different_token": 0.0, "same_token": 1.0}
    assert boot.purity(near, tokens.input_P).value == pytest.approx(expected[pool])


@pytest.mark.parametrize("pool", POOLS)
def test_shuffled_labels_give_chance_purity(pool: str) -> None:
    """Clusters of a label are pure of it, and as impure as chance of its permutation."""
    tokens = made_text()
    rng = np.random.default_rng(2)
    label = rng.integers(NUM_LABELS, size=len(tokens))
    mixed = rng.permutation(label)
    near = neighbours_by_pool(clusters_of(label), tokens, num_neighbours=10, seed=0)[pool]
    boot = Bootstrap(tokens.document_P, num_draws=300, seed=0)
    pure = boot.purity(near, label).value
    assert pure is not None
    assert pure > 0.95
    apart = boot.purity(near, mixed).minus(boot.mean(chance(tokens, mixed, pool)))
    assert apart.value == pytest.approx(0.0, abs=0.03)
    assert apart.lo is not None
    assert apart.hi is not None
    assert apart.lo < 0 < apart.hi


@pytest.mark.parametrize("pool", POOLS)
def test_chance_is_seldom_taken_for_a_finding(pool: str) -> None:
    """Of 40 labels that have nothing to do with the clusters, few seem to."""
    tokens = made_text()
    rng = np.random.default_rng(8)
    near = neighbours_by_pool(
        clusters_of(rng.integers(NUM_LABELS, size=len(tokens))), tokens, num_neighbours=10, seed=0
    )[pool]
    boot = Bootstrap(tokens.document_P, num_draws=200, seed=0)
    found = 0
    for _ in range(40):
        label = rng.integers(NUM_LABELS, size=len(tokens))
        apart = boot.purity(near, label).minus(boot.mean(chance(tokens, label, pool)))
        assert apart.lo is not None
        found += apart.lo > 0
    # Nominally one; more than four of 40 have a probability of 0.3 %.
    assert found <= 4


def test_intervals_draw_documents_not_tokens() -> None:
    """Tokens of a document that are all alike are one observation."""
    rng = np.random.default_rng(0)
    per_document = rng.random(100)
    document = np.repeat(np.arange(100), 50)
    found = Bootstrap(document, num_draws=2000, seed=0).mean(per_document[document]).interval
    assert found.value == pytest.approx(per_document.mean())
    assert found.lo is not None
    assert found.hi is not None
    half = (found.hi - found.lo) / 2
    assert half == pytest.approx(1.96 * per_document.std() / 10, rel=0.1)


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(40), 5)
    hits = 0
    for seed in range(200):
        level = np.clip(0.5 + 0.2 * rng.standard_normal(40), 0, 1)
        share = (rng.random(200) < level[document]).astype(float)
        found = Bootstrap(document, num_draws=200, seed=seed).mean(share).interval
        assert found.lo is not None
        assert found.hi is not None
        hits += found.lo <= 0.5 <= found.hi
    # 95 % of 200, and three standard deviations below.
    assert 180 <= hits < 200


def test_differences_are_paired() -> None:
    boot = Bootstrap(np.arange(50), num_draws=200, seed=0)
    share = np.random.default_rng(0).random(50)
    apart = boot.mean(share + 0.25).minus(boot.mean(share))
    assert (apart.lo, apart.hi) == (pytest.approx(0.25), pytest.approx(0.25))
    share[0] = np.nan
    assert boot.mean(share).value == pytest.approx(share[1:].mean())
    assert boot.mean(share).num_tokens == 49
    nothing = boot.mean(np.full(50, np.nan))
    assert nothing.value is None
    assert nothing.minus(boot.mean(share)).lo is None


def seen_as(gates: csr_array, tokens: TokenRows) -> Activations:
    shape = GateShape(num_layers=1, num_channels=1, num_experts=gates.shape[1])
    patterns = Patterns(tokens=tokens, layers=(gates,), shape=shape)
    return Activations(patterns=patterns, residual=(gates.toarray().astype(np.float32),))


def judged(gates: csr_array, tokens: TokenRows, label: np.ndarray, embedding: np.ndarray) -> str:
    rng = np.random.default_rng(9)
    blank = csr_array(rng.standard_normal(gates.shape))
    settings = Settings(num_neighbours=10, num_draws=200)
    rows = purity_rows(
        seen_as(gates, tokens), seen_as(blank, tokens), {"label": label}, embedding, settings
    )
    verdicts = {row["layer"]: row["verdict"] for row in verdict_rows(rows)}
    assert verdicts[0] == verdicts[None]
    return verdicts[0]


RANDOM_EMBEDDING = np.random.default_rng(4).standard_normal((NUM_TOKENS, 12))


def test_gates_that_only_tell_the_token_are_explained_by_it() -> None:
    tokens = made_text()
    of_token = np.arange(NUM_TOKENS) % NUM_LABELS
    gates = clusters_of(tokens.input_P)
    assert judged(gates, tokens, of_token[tokens.input_P], RANDOM_EMBEDDING) == EXPLAINED


def test_gates_that_group_tokens_as_their_embeddings_do_are_explained_by_them() -> None:
    tokens = made_text()
    of_token = np.arange(NUM_TOKENS) % NUM_LABELS
    label = of_token[tokens.input_P]
    embedding = np.eye(12)[of_token] + 0.1 * RANDOM_EMBEDDING
    assert judged(clusters_of(label), tokens, label, embedding) == EXPLAINED
    assert judged(clusters_of(label), tokens, label, RANDOM_EMBEDDING) == BEYOND


def test_gates_that_tell_contexts_apart_go_beyond_the_token() -> None:
    tokens = made_text()
    label = np.random.default_rng(3).integers(NUM_LABELS, size=len(tokens))
    assert judged(clusters_of(label), tokens, label, RANDOM_EMBEDDING) == BEYOND


def test_gates_that_tell_nothing_are_no_more_than_chance() -> None:
    tokens = made_text()
    rng = np.random.default_rng(5)
    label = rng.integers(NUM_LABELS, size=len(tokens))
    gates = shuffled_rows(clusters_of(label), 0)
    assert judged(gates, tokens, label, RANDOM_EMBEDDING) == CHANCE


def test_what_an_untrained_model_shows_too_was_not_learned() -> None:
    tokens = made_text()
    label = np.random.default_rng(3).integers(NUM_LABELS, size=len(tokens))
    seen = seen_as(clusters_of(label), tokens)
    rows = purity_rows(seen, seen, {"label": label}, RANDOM_EMBEDDING, Settings(num_draws=100))
    assert {row["verdict"] for row in verdict_rows(rows)} == {EXPLAINED}
    assert "not above untrained" in verdict_rows(rows)[0]["detail"]


PLANTED = {"the": "frame", "was": "frame"}
PLANTED |= dict.fromkeys(TINY_NOUNS, "noun") | dict.fromkeys(TINY_ADJECTIVES, "adjective")
SMALL = Options(
    max_tokens=1500,
    num_queries=2,
    num_listed=3,
    num_shuffles=5,
    settings=Settings(num_draws=300),
)


def test_a_trained_model_has_clusters_beyond_its_tokens(
    tmp_path: Path, facts_run: LoadedRun
) -> None:
    record(facts_run, tmp_path, max_tokens=4000)
    found = analyse(facts_run, tmp_path, tmp_path, SMALL, planted=PLANTED)
    verdicts = {(row["layer"], row["label"]): row["verdict"] for row in found.verdicts}
    assert set(verdicts) == {
        (layer, label) for layer in (0, 1, None) for label in ("word_class", "next_token")
    }
    assert set(verdicts.values()) == {BEYOND}
    assert all(path.stat().st_size > 0 for path in found.files)
    rows = read_table(tmp_path / "purity.parquet", PURITY)
    assert {row["space"] for row in rows if row["layer"] == 0} == {
        *("gates", "shuffled", "untrained", "residual", "token", "embedding", "chance")
    }
    assert read_table(tmp_path / "verdicts.parquet", VERDICTS) == list(found.verdicts)


def test_untrained_models_have_no_clusters_beyond_their_tokens(facts_run: LoadedRun) -> None:
    """Of another seed than the control, which is no copy of it."""
    assert facts_run.heldout is not None
    window = np.repeat(np.arange(20), 63)
    position = np.tile(np.arange(1, 64), 20)
    text = facts_run.heldout.tokens[:20]
    tokens = TokenRows(
        document_P=facts_run.heldout.document_index[window],
        window_P=window,
        position_P=position,
        input_P=text[window, position - 1].astype(np.int64),
        target_P=text[window, position].astype(np.int64),
    )
    tokens = tokens.take(tokens.target_P != 0)
    other = replace(facts_run, spec=replace(facts_run.spec, seed=3))
    rows = purity_rows(
        activations_of(untrained(other), tokens),
        activations_of(untrained(facts_run), tokens),
        {"next_token": tokens.target_P},
        input_embedding(facts_run),
        SMALL.settings,
    )
    assert BEYOND not in {row["verdict"] for row in verdict_rows(rows)}
    # They do tell tokens apart: what the naive figure would report.
    naive = [r for r in rows if (r["pool"], r["space"]) == ("any", "chance")]
    assert all(row["gates_above_lo"] > 0 for row in naive)


def test_too_little_text_is_refused_in_a_line(tmp_path: Path) -> None:
    loaded = untrained_run()
    record(loaded, tmp_path)
    with pytest.raises(UserError, match=r"documents of the sample = \d: must be at least 5"):
        analyse(loaded, tmp_path, tmp_path, SMALL)


def test_a_recording_of_some_layers_is_refused_in_a_line(tmp_path: Path) -> None:
    loaded = untrained_run()
    record(loaded, tmp_path, layers=[1])
    with pytest.raises(UserError, match=r"must be of all layers; record again"):
        analyse(loaded, tmp_path, tmp_path, SMALL)


def test_an_interval_needs_half_of_the_draws() -> None:
    draws = np.array([1.0, 2.0, 3.0, np.nan])
    assert interval_of(2.0, draws, 0.5) == Interval(value=2.0, lo=1.5, hi=2.5)
    draws[:2] = np.nan
    assert interval_of(2.0, draws) == Interval(value=2.0)
    assert interval_of(None, np.ones(4)) == Interval(value=None)
