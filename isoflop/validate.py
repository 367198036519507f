"""Values of a file as one of the project's dataclasses, checked by pydantic.

The types of a dataclass's fields are the file's schema; what a type cannot say is checked in its
``__post_init__``. Whatever is wrong becomes one :class:`UserError`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from annotated_types import Ge

from isoflop.errors import UserError

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadBy:
    """Annotates a field whose values in a file are first read by a function.

    As `pydantic.BeforeValidator`, which is slow to import. A UserError of the function comes
    through as it is.
    """

    function: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return pydantic's schema of the field: the function, then the field's own type."""
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.function, handler(source))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """Annotates a text that a regular expression has to match.

    As the `pattern` of `pydantic.Field`, which is slow to import.
    """

    regex: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return pydantic's schema of the text, with the pattern."""
        return handler(source) | {"pattern": self.regex}


Count = Annotated[int, Ge(1)]
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
    try:
        # JSON is where strict pydantic takes a list for a tuple and a table for a dataclass.
        return adapter.validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        mistake = _most_telling(error.errors())
        cause = mistake.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            raise cause from None
        raise _user_error(adapter, mistake, what, do, do_missing, do_unknown) from None


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _most_telling(mistakes: Sequence[ErrorDetails]) -> ErrorDetails:
    """Return the first mistake; of those of a union's alternatives, the one that went deepest."""
    first = mistakes[0]["loc"]
    shared = next((i for i, part in enumerate(first) if _is_type_name(part)), len(first))
    if shared == len(first):
        return mistakes[0]
    alternatives = [each for each in mistakes if each["loc"][:shared] == first[:shared]]
    return max(alternatives, key=lambda each: len(each["loc"]))


def _user_error(
    adapter: TypeAdapter[Any],
    mistake: ErrorDetails,
    what: str,
    do: str,
    do_missing: str,
    do_unknown: str,
) -> UserError:
    keys = [part for part in mistake["loc"] if not _is_type_name(part)]
    name = ".".join(map(str, (what, *keys) if what else keys)) or "file"
    kind, given = mistake["type"], mistake["input"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(adapter.json_schema(), keys[:-1])
        near = get_close_matches(str(keys[-1]), known, n=1)
        return UserError(
            name,
            given,
            f"a known key ({', '.join(known)})",
            f"write {near[0]}" if near else do_unknown,
        )
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return UserError(name, None, "given", do_missing)
    if kind in ("literal_error", "enum"):
        return UserError(name, given, mistake["ctx"]["expected"], do)
    message = mistake["msg"][0].lower() + mistake["msg"][1:]
    return UserError(name, given, WANTED.get(kind, f"valid ({message})"), do)


def _is_type_name(part: int | str) -> bool:
    """Return whether a part of a location names an alternative of a union, not a key."""
    is_plain = part in ("float", "int", "str", "bool")
    return is_plain or str(part).startswith(
        ("list[", "dict[", "tuple[", "constrained-", "function-")
    )


def _known_keys(schema: Mapping[str, Any], place: Sequence[int | str]) -> list[str]:
    """Return the keys of the table at ``place``, from the JSON schema of the whole."""
    definitions = schema.get("$defs", {})

    def tables(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if "$ref" in node:
            return tables(definitions[node["$ref"].rpartition("/")[2]])
        return [node, *(t for inner in node.get("anyOf", ()) for t in tables(inner))]

    found = tables(schema)
    for part in place:
        inner = (
            t["items"] if isinstance(part, int) else t["properties"][part]
            for t in found
            if ("items" in t if isinstance(part, int) else part in t.get("properties", {}))
        )
        found = [t for node in inner for t in tables(node)]
    return [key for table in found for key in table.get("properties", {})]
