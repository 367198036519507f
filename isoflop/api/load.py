"""`isoflop.load`, `isoflop.read_runs`, `isoflop.fit` and `isoflop.optima`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from isoflop.analysis.points import AXES
from isoflop.analysis.result import FitOptions
from isoflop.api.results import Results
from isoflop.api.rows import mapping_of, read_any
from isoflop.ingest.frames import as_frame
from isoflop.ingest.mapping import PERPLEXITY


def load(
    source: Any,
    *,
    map: Mapping[str, str] | None = None,
    arch: str | None = None,
    arch_name: str | None = None,
    parse: Mapping[str, str] | None = None,
    where: str | Sequence[str] | None = None,
    run: str | None = None,
    take: str | None = None,
    budget_from: str | None = None,
    flops_unit: str | None = None,
    loss_unit: str | None = None,
) -> Results:
    """Return a study, or a table of runs, as data frames, fits and figures; nothing is written.

    The tables that `isoflop fit` left in a folder are taken where they are of the runs that it
    holds now. Else the runs are fitted when a fit is first asked for, which takes up to a minute.

    With any of the options from ``map`` to ``flops_unit``, and of a source that is none of these,
    the columns are those of others: the options are those of `isoflop import`, what they leave open
    is suggested from the columns' names, and `repr` shows how each was read.

    Args:
        source: a study's folder, whose runs are read as they are now; a csv, parquet, json or jsonl
            file, also compressed, or a pattern of such files; a data frame of pandas, polars or
            Arrow; rows as dictionaries; ``wandb:…``, ``tensorboard:…``, ``hf:…`` as for
            `isoflop import`.
        map: their columns, or products of them, by ours: ``{"loss": "val_bpb"}``.
        arch: their column of archs.
        arch_name: the arch of all rows.
        parse: patterns by their column whose texts hold values: ``{"Name": "{arch}-N{n_params}"}``.
        where: conditions on rows, such as ``"State == finished"``.
        run: their column that tells which run a row is a step of.
        take: which step counts: last, best or every.
        budget_from: flops, auto, none, or their column of budgets.
        flops_unit: of their FLOPs, such as gflop.
        loss_unit: of the losses, where the table does not say.

    Raises:
        UserError: the plan, the table or an option is not in order.

    Examples:
        >>> study = isoflop.load("results/quickstart")
        >>> study.archs
        ['mlp', 'moe', 'peer', 'sgatlin', 'swiglu']
        >>> list(study.runs.groupby("arch").loss.min().sort_values().index)[:2]
        ['sgatlin', 'moe']
        >>> len(study.compare.query("resource == 'flops' and order_claimed != 'none'"))
        1
    """
    options: dict[str, Any] = {
        "columns": map,
        "arch": arch,
        "arch_name": arch_name,
        "parse": parse,
        "where": where,
        "run": run,
        "take": take,
        "budget_from": budget_from,
        "flops_unit": flops_unit,
    }
    is_mapped = any(value is not None for value in options.values()) or loss_unit == PERPLEXITY
    asked = mapping_of(**options, loss_unit=loss_unit) if is_mapped else None
    read_at = functools.partial(read_any, _kept(source), asked, loss_unit)
    read = read_at(AXES[0])
    return Results(read, read.options(FitOptions()), read_at)


def read_runs(source: Any, **options: Any) -> pd.DataFrame:
    """Return the runs of a table of others as a frame that `fit` takes: `isoflop import` in memory.

    Args:
        source: see `load`.
        options: those of `load`. Columns that they do not name are suggested.

    Raises:
        UserError: a column that is needed is not found, or the table is not in order.

    Examples:
        >>> table = [{"params": "125M", "tokens": "2.5B", "val_loss": 3.1, "FLOPs": 1.9e18}]
        >>> runs = isoflop.read_runs(table, arch_name="ours", budget_from="flops")
        >>> print(*runs.loc[0, ["arch", "n_params", "n_tokens", "flops"]])
        ours 125000000 2500000000 1.9e+18
    """
    return load(source, **{"map": {}, **options}).runs


def fit(table: Any, **options: Any) -> Results:
    """Fit what `load` takes: optima, laws, comparisons and checks, which takes up to a minute.

    Args:
        table: see `load`; a frame of `read_runs`, too.
        options: by the names of `isoflop.analysis.FitOptions`.

    Raises:
        UserError: the table is not in order, or an option is none or has another value.
    """
    return load(table).fit(**options)


def optima(table: Any, **options: Any) -> pd.DataFrame:
    """Return `Results.optima` of what `load` takes, without fitting anything else.

    Raises:
        UserError: the table is not in order, or an option is none or has another value.

    Examples:
        >>> found = isoflop.optima("results/quickstart", n_boot=0)
        >>> found.query("method == 'parabola' and axis == 'n_params'").status.value_counts().max()
        np.int64(15)
    """
    return load(table).under(**options).optima


def _kept(source: Any) -> Any:
    """Return a source that nobody changes any more: paths and a copy of a frame."""
    if isinstance(source, str | Path):
        return source
    return as_frame(source).copy()
