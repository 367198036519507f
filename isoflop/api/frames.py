"""Rows of the tables as pandas data frames, with the same dtypes whatever the values.

Names that repeat (arch, method, status, …) are categories, other text is string, whole numbers are
Int64 and truths boolean, both with NA where there is no value; all else is float64 with NaN.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from isoflop.ingest.frames import UNREAD
from isoflop.tables import RUNS, UNIT_KEY, Schema, parquet_bytes

_TEXT = frozenset(
    {"run_id", "detail", "settings", "status_reason", "excluded_reason", "variant", "warnings"}
)
"""Columns of text that is different in every row; all other text is a category."""
_ARCHS = ("arch", "reference")
_DTYPES = {"float64": "float64", "int64": "Int64", "bool": "boolean"}
# Beyond it a float64 does not hold every whole number.
_MAX_WHOLE = 2.0**53


def table_frame(
    rows: Iterable[Mapping[str, Any]], schema: Schema, archs: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the rows of a table as a frame.

    Args:
        rows: with all columns of the schema but those that may be absent.
        schema: the table's; its unit of losses is in ``attrs["loss_unit"]``.
        archs: labels that are categories in every frame of one study, so that frames can be merged.
    """
    given = list(rows)
    absent = {name for name in schema.later if all(row.get(name) is None for row in given)}
    columns = {
        name: _column(name, kind, [row.get(name) for row in given], archs)
        for name, kind in schema.columns
        if name not in absent
    }
    frame = pd.DataFrame(columns)
    frame.attrs["loss_unit"] = schema.unit
    return frame


def runs_frame(
    rows: Sequence[Mapping[str, Any]],
    unit: str,
    archs: Sequence[str] = (),
    *,
    keeps_empty: bool = False,
) -> pd.DataFrame:
    """Return runs as a frame, with the columns in which any of them has a value.

    Counts are Int64, unless a table has them with a fraction. Metrics and other columns that were
    read are float64.
    """
    found = dict.fromkeys(
        name
        for row in rows
        for name, value in row.items()
        if name != UNREAD and (value is not None or (keeps_empty and name not in RUNS.later))
    )
    kinds = dict(RUNS.columns)
    ordered = [name for name in RUNS.names if name in found]
    ordered += [name for name in found if name not in kinds]
    columns = {}
    for name in ordered:
        values = [row.get(name) for row in rows]
        kind = kinds.get(name) or _kind_of(values)
        if kind == "int64" and not all(map(_is_whole, values)):
            kind = "float64"
        columns[name] = _column(name, kind, values, archs)
    frame = pd.DataFrame(columns)
    frame.attrs["loss_unit"] = unit
    return frame


def parquet_of(frame: pd.DataFrame) -> bytes:
    """Return runs as a parquet file that `isoflop fit` reads, with the unit of their losses."""
    import pyarrow as pa

    names = {name: "string" for name in frame.select_dtypes("category")}
    table = pa.Table.from_pandas(frame.astype(names), preserve_index=False)
    unit = str(frame.attrs["loss_unit"]).encode()
    return parquet_bytes(table.replace_schema_metadata({UNIT_KEY: unit}))


class Compared(pd.DataFrame):  # type: ignore[misc]  # pandas has no types here
    """The table of comparisons, which can also be called: with another reference, or fewer rows.

    All that is made of it (by query, merge, copy, pickle) is a plain frame.
    """

    def __init__(self, frame: pd.DataFrame, compare: Callable[..., pd.DataFrame]) -> None:
        super().__init__(frame)
        self.attrs.update(frame.attrs)
        object.__setattr__(self, "_compare", compare)

    def __call__(
        self, reference: str | None = None, *, resources: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Return the comparisons with a reference, along some resources; all where none is named.

        Raises:
            UserError: an arch or a resource that the table does not have.
        """
        found: pd.DataFrame = object.__getattribute__(self, "_compare")(reference, resources)
        return found

    def __reduce_ex__(self, _protocol: Any) -> Any:
        """Return what pickle writes: a plain frame."""
        return copy.copy, (self.copy(),)


def _column(name: str, kind: str, values: list[Any], archs: Sequence[str]) -> pd.Series:
    if kind in _DTYPES:
        return pd.Series(values, dtype=_DTYPES[kind])
    if kind != "string":
        return pd.Series(
            [None if value is None else tuple(value) for value in values], dtype=object
        )
    if name in _TEXT:
        return pd.Series(values, dtype="string")
    labels = {*archs} if name in _ARCHS else set()
    labels.update(value for value in values if value is not None)
    return pd.Series(values, dtype=pd.CategoricalDtype(sorted(labels)))


def _kind_of(values: Iterable[Any]) -> str:
    """Return the type of a column that runs.parquet does not have."""
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, bool) for value in given):
        return "bool"
    return "string" if any(isinstance(value, str) for value in given) else "float64"


def _is_whole(value: Any) -> bool:
    if value is None or value != value:
        return True
    return abs(value) <= _MAX_WHOLE and float(value).is_integer()
