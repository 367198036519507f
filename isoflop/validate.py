"""Values of a file as one of the project's dataclasses, checked by pydantic.

The types of a dataclass's fields are the file's schema; what a type cannot say is checked in its
``__post_init__``. Whatever is wrong becomes one :class:`UserError`.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from isoflop.errors import UserError, shown
from isoflop.files import read_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

Model = TypeVar("Model")

CLOSED = {"extra": "forbid"}
"""The ``__pydantic_config__`` of a class whose table in a file may have no further keys."""

WANTED = {
    "list_type": "a list in square brackets",
    "tuple_type": "a list in square brackets",
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "a table",
    "dataclass_type": "a table",
    "model_type": "a table",
}
"""What pydantic's kinds of mistakes ask for, in the words of TOML."""

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadBy:
    """Annotates a field whose values in a file are first read by a function.

    As `pydantic.BeforeValidator`, which is slow to import. A UserError of the function comes
    through; where it names only one key on the way to the value, with the whole way.
    """

    function: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return pydantic's schema of the field: the function, then the field's own type."""
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.function, handler(source))


@dataclass(frozen=True, slots=True)
class _Constraint:
    """Annotates a field by a constraint, in the words of pydantic's schemas.

    As `pydantic.Field`, which is slow to import, and without a package: a specification is made,
    and a step estimated, where pydantic is not installed (isoflop.gpu_report).
    """

    keyword: str
    value: float | str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return pydantic's schema of the field, with the constraint."""
        return handler(source) | {self.keyword: self.value}


def Ge(least: float) -> _Constraint:
    """Return the constraint that a number is at least ``least``."""
    return _Constraint("ge", least)


def Gt(bound: float) -> _Constraint:
    """Return the constraint that a number is more than ``bound``."""
    return _Constraint("gt", bound)


def Le(most: float) -> _Constraint:
    """Return the constraint that a number is at most ``most``."""
    return _Constraint("le", most)


def Lt(bound: float) -> _Constraint:
    """Return the constraint that a number is less than ``bound``."""
    return _Constraint("lt", bound)


def MinLen(length: int) -> _Constraint:
    """Return the constraint that a text has at least so many characters."""
    return _Constraint("min_length", length)


def Pattern(*, regex: str) -> _Constraint:
    """Return the constraint that a text matches a regular expression."""
    return _Constraint("pattern", regex)


# The largest number of a table's column.
_LARGEST = 2**63 - 1
# The end of the year 9999, the last that has a date.
_LAST_UNIX_TIME_S = 253_402_300_799.0
# Values that JSON has, whatever they are.
_PLAIN = (int, float, bool, type(None))
# Of a value in a message.
_MAX_SHOWN = 120

Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0), Le(_LARGEST)]
"""A number of steps, bytes or attempts in a record."""
Seconds = Annotated[float, Ge(0)]
UnixTime = Annotated[float, Ge(0), Le(_LAST_UNIX_TIME_S)]
Digest = Annotated[str, Pattern(regex="^[0-9a-f]{64}$")]
"""A sha256 in hex digits."""


def validated(
    kind: type[Model],
    values: Any,
    *,
    what: str = "",
    do: str = "correct it",
    do_missing: str = "add it",
    do_unknown: str = "remove it",
) -> Model:
    """Return ``values``, as a TOML or JSON file has them, as an instance of ``kind``.

    Types are strict: text is no number and 1.5 no whole number; a whole number is a float where one
    is asked for, and a list a tuple. Keys that ``kind`` lacks are refused where its class sets
    ``__pydantic_config__`` to :data:`CLOSED`.

    Args:
        kind: a dataclass, or any type that pydantic knows.
        values: tables, lists, texts, numbers and booleans.
        what: put before the names of fields in messages (``hardware`` for ``hardware.name``).
        do: what to do about a wrong value.
        do_missing: what to do about a missing one.
        do_unknown: what to do about a key that is none and resembles none.

    Raises:
        UserError: the first mistake, with the dotted name of its field.
    """
    from pydantic import ValidationError

    adapter: TypeAdapter[Model] = _adapter(cast("Hashable", kind))
    _check_is_json(values, (what,) if what else (), do)
    try:
        # JSON is where strict pydantic takes a list for a tuple and a table for a dataclass.
        return adapter.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        mistake = _most_telling(values, error.errors())
        raise _user_error(adapter, values, mistake, what, do, do_missing, do_unknown) from None


def in_file(error: UserError, path: Path, do: str) -> UserError:
    """Return a mistake in a file that isoflop wrote: it names the file, which is to be made anew.

    Args:
        error: the mistake.
        path: of the file.
        do: how to make it again.
    """
    text = repr(error.value)
    value = error.value if len(text) <= _MAX_SHOWN else shown(f"{text[:_MAX_SHOWN]}…")
    return UserError(f"{path}: {error.field}", value, error.allowed, do)


def wrong_in_file(path: Path, field: str, value: object, allowed: str, do: str) -> UserError:
    """Return the mistake that a value is in a file that isoflop wrote; see :func:`in_file`."""
    return in_file(UserError(field, value, allowed, do), path, do)


def read_record(kind: type[Model], path: Path, what: str, do: str) -> Model:
    """Return the value of a JSON file that isoflop wrote, checked as by :func:`validated`.

    Args:
        kind: what the file holds.
        path: of the file.
        what: names the file's role where it is no JSON.
        do: how to make it again, or without.

    Raises:
        UserError: the file is missing or damaged, or the first wrong key, with the file's name.
    """
    values = read_json(path, what)
    try:
        return validated(kind, values, do=do, do_missing=do, do_unknown=do)
    except UserError as error:
        raise in_file(error, path, error.do) from None


def _check_is_json(value: Any, place: tuple[int | str, ...], do: str) -> None:
    """Refuse what TOML or Python has and JSON lacks: dates, and text that is no Unicode."""
    if isinstance(value, str):
        # Nearly all texts are ASCII, which is known without a look at each character.
        if value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value):
            return
        allowed = "text without lone surrogates"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_is_json(key, place, do)
            if type(inner) not in _PLAIN:
                _check_is_json(inner, (*place, key), do)
        return
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            if type(inner) not in _PLAIN:
                _check_is_json(inner, (*place, index), do)
        return
    elif isinstance(value, int | float | None):
        return
    else:
        allowed = "text in quotes, a number, true or false, a list or a table"
    raise UserError(".".join(map(str, place)) or "file", value, allowed, do)


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _most_telling(values: Any, mistakes: Sequence[ErrorDetails]) -> ErrorDetails:
    """Return the first mistake; of those of a union's alternatives, the one that went deepest.

    What a function refuses comes after what the types do, and a missing key after an unknown one
    beside it, by which it may be meant.
    """
    first = min(mistakes, key=lambda each: _refusal(each) is not None)
    if first["type"] in _MISSING:
        beside = (each for each in mistakes if each["loc"][:-1] == first["loc"][:-1])
        first = next((each for each in beside if each["type"] in _UNKNOWN), first)
    are_keys = _are_keys(values, first)
    if all(are_keys):
        return first
    shared = first["loc"][: are_keys.index(False)]
    alternatives = [each for each in mistakes if each["loc"][: len(shared)] == shared]
    return max(alternatives, key=lambda each: len(each["loc"]))


def _are_keys(values: Any, mistake: ErrorDetails) -> list[bool]:
    """Return which parts of a mistake's location are keys and indices of the values.

    The others are names of the alternatives of a union, which a key may be called as well.
    """
    are_keys = []
    for part in mistake["loc"]:
        if isinstance(values, Mapping):
            is_key = part in values
        else:
            is_key = isinstance(values, list | tuple) and part in range(len(values))
        if is_key:
            values = values[part]
        are_keys.append(is_key)
    if mistake["type"] in _MISSING:
        are_keys[-1] = True
    return are_keys


def _refusal(mistake: ErrorDetails) -> UserError | None:
    """Return what a function or the class itself raised, where that is the mistake."""
    cause = mistake.get("ctx", {}).get("error")
    return cause if isinstance(cause, UserError) else None


def _user_error(
    adapter: TypeAdapter[Any],
    values: Any,
    mistake: ErrorDetails,
    what: str,
    do: str,
    do_missing: str,
    do_unknown: str,
) -> UserError:
    are_keys = _are_keys(values, mistake)
    keys = list(itertools.compress(mistake["loc"], are_keys))
    name = ".".join(map(str, (what, *keys) if what else keys)) or "file"
    refusal = _refusal(mistake)
    if refusal is not None:
        # A key of a table that is refused is its own value.
        field = name if all(are_keys) and refusal.field in keys else refusal.field
        return UserError(field, refusal.value, refusal.allowed, refusal.do)
    kind, given = mistake["type"], mistake["input"]
    if kind in _UNKNOWN:
        known = _known_keys(adapter.json_schema(), keys[:-1])
        near = get_close_matches(str(keys[-1]), known, n=1)
        return UserError(
            name,
            given,
            f"a known key ({', '.join(known)})",
            f"write {near[0]}" if near else do_unknown,
        )
    if kind in _MISSING:
        return UserError(name, None, "given", do_missing)
    if kind in ("literal_error", "enum"):
        return UserError(name, given, mistake["ctx"]["expected"], do)
    message = mistake["msg"][0].lower() + mistake["msg"][1:]
    return UserError(name, given, WANTED.get(kind, f"valid ({message})"), do)


def _inside(table: Mapping[str, Any], part: int | str) -> Mapping[str, Any]:
    """Return the schema of an entry of a list or a table; an empty one where there is none."""
    if isinstance(part, int):
        found = table.get("items", {})
    else:
        others = table.get("additionalProperties", {})
        found = table.get("properties", {}).get(part, others)
    return found if isinstance(found, Mapping) else {}


def _known_keys(schema: Mapping[str, Any], place: Sequence[int | str]) -> list[str]:
    """Return the keys of the table at ``place``, from the JSON schema of the whole."""
    definitions = schema.get("$defs", {})

    def tables(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if "$ref" in node:
            return tables(definitions[node["$ref"].rpartition("/")[2]])
        return [node, *(t for inner in node.get("anyOf", ()) for t in tables(inner))]

    found = tables(schema)
    for part in place:
        found = [t for node in found for t in tables(_inside(node, part))]
    return [key for table in found for key in table.get("properties", {})]
