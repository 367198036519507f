"""Values in the names of runs: a pattern such as ``{arch}-{budget_flops}-N{n_params}``.

A pattern has literal text and fields in braces, and nothing else: no regular expression, so that no
name takes long to match.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from isoflop.errors import UserError

_FIELD = re.compile(r"\{([A-Za-z]\w*|_)\}")
_MAX_NAME = 250
IGNORED = "_"
"""The field whose text means nothing; it may be empty and may stand several times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamePattern:
    """A pattern of names: ``literals[0] {fields[0]} literals[1] {fields[1]} …``."""

    literals: tuple[str, ...]
    fields: tuple[str, ...]

    @property
    def named(self) -> tuple[str, ...]:
        """The fields whose text means something."""
        return tuple(field for field in self.fields if field != IGNORED)

    def match(self, name: str, is_number: Callable[[str, str], bool]) -> dict[str, str] | None:
        """Return the text of each field, None where the name does not fit the pattern.

        Of several ways to fit, the one with the shortest first field is taken, then the shortest
        second one.

        Args:
            name: of a run.
            is_number: whether a field may hold a text; (field, text) -> bool.
        """
        if len(name) > _MAX_NAME or not name.startswith(self.literals[0]):
            return None
        # Places from which a field does not fit, so that none is tried twice.
        failed: set[tuple[int, int]] = set()
        found = self._from(0, len(self.literals[0]), name, is_number, failed)
        if found is None:
            return None
        pairs = zip(self.fields, found, strict=True)
        return {field: text for field, text in pairs if field != IGNORED}

    def _from(
        self,
        index: int,
        start: int,
        name: str,
        accepts: Callable[[str, str], bool],
        failed: set[tuple[int, int]],
    ) -> tuple[str, ...] | None:
        if (index, start) in failed:
            return None
        field, literal = self.fields[index], self.literals[index + 1]
        is_last = index == len(self.fields) - 1
        end = len(name) - len(literal) if is_last else name.find(literal, start)
        while start <= end and name.startswith(literal, end):
            text = name[start:end]
            if field == IGNORED or (text and accepts(field, text)):
                after = end + len(literal)
                rest = () if is_last else self._from(index + 1, after, name, accepts, failed)
                if rest is not None:
                    return (text, *rest)
            if is_last:
                break
            end = name.find(literal, end + 1)
        failed.add((index, start))
        return None


def pattern_of(text: str, what: str) -> NamePattern:
    """Return the pattern that a text describes.

    Args:
        text: literal text and fields in braces.
        what: the option or key in the message.

    Raises:
        UserError: no field, an unknown brace, two fields that nothing parts, a field twice.
    """
    pieces = _FIELD.split(text)
    literals, fields = tuple(pieces[::2]), tuple(pieces[1::2])
    pattern = NamePattern(literals=literals, fields=fields)
    named = pattern.named
    allowed, do = "", "correct it"
    if any("{" in literal or "}" in literal for literal in literals):
        allowed = (
            "text and names in braces, such as {arch}-N{n_params} ({_} for what means nothing)"
        )
    elif not named:
        allowed, do = "a pattern with a name in braces", "write {n_params} where the number stands"
    elif "" in literals[1:-1]:
        allowed = "a pattern with text between two names"
    elif len(set(named)) < len(named):
        allowed, do = "a pattern that names each value once", "write {_} for the other"
    if allowed:
        raise UserError(what, text, allowed, do)
    return pattern
