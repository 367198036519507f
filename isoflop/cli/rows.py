"""What verbs read that only look: the runs of a study's folder, or any table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.analysis.load import REQUIRED, load_rows
from isoflop.cli.tables import print_damaged

if TYPE_CHECKING:
    from isoflop.plan.planner import Plan


def read_rows(
    source: Path, required: Sequence[str] = REQUIRED, *, with_code: bool = False
) -> tuple[Plan | None, list[dict[str, Any]]]:
    """Return the plan of a study's folder and its runs as they are now, and write nothing.

    Of a table: no plan, and its rows.

    Args:
        source: a study's folder, or what `load_rows` takes.
        required: columns that a table must have.
        with_code: whether the plan's families from outside the package are imported.

    Raises:
        UserError: the plan or the table is not in order.
    """
    if (source / "plan.json").is_file():
        from isoflop.launch.collect import collected_rows, damaged_reasons
        from isoflop.plan.artefact import read_plan

        plan = read_plan(source, with_code=with_code)
        rows = collected_rows(source, plan)
        print_damaged(damaged_reasons(rows))
        return plan, rows
    return None, load_rows(source, required)
