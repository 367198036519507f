"""All of the geometry of a recorded run: tables and figures in one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import UserError
from isoflop.interpret.geometry.cka import CKA, cka_rows
from isoflop.interpret.geometry.coactivation import COACTIVATION, coactivation_rows
from isoflop.interpret.geometry.embedding import POINTS, choose_method, point_rows
from isoflop.interpret.geometry.neighbours import NEIGHBOURS, neighbour_rows
from isoflop.interpret.geometry.patterns import (
    Activations,
    Ints,
    Patterns,
    TokenRows,
    activations_of,
    input_embedding,
    read_patterns,
    sample_tokens,
)
from isoflop.interpret.geometry.purity import as_labels
from isoflop.interpret.geometry.purity_tests import (
    PURITY,
    VERDICTS,
    Settings,
    purity_rows,
    verdict_rows,
)
from isoflop.interpret.geometry.word_class import classes_of
from isoflop.interpret.load import LoadedRun, shape_of, untrained
from isoflop.interpret.recording import read_predictions, read_tokens, recording_of
from isoflop.tables import Schema, write_table

MIN_DOCUMENTS = 5
"""Fewer make no interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How much is looked at."""

    max_tokens: int = 3000
    """Tokens of the sample: all their pairs are compared."""
    num_queries: int = 20
    """Tokens whose neighbours are listed."""
    num_listed: int = 20
    """Neighbours and pairs of experts in a list."""
    min_count: int = 10
    """Tokens in which a listed pair of experts met, at least."""
    num_shuffles: int = 20
    method: str = "auto"
    """Method of the two-dimensional embedding: auto, umap or pca."""
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """The geometry of a recording, and the files that hold it."""

    verdicts: Sequence[dict[str, Any]]
    purities: Sequence[dict[str, Any]]
    cka: Sequence[dict[str, Any]]
    method: str
    """Method of the two-dimensional embedding."""
    num_tokens: int
    num_documents: int
    files: Sequence[Path]


def analyse(
    loaded: LoadedRun,
    recording: Path,
    out: Path,
    options: Options,
    *,
    planted: Mapping[str, str] | None = None,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Geometry:
    """Write the tables and figures of a recording's geometry to ``out``.

    Args:
        loaded: the recorded run.
        recording: folder of its recording.
        out: folder for what is written.
        options: how much to look at.
        planted: classes of words; None: those of the data's planted facts, English without any.
        on_progress: called with what begins.

    Raises:
        UserError: no whole recording of this run, or of too few documents or not of all layers.
    """
    method = choose_method(options.method)
    on_progress("reading the recording")
    tokens = _sample(loaded, recording, options)
    patterns = read_patterns(recording, tokens, shape_of(loaded))
    labels, classes = _labels(loaded, tokens, planted)
    on_progress("comparing with the untrained model")
    seen = Activations(patterns=patterns, residual=activations_of(loaded, tokens).residual)
    blank = activations_of(untrained(loaded), tokens)
    on_progress("measuring purities")
    purities = purity_rows(seen, blank, labels, input_embedding(loaded), options.settings)
    verdicts = verdict_rows(purities)
    cka = cka_of_both(
        loaded,
        patterns,
        blank.patterns,
        num_shuffles=options.num_shuffles,
        seed=options.settings.seed,
    )
    on_progress("listing neighbours and pairs of experts")
    tables: list[tuple[str, Schema, Sequence[dict[str, Any]]]] = [
        ("purity", PURITY, purities),
        ("verdicts", VERDICTS, verdicts),
        ("cka", CKA, cka),
        ("neighbours", NEIGHBOURS, _neighbours(loaded, recording, patterns, options)),
        (
            "coactivation",
            COACTIVATION,
            coactivation_rows(patterns, num_pairs=options.num_listed, min_count=options.min_count),
        ),
        ("points", POINTS, point_rows(patterns, classes, method, seed=options.settings.seed)),
    ]
    for name, schema, rows in tables:
        write_table(out / f"{name}.parquet", rows, schema)
    on_progress("drawing")
    figures = _draw(out, purities, cka, tables[-1][2], method)
    return Geometry(
        verdicts=verdicts,
        purities=purities,
        cka=cka,
        method=method,
        num_tokens=len(tokens),
        num_documents=len(np.unique(tokens.document_P)),
        files=[*(out / f"{name}.parquet" for name, _, _ in tables), *figures],
    )


def _sample(loaded: LoadedRun, recording: Path, options: Options) -> TokenRows:
    meta = recording_of(loaded, recording)
    if len(meta.layers) != len(loaded.model.blocks):
        raise UserError(
            "recording", str(recording), "of all layers", "record again without --layers"
        )
    tokens = sample_tokens(recording, max_tokens=options.max_tokens, seed=options.settings.seed)
    num_documents = len(np.unique(tokens.document_P))
    if num_documents < MIN_DOCUMENTS:
        raise UserError(
            "documents of the sample",
            num_documents,
            f"at least {MIN_DOCUMENTS}: neighbours are sought in other documents",
            "record more text, or raise --sample",
        )
    return tokens


def _labels(
    loaded: LoadedRun, tokens: TokenRows, planted: Mapping[str, str] | None
) -> tuple[dict[str, Ints], list[str]]:
    """Return what neighbours may share, and the word class of each token by name."""
    classes = classes_of(loaded, tokens, planted)
    labels = {
        "input_token": tokens.input_P,
        "word_class": as_labels(classes),
        "next_token": tokens.target_P,
    }
    return labels, classes


def _text(loaded: LoadedRun, tokens: Sequence[int]) -> str:
    return loaded.tokenizer.decode(np.array(tokens, dtype=np.int64))


def cka_of_both(
    loaded: LoadedRun, trained: Patterns, blank: Patterns, *, num_shuffles: int, seed: int
) -> list[dict[str, Any]]:
    """Return rows of the trained and of the untrained model, each with its own input embeddings."""
    rows = []
    for model, patterns, of in (
        ("trained", trained, loaded),
        ("untrained", blank, untrained(loaded)),
    ):
        rows += cka_rows(
            patterns,
            input_embedding(of),
            model=model,
            num_shuffles=num_shuffles,
            seed=seed,
        )
    return rows


def _neighbours(
    loaded: LoadedRun, recording: Path, patterns: Patterns, options: Options
) -> list[dict[str, Any]]:
    """Return the neighbours of some tokens drawn at random, in each layer and in all together."""
    rng = np.random.default_rng(options.settings.seed)
    num = min(options.num_queries, len(patterns.tokens))
    queries = np.sort(rng.choice(len(patterns.tokens), num, replace=False)).tolist()
    recorded = read_tokens(recording).rows(patterns.tokens.window_P, patterns.tokens.position_P)
    predicted = [best[0][0] for best in read_predictions(recording, recorded)]
    rows = []
    for layer in (*range(patterns.shape.num_layers), None):
        rows += neighbour_rows(
            patterns.of(layer),
            patterns.tokens,
            queries,
            lambda tokens: _text(loaded, tokens),
            predicted,
            layer=layer,
            num_neighbours=options.num_listed,
        )
    return rows


def _draw(
    out: Path,
    purities: Sequence[dict[str, Any]],
    cka: Sequence[dict[str, Any]],
    points: Sequence[dict[str, Any]],
    method: str,
) -> list[Path]:
    from isoflop.interpret.figures import cka_figure, points_figure, purity_figure, save_figure

    figures = {
        "purity": purity_figure(purities),
        "cka": cka_figure(cka),
        "points": points_figure(points, method),
    }
    return [path for name, figure in figures.items() for path in save_figure(figure, out, name)]
