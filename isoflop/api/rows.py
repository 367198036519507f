"""The runs of a study's folder as they are now, or of any table; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.analysis.load import REQUIRED, load_rows, table_of, table_unit
from isoflop.analysis.points import AXES, Axis
from isoflop.tables import unit_of, write_runs

if TYPE_CHECKING:
    from isoflop.analysis.report import Report
    from isoflop.analysis.result import Fits
    from isoflop.plan.planner import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Runs, and where they are from."""

    plan: Plan | None
    """Of a study's folder; None of a table."""
    table: Path
    """The file of the rows; of a study's folder the one that they are collected into."""
    rows: list[dict[str, Any]]
    unit: str
    """Of the losses."""
    damaged: tuple[str, ...] = ()
    """What is wrong with each run whose records cannot be read."""


def study_reference(plan: Plan | None, asked: str | None) -> str | None:
    """Return the reference asked for; of a study with its own trainer, else its first arch.

    None leaves it to `isoflop.analysis.result.default_reference`, as does any study in which a
    built-in family stands.
    """
    if asked is not None or plan is None or not all(map(plan.study.has_trainer, plan.study.archs)):
        return asked
    return plan.study.archs[0]


def read_rows(
    source: Path,
    required: Sequence[str] = REQUIRED,
    *,
    with_code: bool = False,
    loss_unit: str | None = None,
    axis: Axis = AXES[0],
) -> Rows:
    """Return the runs of a study's folder as they are now, or of a table, and write nothing.

    Args:
        source: a study's folder, or what `load_rows` takes.
        required: columns that a table must have.
        with_code: whether the plan's families from outside the package are imported.
        loss_unit: what the losses of a table are that does not say.
        axis: a count that a table must have; those of `AXES` need not be there.

    Raises:
        UserError: the plan or the table is not in order, or is in another unit.
    """
    if (source / "plan.json").is_file():
        from isoflop.launch.collect import collected_rows, damaged_reasons
        from isoflop.plan.artefact import read_plan

        plan = read_plan(source, with_code=with_code)
        rows = collected_rows(source, plan)
        return Rows(
            plan=plan,
            table=source / "runs.parquet",
            rows=rows,
            unit=unit_of(plan.study.loss_unit, loss_unit, str(source)),
            damaged=tuple(damaged_reasons(rows)),
        )
    table = table_of(source)
    unit = unit_of(table_unit(table), loss_unit, str(source))
    more = () if axis in AXES else (axis,)
    return Rows(plan=None, table=table, rows=load_rows(table, required, more=more), unit=unit)


def write_report_of(read: Rows, fits: Fits, out: Path) -> Report:
    """Write the report, its figures and all tables into a folder, with the runs beside them.

    Raises:
        UserError: the folder cannot be written.
    """
    from isoflop.analysis.fit import write_tables
    from isoflop.analysis.report import write_report
    from isoflop.analysis.report.source import source_of

    table, folder = read.table, None
    if read.plan is not None:
        folder, table = read.table.parent, out / read.table.name
        write_runs(table, read.rows, read.unit)
    report = write_report(fits, source_of(table, read.rows, folder), out)
    write_tables(fits, out)
    return report
