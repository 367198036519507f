"""What a fit is: the options it was made with, and all that one table of runs yields."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from isoflop.analysis.axes import check_axis
from isoflop.analysis.bootstrap import Draws, Requested, scatter_of
from isoflop.analysis.laws import Budget, LawAxis, PowerLaw, default_budget
from isoflop.analysis.noise import Scatter
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import DEFAULT_METHOD, METHODS, Method
from isoflop.analysis.parametric.terms import HUBER_DELTA, Constraints
from isoflop.analysis.points import Axis, Excluded, GroupKey, Point, Selection, profile_of
from isoflop.analysis.screening import Repeats
from isoflop.errors import UserError
from isoflop.ingest.budgets import Budgets, Cluster
from isoflop.tables import Schema, write_table
from isoflop.units import unit_note
from isoflop.validate import CLOSED, Ge, Gt, Le, Lt

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from isoflop.analysis.compare.differences import ExponentDifference
    from isoflop.analysis.compare.multipliers import Comparison
    from isoflop.analysis.parametric import ParametricFit
    from isoflop.analysis.validity import Validity


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """What the user may choose; everything has a default."""

    __pydantic_config__: ClassVar = CLOSED

    n_boot: Annotated[int, Ge(0)] = 1000
    """Bootstrap draws; 0 makes no intervals."""
    method: Method = DEFAULT_METHOD
    """The method of optima that laws, comparisons and plots show first; all are fitted."""
    axis: Axis = "n_params"
    """The count of sizes that comparisons and plots are over: any column of the table. It is fitted
    beside those of every fit."""
    reference: str | None = None
    """The arch that others are compared with; None: `default_reference`."""
    bootstrap: Requested = "auto"
    law_budget: Literal["auto", Budget] = "auto"
    """What C of the laws is that are shown, compared and predicted from; the tables have both."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    seed: Annotated[int, Ge(0)] = 0
    repeats: Repeats | None = None
    """What runs of one cell are that no seed tells apart; None: not said, none of them counts."""
    budgets: Budgets = "given"
    """Whose budgets rows are at: the table's, those with near-equal ones as one (round), or the
    clusters of the FLOPs spent (auto)."""
    screen: bool = True
    """Whether outliers and runs off their budget are left out."""
    tied: bool = False
    """Whether surfaces have one exponent for parameters and tokens."""
    fixed_e: Annotated[float, Ge(0)] | None = None
    """The irreducible loss of surfaces, where it is given, in the unit of the losses."""
    huber_delta: Annotated[float, Gt(0), Le(1)] = HUBER_DELTA
    """Huber's δ of surfaces, in ln L."""

    def __post_init__(self) -> None:
        """Raise UserError for a method that is none, or an axis that no size can be on."""
        if self.method not in METHODS:
            near = get_close_matches(self.method, METHODS, n=1)
            do = f"write {near[0]}" if near else "name one of them"
            raise UserError("method", self.method, f"one of {', '.join(METHODS)}", do)
        check_axis(self.axis)

    @property
    def constraints(self) -> Constraints:
        """What is set of the laws through points."""
        return Constraints(tied=self.tied, fixed_e=self.fixed_e, huber_delta=self.huber_delta)


DECLARED_MARK = "†"
"""At archs of tables."""
DECLARED_MEANING = "FLOPs and parameters are declared, not counted"
# Of more archs with declared FLOPs a sentence names the first.
_MOST_NAMED = 5

DEFAULT_REFERENCES = ("swiglu", "mlp")


def default_reference(archs: Sequence[str]) -> str | None:
    """Return swiglu where it is there, else mlp, else the first label of the alphabet."""
    labels = sorted(set(archs))
    return next((arch for arch in (*DEFAULT_REFERENCES, *labels) if arch in labels), None)


def pick_reference(archs: Sequence[str], reference: str | None) -> str | None:
    """Return the reference asked for, or the default one; None without any arch.

    Raises:
        UserError: the reference is not in the table.
    """
    if reference is None:
        return default_reference(archs)
    if reference not in archs:
        there = ", ".join(sorted(set(archs))) or "an arch (the table has none)"
        raise UserError("--reference", reference, f"one of {there}", "name an arch of the table")
    return reference


@dataclass(frozen=True, kw_only=True, slots=True)
class Fits:
    """All that one table of runs yields, and the options it is read with.

    Comparisons, checks, verdicts and the report take their reference, axis, method and confidence
    from the options; `under` reads the same fit with others.
    """

    selection: Selection
    options: FitOptions = FitOptions()
    optima: tuple[Optimum, ...]
    """Sorted by arch and budget; all axes and methods each."""
    laws: tuple[PowerLaw, ...] = ()
    """Sorted by kind of C, method, arch and axis; one without values says that it is missing."""
    draws: dict[tuple[Axis, Method], Draws] = field(default_factory=dict, compare=False)
    """By (axis, method); empty where n_boot is 0."""
    parametric: tuple[ParametricFit, ...] = ()
    compare: tuple[Comparison, ...] = ()
    envelopes: tuple[Comparison, ...] = ()
    """Comparisons of frontiers through all runs, where there are no isoFLOP profiles."""
    clusters: tuple[Cluster, ...] = ()
    """Of the FLOPs spent, where they give the budgets."""
    exponents: tuple[ExponentDifference, ...] = ()
    """Differences to the reference of the comparisons."""
    validity: Validity | None = None

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        """The rows that entered no fit, each with its reason."""
        return self.selection.excluded

    @property
    def groups(self) -> dict[GroupKey, tuple[Point, ...]]:
        """The points of each (arch, budget)."""
        return self.selection.groups

    @property
    def unit(self) -> str:
        """Of all losses."""
        return self.selection.unit

    @property
    def has_own_trainer(self) -> bool:
        """Whether a trainer of the user's own made any of the runs."""
        points = (point for group in self.groups.values() for point in group)
        return any(point.declared is not None for point in points)

    @property
    def declared_archs(self) -> list[str]:
        """Sorted labels of those whose FLOPs and parameters are the user's own numbers."""
        points = [point for group in self.groups.values() for point in group]
        return sorted({point.arch for point in points if point.declared})

    @property
    def archs(self) -> list[str]:
        """Sorted labels of all families in the table."""
        return self.selection.archs

    @property
    def reference(self) -> str | None:
        """The arch that the others are compared with; None without any arch.

        Raises:
            UserError: the one asked for is not in the table.
        """
        return pick_reference(self.archs, self.options.reference) if self.archs else None

    @property
    def budgets(self) -> list[float]:
        """Sorted budgets in training FLOPs."""
        return self.selection.budgets

    @property
    def law_budget(self) -> Budget:
        """What C is in the laws that are shown, compared and predicted from."""
        asked = self.options.law_budget
        return default_budget(self.optima) if asked == "auto" else asked

    @property
    def shown_laws(self) -> list[PowerLaw]:
        """The power laws by the method of the options and with the C of `law_budget`."""
        method, budget = self.options.method, self.law_budget
        return [law for law in self.laws if (law.method, law.budget) == (method, budget)]

    def under(
        self,
        *,
        reference: str | None = None,
        axis: Axis | None = None,
        method: Method | None = None,
    ) -> Fits:
        """Return the same fit, to be read with another reference, axis or method of optima.

        What was compared under the options of before is left out.

        Raises:
            UserError: the axis was not fitted.
        """
        axes = {optimum.axis for optimum in self.optima}
        if axis is not None and axes and axis not in axes:
            do = f"fit again with axis={axis!r}"
            raise UserError("axis", axis, f"one that was fitted ({', '.join(sorted(axes))})", do)
        options = replace(
            self.options,
            reference=reference or self.options.reference,
            axis=axis or self.options.axis,
            method=method or self.options.method,
        )
        return replace(self, options=options, compare=(), exponents=())

    def optima_of(
        self, arch: str, axis: Axis | None = None, method: Method | None = None
    ) -> list[Optimum]:
        """Return the arch's optima, smallest budget first; axis and method as in the options."""
        axis, method = axis or self.options.axis, method or self.options.method
        return [o for o in self.optima if o.arch == arch and o.axis == axis and o.method == method]

    def optima_by_group(
        self, axis: Axis | None = None, method: Method | None = None
    ) -> dict[GroupKey, Optimum]:
        """Return the optima by (arch, budget), sorted; axis and method as in the options."""
        axis, method = axis or self.options.axis, method or self.options.method
        chosen = [o for o in self.optima if o.axis == axis and o.method == method]
        return {(o.arch, o.budget_flops): o for o in sorted(chosen, key=_group)}

    def law(
        self,
        arch: str,
        axis: LawAxis,
        method: Method | None = None,
        budget: Budget | None = None,
    ) -> PowerLaw:
        """Return the arch's law; method as in the options, C as in `law_budget`.

        Raises:
            KeyError: the arch is not in the table.
        """
        key = (arch, axis, method or self.options.method, budget or self.law_budget)
        for law in self.laws:
            if (law.arch, law.axis, law.method, law.budget) == key:
                return law
        raise KeyError(key)

    def draws_of(self, axis: Axis | None = None, method: Method | None = None) -> Draws | None:
        """Return the draws of an axis and method (as in the options); None without any."""
        return self.draws.get((axis or self.options.axis, method or self.options.method))

    def scatter_of(self, key: GroupKey) -> Scatter:
        """Return what a group tells of its noise, by the axis and method of the options."""
        draws = self.draws_of()
        if draws is not None and key in draws.scatter:
            return draws.scatter[key]
        profile = profile_of(self.groups[key], self.options.axis)
        return scatter_of(profile, METHODS[self.options.method])


def excluded_note(fits: Fits) -> str:
    """Return a sentence such as "3 runs excluded: 2 diverged, 1 failed.".

    A second one, where there are runs without a budget, says what they are used for.
    """
    return left_out_note(fits.selection)


def left_out_note(selection: Selection) -> str:
    """Return the sentences of `excluded_note` before anything is fitted."""
    counts = selection.excluded_counts()
    num_loose = len(selection.loose)
    loose = ""
    if num_loose:
        runs = f"{num_loose} run{'s' if num_loose > 1 else ''}"
        loose = f" {runs} without a budget: in laws over all runs only."
    if not counts:
        return f"No runs excluded.{loose}"
    total = sum(counts.values())
    reasons = ", ".join(f"{num} {reason.replace('_', ' ')}" for reason, num in counts.items())
    return f"{total} run{'s' if total > 1 else ''} excluded: {reasons}.{loose}"


def declared_note(fits: Fits) -> str | None:
    """Return which archs' FLOPs nobody counted; None where all are counted."""
    archs = fits.declared_archs
    if not archs:
        return None
    named = ", ".join(archs[:_MOST_NAMED])
    more = f" and {len(archs) - _MOST_NAMED} more" if len(archs) > _MOST_NAMED else ""
    return f"{DECLARED_MEANING}: {named}{more}."


def source_notes(fits: Fits) -> list[str]:
    """Return what losses are and which FLOPs are declared, where that is not as usual."""
    return [note for note in (unit_note(fits.unit), declared_note(fits)) if note is not None]


def write_fitted(
    path: Path,
    rows: Sequence[DataclassInstance],
    schema: Schema,
    fits: Fits,
    declared: Collection[str] = (),
) -> None:
    """Write a table that was made from a fit: with its unit, and marked where FLOPs are declared.

    Args:
        path: the file.
        rows: of the table; one without an arch is about all of them.
        schema: the table's.
        fits: the fit.
        declared: archs of other tables in it whose FLOPs are declared.
    """
    marked, schema = fitted_rows(rows, schema, fits, declared)
    write_table(path, marked, schema)


def fitted_rows(
    rows: Sequence[DataclassInstance], schema: Schema, fits: Fits, declared: Collection[str] = ()
) -> tuple[list[dict[str, Any]], Schema]:
    """Return the rows of a table of a fit as `write_fitted` writes them, and its schema."""
    schema = replace(schema, unit=fits.unit)
    named = [{name: getattr(row, name) for name in schema.names} for row in rows]
    archs = {*fits.declared_archs, *declared}
    if not archs:
        return named, schema
    for row in named:
        labels = {row.get("arch"), row.get("reference")} - {None}
        row["declared"] = bool(archs & labels) if labels else True
    return named, schema.with_columns([("declared", "bool")])


def _group(optimum: Optimum) -> GroupKey:
    return optimum.arch, optimum.budget_flops
