"""What a run logged of the use of its experts while it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.launch.metrics import USAGE, USAGE_FILE
from isoflop.tables import read_table


def training_usage(run_folder: Path) -> list[dict[str, Any]] | None:
    """What a run logged of its usage, by step, layer and channel; None where it logged none."""
    path = run_folder / USAGE_FILE
    return read_table(path, USAGE) if path.exists() else None


def over_training(
    rows: Sequence[dict[str, Any]], figure: str
) -> dict[int, list[tuple[int, float]]]:
    """By layer: (step, figure) of the training batches, all channels of the layer together."""
    # A layer of one channel has no row for all of them.
    whole = {row["layer"] for row in rows if row["channel"] is None}
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        is_whole = row["channel"] is None or row["layer"] not in whole
        if row["split"] == "train" and is_whole and row[figure] is not None:
            found.setdefault(row["layer"], []).append((row["step"], row[figure]))
    return {layer: sorted(points) for layer, points in sorted(found.items())}
