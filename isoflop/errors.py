"""The exception for a user's mistake; the command line prints it in one line and exits with 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: names the field, the value, what is allowed, what to do.

    The message reads ``FIELD = VALUE: must be ALLOWED; DO``.
    """

    def __init__(self, field: str, value: object, allowed: str, do: str) -> None:
        shown = value if isinstance(value, _Shown) else repr(value)
        super().__init__(f"{field} = {shown}: must be {allowed}; {do}")
        self.field = field
        self.value = value
        self.allowed = allowed
        self.do = do

    def __reduce__(self) -> tuple[object, ...]:
        return (UserError, (self.field, self.value, self.allowed, self.do))


class _Shown(str):
    """A value printed as it stands, without quotes (numbers in the notation the user typed)."""

    __slots__ = ()


def shown(text: str) -> str:
    """Mark ``text`` to be printed without quotes in a :class:`UserError`."""
    return _Shown(text)


def failure_reason(error: BaseException) -> str:
    """Return any exception in one line: its type and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
