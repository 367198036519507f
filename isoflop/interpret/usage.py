"""Which experts a recording uses over all of its text, and what the run logged while it trained.

Choices of all sequences are added up before any figure is taken, for each layer and channel by
itself (isoflop.train.routing says why; the reference's figures are means over single sequences).

Letters: L layers, C channels, E experts a channel chooses from, K chosen, R rows of a piece of
the recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.interpret.figures import OVER_TRAINING, save_figure, usage_figure
from isoflop.interpret.load import GateShape, LoadedRun, shape_of
from isoflop.interpret.recording import read_gates, read_tokens, recording_of
from isoflop.launch.metrics import USAGE as LOGGED_USAGE
from isoflop.launch.metrics import USAGE_FILE
from isoflop.tables import Schema, read_table, write_table
from isoflop.train.routing import usage_figures

USAGE = Schema(
    table="interpret_usage",
    columns=(
        ("layer", "int64"),
        ("channel", "int64"),
        ("num_experts", "int64"),
        ("num_tokens", "int64"),
        ("num_choices", "int64"),
        ("fraction_used", "float64"),
        ("num_dead", "int64"),
        ("entropy", "float64"),
        ("cv", "float64"),
    ),
)
TABLE_FILE = "expert_usage.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The use of experts in a recording, and the files that hold it."""

    rows: Sequence[dict[str, Any]]
    files: Sequence[Path]


def count_choices(recording: Path, shape: GateShape) -> NDArray[np.int64]:
    """Return how often each expert was chosen in a recording [L, C, E], a row group at a time."""
    counts = np.zeros((shape.num_layers, shape.num_channels, shape.num_experts), dtype=np.int64)
    flat = counts.reshape(-1)
    for piece in read_gates(recording, read_tokens(recording)):
        table_R = piece.layer_R.astype(np.int64) * shape.num_channels + piece.channel_R
        where_RK = table_R[:, None] * shape.num_experts + piece.expert_RK
        flat += np.bincount(where_RK.reshape(-1), minlength=flat.size)
    return counts


def usage_rows(
    counts_LCE: NDArray[np.int64], layers: Sequence[int], *, num_tokens: int, shared: bool
) -> list[dict[str, Any]]:
    """Return rows of each channel of each layer and, where there are several, of all of them.

    Args:
        counts_LCE: how often each expert was chosen.
        layers: those that were recorded.
        num_tokens: of the recording.
        shared: whether all channels choose from one table; else channel None has C * E experts.
    """
    rows = []
    for layer in layers:
        counts_CE = counts_LCE[layer]
        tables: list[tuple[int | None, NDArray[np.int64]]] = [*enumerate(counts_CE)]
        if len(counts_CE) > 1:
            tables.append((None, counts_CE.sum(0) if shared else counts_CE.ravel()))
        for channel, counts_E in tables:
            place = {"layer": layer, "channel": channel, "num_tokens": num_tokens}
            num_dead = int((counts_E == 0).sum())
            rows.append({**place, **usage_figures(counts_E), "num_dead": num_dead})
    return rows


def write_usage(loaded: LoadedRun, recording: Path, out: Path) -> Usage:
    """Count the choices of a recording; write expert_usage.parquet and a figure to ``out``.

    Raises:
        UserError: there is no whole recording of this run.
    """
    meta = recording_of(loaded, recording)
    counts_LCE = count_choices(recording, shape_of(loaded))
    rows = usage_rows(counts_LCE, meta.layers, num_tokens=meta.num_tokens, shared=meta.shared)
    logged = None if loaded.folder is None else training_usage(loaded.folder)
    training = None if logged is None else {n: over_training(logged, n) for n in OVER_TRAINING}
    write_table(out / TABLE_FILE, rows, USAGE)
    figure = save_figure(usage_figure(counts_LCE, meta.layers, training), out, "usage")
    return Usage(rows=rows, files=(out / TABLE_FILE, *figure))


def training_usage(run_folder: Path) -> list[dict[str, Any]] | None:
    """Return what a run logged of its usage, by step, layer and channel; None where it did not."""
    path = run_folder / USAGE_FILE
    return read_table(path, LOGGED_USAGE) if path.exists() else None


def over_training(
    rows: Sequence[dict[str, Any]], figure: str
) -> dict[int, list[tuple[int, float]]]:
    """Return, by layer, (step, figure) of the training batches, all channels of it together."""
    # A layer of one channel has no row for all of them.
    whole = {row["layer"] for row in rows if row["channel"] is None}
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        is_whole = row["channel"] is None or row["layer"] not in whole
        if row["split"] == "train" and is_whole and row[figure] is not None:
            found.setdefault(row["layer"], []).append((row["step"], row[figure]))
    return {layer: sorted(points) for layer, points in sorted(found.items())}
