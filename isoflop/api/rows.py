"""The runs of a study's folder as they are now, or of any table; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.analysis.axes import further_columns
from isoflop.analysis.load import REQUIRED, load_rows, table_of, table_unit
from isoflop.analysis.points import AXES, Axis
from isoflop.errors import UserError
from isoflop.files import write_bytes_atomic
from isoflop.ingest.files import RawTable
from isoflop.ingest.mapping import ColumnMap, read_loss_unit
from isoflop.ingest.sources import split_kind
from isoflop.tables import unit_of, write_runs
from isoflop.validate import validated

if TYPE_CHECKING:
    from isoflop.analysis.report import Report
    from isoflop.analysis.result import FitOptions, Fits
    from isoflop.ingest.store import Imported
    from isoflop.plan.planner import Plan

_TABLE = "runs.parquet"
_IN_MEMORY = "a data frame"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Runs, and where they are from."""

    plan: Plan | None
    """Of a study's folder; None of a table."""
    table: Path | None
    """The file of the rows; of a study's folder the one that they are collected into; None of rows
    that were in memory or are mapped from columns of others."""
    rows: list[dict[str, Any]]
    unit: str
    """Of the losses."""
    damaged: tuple[str, ...] = ()
    """What is wrong with each run whose records cannot be read."""
    label: str = _IN_MEMORY
    """Where the rows are from, for people; of mapped columns, as it was typed."""
    mapped: Mapped | None = None
    """How columns of others became those of the rows."""

    def options(self, asked: FitOptions) -> FitOptions:
        """Return options whose reference, where none is asked for, is the study's own.

        That of a study with its own trainer is its first arch. Any study in which a built-in family
        stands, and a table, leave it to `isoflop.analysis.result.default_reference`.
        """
        study = None if self.plan is None else self.plan.study
        if asked.reference is not None or study is None:
            return asked
        is_own = all(map(study.has_trainer, study.archs))
        return replace(asked, reference=study.archs[0]) if is_own else asked


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """A table of others whose columns were mapped."""

    imported: Imported
    raw: RawTable
    notes: tuple[str, ...]
    """What the names of its columns leave open, and what is odd about their values."""

    @property
    def columns(self) -> list[str]:
        """How each column of ours came about: ``loss = val_bpb``."""
        mapping, derived = self.imported.mapping, self.imported.derived
        pairs = [*mapping.columns.items(), *mapping.parsed.items(), *derived.items()]
        constant = [] if mapping.arch_name is None else [("arch", repr(mapping.arch_name))]
        return [f"{ours} = {theirs}" for ours, theirs in (*constant, *pairs)]


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
            table=source / _TABLE,
            rows=rows,
            unit=unit_of(plan.study.loss_unit, loss_unit, str(source)),
            damaged=tuple(damaged_reasons(rows)),
            label=str(source),
        )
    table = table_of(source)
    unit = unit_of(table_unit(table), loss_unit, str(source))
    rows = load_rows(table, required, more=further_columns(axis))
    return Rows(plan=None, table=table, rows=rows, unit=unit, label=str(table))


def read_any(source: Any, asked: ColumnMap | None, loss_unit: str | None, axis: Axis) -> Rows:
    """Return the runs of a study's folder, of any table, or of a table of others by a mapping.

    Args:
        source: a path, a pattern of paths, a source as `isoflop import` takes it, a data frame of
            any kind, or rows.
        asked: how columns are mapped, as far as it was said; None: they are called as ours.
        loss_unit: what the losses are where the source does not say.
        axis: a count that the table must have; those of `AXES` need not be there.

    Raises:
        UserError: the plan or the table is not in order.
    """
    is_text = isinstance(source, str | Path)
    if is_text and asked is None and split_kind(str(source))[0] is None:
        return read_rows(Path(source).expanduser(), loss_unit=loss_unit, axis=axis)
    if asked is None and not is_text:
        stated = getattr(source, "attrs", {}).get("loss_unit")
        unit = unit_of(stated, loss_unit, "the frame", "loss_unit")
        rows = load_rows(source, more=further_columns(axis))
        return Rows(plan=None, table=None, rows=rows, unit=unit)
    return _read_mapped(source, asked or mapping_of(loss_unit=loss_unit))


def _read_mapped(source: Any, asked: ColumnMap) -> Rows:
    from isoflop.ingest.frames import as_frame
    from isoflop.ingest.sources import read_source
    from isoflop.ingest.suggest import suggest
    from isoflop.ingest.table import import_table

    is_text = isinstance(source, str | Path)
    raw = read_source(str(source)) if is_text else RawTable(frame=as_frame(source), files=())
    suggestion = suggest(raw, asked)
    imported = import_table(raw, suggestion.mapping)
    notes = (*suggestion.notes, *imported.notes)
    return Rows(
        plan=None,
        table=None,
        rows=imported.rows,
        unit=imported.unit,
        label=str(source) if is_text else _IN_MEMORY,
        mapped=Mapped(imported=imported, raw=raw, notes=notes),
    )


def mapping_of(
    *,
    columns: Mapping[str, str] | None = None,
    arch: str | None = None,
    budget_from: str | None = None,
    loss_unit: str | None = None,
    **others: Any,
) -> ColumnMap:
    """Return what was said of a table of others, by the options of `isoflop import`.

    Raises:
        UserError: an option has another type or value.
    """
    if columns is not None and not isinstance(columns, Mapping):
        do = "write {'loss': 'val_bpb'}"
        raise UserError("map", type(columns).__name__, "a dictionary of theirs by ours", do)
    named = dict(columns or {})
    named |= {} if arch is None else {"arch": arch}
    if budget_from not in (None, "flops", "auto", "none"):
        named["budget_flops"], budget_from = str(budget_from), None
    unit = None if loss_unit is None else read_loss_unit(loss_unit, "loss_unit")
    values = {"columns": named, "budget_from": budget_from, "loss_unit": unit, **others}
    given = {name: value for name, value in values.items() if value is not None}
    if isinstance(given.get("where"), str):
        given["where"] = [given["where"]]
    return validated(ColumnMap, given, do_unknown="leave it out")


def write_report_of(read: Rows, fits: Fits, out: Path) -> Report:
    """Write the report, its figures and all tables into a folder, with the runs beside them.

    Raises:
        UserError: the folder cannot be written.
    """
    from isoflop.analysis.fit import write_tables
    from isoflop.analysis.report import write_report
    from isoflop.analysis.report.source import source_of
    from isoflop.api.frames import parquet_of, runs_frame
    from isoflop.ingest.store import write_import

    table, folder = out / _TABLE, None
    if read.plan is not None:
        assert read.table is not None
        folder = read.table.parent
        write_runs(table, read.rows, read.unit)
    elif read.mapped is not None:
        write_import(read.mapped.imported, read.mapped.raw, read.label, out)
    elif read.table is not None:
        table = read.table
    else:
        write_bytes_atomic(table, parquet_of(runs_frame(read.rows, read.unit)))
    report = write_report(fits, source_of(table, read.rows, folder), out)
    write_tables(fits, out)
    return report
