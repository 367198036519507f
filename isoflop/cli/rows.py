"""What verbs read: the runs of a study's folder, or any table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from isoflop.analysis.load import REQUIRED
from isoflop.analysis.points import AXES, Axis
from isoflop.api.rows import Rows
from isoflop.api.rows import read_rows as rows_at
from isoflop.cli.tables import print_damaged


def read_rows(
    source: Path,
    required: Sequence[str] = REQUIRED,
    *,
    with_code: bool = False,
    loss_unit: str | None = None,
    axis: Axis = AXES[0],
) -> Rows:
    """Return what `isoflop.api.rows.read_rows` does; name the runs whose records are damaged."""
    read = rows_at(source, required, with_code=with_code, loss_unit=loss_unit, axis=axis)
    print_damaged(read.damaged)
    return read
