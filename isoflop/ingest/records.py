"""Records of JSON as rows of a table: a list of objects, one object a run, an object of columns.

Objects inside become columns such as ``model.params``. Several values in one file, a line each or
over many lines, are a row each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isoflop.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, Any]

_WHAT = "table"
_MAX_DEPTH = 20
_ALLOWED = "json: a list of objects, an object a line or a run, or an object of columns"
_BLANKS = re.compile(r"\s*")


def read_records(name: str, text: str) -> list[Record]:
    """Return the rows of a JSON text, flat.

    NaN and infinities, which others write, are read.

    Args:
        name: of the file, for messages.
        text: of one JSON value, or of several.

    Raises:
        UserError: it is no JSON, or no table.
    """
    try:
        values = list(_values(text))
        records = _records(values[0]) if len(values) == 1 else values
        if not all(isinstance(record, dict) for record in records):
            raise ValueError("not all are objects")
        return [flat(record) for record in records]
    # Also of a whole number of thousands of digits, which Python does not read.
    except (ValueError, RecursionError) as error:
        raise UserError(_WHAT, name, f"{_ALLOWED} ({error})", "correct it") from None


def frame_of_records(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return records as a frame of the values themselves, None where a record has no such name."""
    import pandas as pd

    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: [record.get(name) for record in records] for name in names}
    return pd.DataFrame(columns, index=range(len(records)), dtype=object)


def flat(record: Mapping[str, Any]) -> Record:
    """Return a record whose inner objects are columns ``a.b``; lists become their JSON text.

    Raises:
        ValueError: two values of one name, or objects nested too deeply.
    """
    if not any(isinstance(value, Mapping | list | tuple) for value in record.values()):
        return {str(name): value for name, value in record.items()}
    found: Record = {}
    for name, value in _flat_items(record, "", 0):
        if name in found:
            raise ValueError(f"two values of {name!r}")
        found[name] = value
    return found


def _flat_items(record: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat_items(value, f"{name}.", depth + 1)
        elif isinstance(value, list | tuple):
            yield name, json.dumps(value, default=str)
        else:
            yield name, value


def _values(text: str) -> Iterator[Any]:
    """Yield the JSON values of a text, one after another."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    at, end = _after_blanks(text, 0), len(text)
    while at < end:
        value, at = decoder.raw_decode(text, at)
        yield value
        at = _after_blanks(text, at)


def _after_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found is not None
    return found.end()


def _object(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two values of {twice!r} in one object")
    return found


def _records(value: Any) -> list[Any]:
    """Return the rows of one JSON value, by its shape."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        raise ValueError("an object with names is needed")
    inner = list(value.values())
    rows = value.get("data")
    if set(value) - {"index"} == {"columns", "data"} and isinstance(rows, list) and rows:
        # As pandas writes with orient="split".
        if not all(isinstance(row, list) for row in (value["columns"], *rows)):
            raise ValueError("its columns and rows are no lists")
        return [dict(zip(value["columns"], row, strict=True)) for row in rows]
    if all(isinstance(cells, list) for cells in inner):
        if len(inner) == 1 and all(isinstance(row, dict) for row in inner[0]):
            return inner[0]
        if len({len(cells) for cells in inner}) > 1:
            raise ValueError("its columns are not equally long")
        return [dict(zip(value, row, strict=True)) for row in zip(*inner, strict=True)]
    if not all(isinstance(cells, dict) for cells in inner):
        return [value]
    keys = [set(cells) for cells in inner]
    if any(names != keys[0] for names in keys) or len(inner) == 1:
        return [value]
    if all(key.isdecimal() for key in keys[0]):
        # As pandas writes by default: rows by their number, in each column.
        return [{name: cells[key] for name, cells in value.items()} for key in inner[0]]
    return [{"name": name, **row} for name, row in value.items()]
