"""What goes to the terminal: texts of files may hold characters that a terminal would obey.

A study's folder, a log or a corpus may come from anybody. Escape sequences in it could hide or
invent lines, so that none of them is printed as it is: neither by `click.echo` nor in tables.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from isoflop.texts import LINES, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


class _Escaping:
    """A stream that escapes what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        # By this name rich finds the stream itself, to which it sends its colours.
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write text, but for line ends and tabs without control characters."""
        return self.rich_proxied_file.write(printable(text, LINES))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what is written to the standard streams meanwhile, tables of rich aside."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Escaping(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@functools.cache
def console_class() -> type[Console]:
    """Return a rich console that escapes texts; its own control sequences are as they are."""
    # Imported here: help needs no table.
    from rich.console import Console

    class EscapingConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text, LINES), **options)

    return EscapingConsole
