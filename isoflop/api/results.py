"""The object of data frames, fits and figures that `isoflop.load` and `isoflop.fit` give."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isoflop.analysis.axes import further_columns
from isoflop.analysis.compare.differences import EXPONENTS
from isoflop.analysis.compare.multipliers import COMPARE, compare_archs
from isoflop.analysis.figures import FIGURES
from isoflop.analysis.figures.profiles import profiles
from isoflop.analysis.fit import (
    compare_fit,
    complete_fit,
    fit_optima,
    fitted_tables,
    select_runs,
)
from isoflop.analysis.laws import FITS
from isoflop.analysis.optima import OPTIMA
from isoflop.analysis.points import EXCLUDED, Axis, Selection
from isoflop.analysis.resources import RESOURCES
from isoflop.analysis.result import FitOptions, Fits, fitted_rows, pick_reference
from isoflop.analysis.validity import VALIDITY
from isoflop.api.frames import Compared, runs_frame, table_frame
from isoflop.api.rows import Rows, write_report_of
from isoflop.api.show import html_of, text_of
from isoflop.api.stored import Stored, stored_fit
from isoflop.errors import UserError
from isoflop.validate import validated

if TYPE_CHECKING:
    from isoflop.ingest.budgets import Labelled
    from isoflop.tables import Schema

# What the figures do not find in stored tables: surfaces with their intervals.
_NEED_A_FIT = ("sensitivity",)


class Results:
    """A study or a table of runs: its runs, its fits and its figures.

    Its data frames are those of results/README.md, with categories for names, Int64 and boolean
    with NA, and float64 with NaN; each access gives a copy, so that no change of it reaches
    another. The fits are made when they are first asked for, unless the folder has them.
    """

    def __init__(
        self,
        read: Rows,
        options: FitOptions,
        read_at: Callable[[Axis], Rows],
        *,
        is_as_stored: bool = True,
    ) -> None:
        self._read = read
        self._read_at = read_at
        self._options = options
        self._is_as_stored = is_as_stored
        self._fitted: Fits | None = None

    @property
    def name(self) -> str:
        """The study's name, else that of the table."""
        if self._read.plan is not None:
            return self._read.plan.study.name
        return self._read.label if self._read.table is None else self._read.table.name

    @property
    def unit(self) -> str:
        """Of all losses: nats_per_token, bits_per_token, bits_per_byte, or a metric's name."""
        return self._read.unit

    @property
    def options(self) -> FitOptions:
        """What the fits are made with."""
        return self._options if self._stored is None else self._stored.fits.options

    @property
    def archs(self) -> list[str]:
        """Sorted labels of all archs that have runs with a budget."""
        return self._selection.archs

    @property
    def budgets(self) -> list[float]:
        """Sorted budgets in training FLOPs."""
        return self._selection.budgets

    @property
    def runs(self) -> pd.DataFrame:
        """All runs, a row each, with what was planned and measured: runs.parquet."""
        return self._runs_frame.copy()

    @property
    def optima(self) -> pd.DataFrame:
        """An optimum per arch and budget, along each axis and by each method: optima.parquet.

        `best` has those that laws, comparisons and figures go by.
        """
        return self._table(OPTIMA)

    @property
    def best(self) -> pd.DataFrame:
        """The optima by the method and along the axis of the options, a row per arch and budget."""
        found, options = self.optima, self.options
        is_shown = (found["method"] == options.method) & (found["axis"] == options.axis)
        return found[is_shown].reset_index(drop=True)

    @property
    def fits(self) -> pd.DataFrame:
        """The laws, a row per parameter: fits.parquet."""
        return self._table(FITS)

    @property
    def compare(self) -> Compared:
        """The multiplier of each arch over the reference, at each budget along each resource.

        compare.parquet; called as `compare(reference=…, resources=[…])` the same with another
        reference, or along some resources.
        """
        return Compared(self._table(COMPARE), self._compare)

    @property
    def exponents(self) -> pd.DataFrame:
        """Differences of exponents to the reference: exponents.parquet."""
        return self._table(EXPONENTS)

    @property
    def validity(self) -> pd.DataFrame:
        """What the answers depend on, a row per check: validity.parquet."""
        return self._table(VALIDITY)

    @property
    def excluded(self) -> pd.DataFrame:
        """The runs that enter no fit, with the reason: excluded.parquet."""
        return self._table(EXCLUDED)

    @property
    def plot(self) -> Plots:
        """The figures, a method each: `plot.frontier()`."""
        return Plots(self._fits_for)

    def fit(self, **options: Any) -> Results:
        """Fit all anew, with other options, which takes up to a minute; return the new results.

        Args:
            options: by the names of `isoflop.analysis.FitOptions`; the others stay as they are.

        Raises:
            UserError: an option is none or has another value, or the reference is not there.
        """
        results = self.under(**options)
        results.fit_all()
        return results

    def under(self, **options: Any) -> Results:
        """Return the same runs to be fitted with other options, when a fit is first asked for.

        Raises:
            UserError: an option is none or has another value, or the reference is not there.
        """
        chosen = _with_options(self.options, options)
        # A column that only this axis asks for was not read yet.
        asked = further_columns(chosen.axis)
        is_read = not asked or any(chosen.axis in row for row in self._read.rows)
        read = self._read if is_read else self._read_at(chosen.axis)
        results = Results(read, chosen, self._read_at, is_as_stored=False)
        pick_reference(results.archs, chosen.reference)
        return results

    def predict(self, budget: float | str, *, archs: Sequence[str] | str = ()) -> pd.DataFrame:
        """Return what a study at a larger budget would measure, with prediction intervals.

        Args:
            budget: training FLOPs of a run, up to 10 times the largest budget measured.
            archs: those to predict for; all where none is named.

        Raises:
            UserError: the budget is too far, or no arch has minima at three budgets.
        """
        from isoflop.analysis.predict import PREDICTIONS, predict, size_axes
        from isoflop.study import parse_flops

        is_number = isinstance(budget, Real) and budget > 0
        flops = float(budget) if is_number else parse_flops(budget, "budget")
        named = [archs] if isinstance(archs, str) else list(archs)
        fits = self._drawn_fits
        if fits is None:
            methods = (self.options.method,)
            axes = size_axes(self.options.axis)
            fits = fit_optima(self._selection, self.options, methods=methods, axes=axes)
        rows, schema = fitted_rows(predict(fits, flops, named), PREDICTIONS, fits)
        return self._frame(rows, schema)

    def report(self, out: str | Path) -> Path:
        """Write the report, its figures and all tables into a folder; return its report.html.

        Raises:
            UserError: the folder cannot be written.
        """
        return write_report_of(self._read, self.fit_all(), Path(out)).html_path

    def __repr__(self) -> str:
        """Return what it is, what is claimed and what needs attention; nothing is fitted for it."""
        return text_of(self.name, self._read, self._selection, self._known_fits)

    def _repr_html_(self) -> str:
        """Return the same as `repr`, for Jupyter."""
        return html_of(self.name, self._read, self._selection, self._known_fits)

    @functools.cached_property
    def _selected(self) -> tuple[Labelled, Selection]:
        if self._stored is not None:
            return self._stored.labelled, self._stored.fits.selection
        return select_runs(self._read.rows, self.options, unit=self.unit)

    @property
    def _selection(self) -> Selection:
        return self._selected[1]

    @functools.cached_property
    def _runs_frame(self) -> pd.DataFrame:
        read = self._read
        return runs_frame(read.rows, self.unit, self._labels, keeps_empty=read.plan is not None)

    @functools.cached_property
    def _labels(self) -> list[str]:
        return sorted({str(row["arch"]) for row in self._read.rows if row.get("arch")})

    @functools.cached_property
    def _stored(self) -> Stored | None:
        table = self._read.table
        if not self._is_as_stored or table is None:
            return None
        return stored_fit(table.parent, self._read.rows, self._options, self.unit)

    @functools.cached_property
    def _fit_of_optima(self) -> Fits:
        labelled, selection = self._selected
        return replace(fit_optima(selection, self.options), clusters=labelled.clusters)

    @functools.cached_property
    def _compared_fit(self) -> Fits:
        pick_reference(self.archs, self.options.reference)
        return compare_fit(self._fit_of_optima)

    @property
    def _drawn_fits(self) -> Fits | None:
        """A fit that has draws, where one was made."""
        made: Fits | None = self.__dict__.get("_fit_of_optima")
        return self._fitted or made

    @property
    def _known_fits(self) -> Fits | None:
        """What is known without fitting anything."""
        if self._fitted is not None or self._stored is None:
            return self._fitted
        return self._stored.fits

    def fit_all(self) -> Fits:
        """Return what the frames are made of, with its draws; it is made where it is not yet."""
        if self._fitted is None:
            self._fitted = complete_fit(self._selected[0].rows, self._compared_fit)
        return self._fitted

    def _fits_for(self, figure: str) -> Fits:
        if figure in _NEED_A_FIT:
            return self.fit_all()
        return self._known_fits or self._compared_fit

    def _table(self, schema: Schema) -> pd.DataFrame:
        if self._fitted is None and self._stored is not None:
            return self._frame(*self._stored.tables[schema.table])
        if schema == EXCLUDED:
            fits = Fits(selection=self._selection, options=self.options, optima=())
        elif schema == OPTIMA:
            fits = self._fit_of_optima
        else:
            fits = self._compared_fit if schema in (COMPARE, EXPONENTS) else self.fit_all()
        return self._frame(*fitted_rows(fitted_tables(fits)[schema], schema, fits))

    def _frame(self, rows: Sequence[Mapping[str, Any]], schema: Schema) -> pd.DataFrame:
        return table_frame(rows, schema, self._labels)

    def _compare(self, reference: str | None, resources: Sequence[str] | None) -> pd.DataFrame:
        named = [resources] if isinstance(resources, str) else resources
        wanted = list(RESOURCES) if named is None else list(named)
        for name in wanted:
            if name not in RESOURCES:
                allowed = f"one of {', '.join(RESOURCES)}"
                raise UserError("resources", name, allowed, "name a resource of the table")
        pick_reference(self.archs, reference)
        if reference in (None, pick_reference(self.archs, self.options.reference)):
            found: pd.DataFrame = self._table(COMPARE)
        else:
            fits = (self._drawn_fits or self._fit_of_optima).under(reference=reference)
            found = self._frame(*fitted_rows(compare_archs(fits), COMPARE, fits))
        return found[found["resource"].isin(wanted)].reset_index(drop=True)


class Plots:
    """The figures of `Results`, a method each; the arguments are those of the figure's function."""

    def __init__(self, fits_for: Callable[[str], Fits]) -> None:
        for stem, draw in FIGURES.items():
            name = stem.removeprefix("isoflop_")
            setattr(self, name, _method(name, draw, fits_for))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    def __repr__(self) -> str:
        """Return the names of the figures."""
        return f"figures: {', '.join(vars(self))}"


def _method(
    name: str, draw: Callable[..., Any], fits_for: Callable[[str], Fits]
) -> Callable[..., Any]:
    """Return a figure's function without its first argument, the fits."""

    def method(*args: Any, **kwargs: Any) -> Any:
        return draw(fits_for(name), *args, **kwargs)

    signature = inspect.signature(draw)
    parameters = list(signature.parameters.values())[1:]
    method.__name__ = method.__qualname__ = name
    method.__doc__ = _help(draw, [parameter.name for parameter in parameters])
    method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return method


def _help(draw: Callable[..., Any], names: Sequence[str]) -> str:
    """Return a figure's docstring with what its arguments are, which `profiles` says for all."""
    said = inspect.cleandoc(draw.__doc__ or "").partition("\n\nArgs:")[0]
    every = inspect.cleandoc(profiles.__doc__ or "").partition("\n\nArgs:\n")[2].splitlines()
    named = [name for name in names if f"``{name}`` is" not in said]
    args = [line for line in every if line.strip().partition(":")[0] in named]
    if draw is not profiles:
        # How many are drawn, and which hue is the default, each says itself.
        args = [line.replace('"budget" (default) or "arch"', '"arch" or "budget"') for line in args]
        args = [re.sub("; None: (those|the first).*", ".", line) for line in args]
    return "\n".join([said, "", "Args:", *args, ""])


def _with_options(options: FitOptions, given: Mapping[str, Any]) -> FitOptions:
    """Return options with some others, checked.

    Raises:
        UserError: a name is none of an option, or a value is none of its values.
    """
    values = asdict(options)
    values |= {name: _plain(value) for name, value in given.items()}
    return validated(FitOptions, values, do_unknown="leave it out")


def _plain(value: Any) -> Any:
    """Return a number of numpy as Python's; of what no option can be, the name of its type."""
    if isinstance(value, np.generic):
        return value.item()
    is_option = value is None or isinstance(value, str | int | float | list | tuple | dict)
    return value if is_option else type(value).__name__
