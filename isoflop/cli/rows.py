"""What verbs read that only look: the runs of a study's folder, or any table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.analysis.load import REQUIRED, load_rows, table_of, table_unit
from isoflop.cli.tables import print_damaged
from isoflop.tables import unit_of

if TYPE_CHECKING:
    from isoflop.plan.planner import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a verb reads."""

    plan: Plan | None
    """Of a study's folder; None of a table."""
    rows: list[dict[str, Any]]
    unit: str
    """Of the losses."""


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
) -> Rows:
    """Return the runs of a study's folder as they are now, or of a table, and write nothing.

    Args:
        source: a study's folder, or what `load_rows` takes.
        required: columns that a table must have.
        with_code: whether the plan's families from outside the package are imported.
        loss_unit: what the losses of a table are that does not say.

    Raises:
        UserError: the plan or the table is not in order, or is in another unit.
    """
    if (source / "plan.json").is_file():
        from isoflop.launch.collect import collected_rows, damaged_reasons
        from isoflop.plan.artefact import read_plan

        plan = read_plan(source, with_code=with_code)
        rows = collected_rows(source, plan)
        print_damaged(damaged_reasons(rows))
        unit = unit_of(plan.study.loss_unit, loss_unit, str(source))
        return Rows(plan=plan, rows=rows, unit=unit)
    table = table_of(source)
    unit = unit_of(table_unit(table), loss_unit, str(source))
    return Rows(plan=None, rows=load_rows(table, required), unit=unit)
