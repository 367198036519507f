"""The question before something is sent or ended."""

from __future__ import annotations

import sys

import click

from isoflop.errors import UserError


def confirm(question: str, otherwise: str, do: str = "add it") -> None:
    """Ask a person, and ends the command with ``otherwise`` where the answer is no.

    Raises:
        UserError: nobody can be asked; ``do`` says what to do instead.
    """
    if not sys.stdin.isatty():
        raise UserError("--yes", None, "given where nobody can be asked", do)
    if not click.confirm(question, default=False):
        click.echo(otherwise)
        sys.exit(0)
