"""Which experts a recording uses, over all of its text.

Choices of all sequences are added up before any figure is taken, for each layer and channel by
itself (isoflop.train.usage says why; the reference's figures are means over single sequences).

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

from isoflop.interpret.figures import save_figure, usage_figure
from isoflop.interpret.gates import GateShape, shape_of
from isoflop.interpret.load import Subject
from isoflop.interpret.recording import read_gates, read_tokens, recording_of
from isoflop.interpret.usage_log import training_usage
from isoflop.tables import Schema, write_table
from isoflop.train.usage import usage_figures

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
    """What was found and where it was written."""

    rows: Sequence[dict[str, Any]]
    files: Sequence[Path]


def count_choices(recording: Path, shape: GateShape) -> NDArray[np.int64]:
    """How often each expert was chosen in a recording [L, C, E], read one row group at a time."""
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


def write_usage(subject: Subject, recording: Path, out: Path) -> Usage:
    """Return counts a recording; writes expert_usage.parquet and a figure to ``out``.

    Raises:
        UserError: there is no whole recording of this run.
    """
    meta = recording_of(subject, recording)
    counts_LCE = count_choices(recording, shape_of(subject))
    rows = usage_rows(counts_LCE, meta.layers, num_tokens=meta.num_tokens, shared=meta.shared)
    training = None if subject.folder is None else training_usage(subject.folder)
    write_table(out / TABLE_FILE, rows, USAGE)
    figure = save_figure(usage_figure(counts_LCE, meta.layers, training), out, "usage")
    return Usage(rows=rows, files=(out / TABLE_FILE, *figure))
