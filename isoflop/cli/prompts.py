"""The question before jobs are submitted or ended."""

from __future__ import annotations

import sys

import click

from isoflop.errors import UserError


def confirm(question: str, otherwise: str, do: str = "add it") -> None:
    """Ask a person to confirm; where the answer is no, print ``otherwise`` and exit.

    Raises:
        UserError: there is no terminal to ask at; ``do`` says what to do instead.
    """
    if not sys.stdin.isatty():
        raise UserError("--yes", None, "given where nobody can be asked", do)
    if not click.confirm(question, default=False):
        click.echo(otherwise)
        sys.exit(0)
