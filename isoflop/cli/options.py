"""Options and arguments that several verbs have."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.errors import UserError, shown

if TYPE_CHECKING:
    from isoflop.plan.planner import Plan

WITH_CODE = click.option(
    "--with-code",
    is_flag=True,
    help="Import families from outside the package, if their sources are those that were planned.",
)


class _FolderOrTable(click.Path):
    """A path; a study file in its place is answered by what to type instead."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(value)
        if isinstance(param, click.Argument) and path.suffix == ".toml" and path.is_file():
            assert ctx is not None
            verb = " ".join(("isoflop", *ctx.command_path.split()[1:]))
            raise UserError(
                param.human_readable_name,
                str(path),
                "the folder of a plan, not its study file",
                _with_the_folder_of(path, verb),
            )
        return super().convert(value, param, ctx)


def _with_the_folder_of(study: Path, verb: str) -> str:
    """Return the commands that do what was meant by a verb with a study file."""
    import tomllib

    name = "NAME"
    # What is wrong in the file, `isoflop plan` says.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        name = str(tomllib.loads(study.read_text(encoding="utf-8"))["study"]["name"])
    folder = Path("results") / name
    then = f"{verb} {shlex.quote(str(folder))}"
    if (folder / "plan.json").is_file():
        return f"type: {then}"
    return f"type: isoflop plan {shlex.quote(str(study))}, then: {then}"


FOLDER = _FolderOrTable(path_type=Path, file_okay=False)
"""The folder of a plan, which may not exist yet."""

OUT_FOLDER = click.Path(path_type=Path, file_okay=False)
"""A folder for what a verb writes."""

FOLDER_OR_TABLE = _FolderOrTable(path_type=Path)

_SELECTION = (
    click.argument("runs", nargs=-1),
    click.option("--archs", metavar="A,B", help="Only runs of these archs."),
    click.option("--budgets", metavar="1e17,1e18", help="Only runs of these budgets."),
)


def selection(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument and the options that name runs of a plan, for :func:`selected`."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


def selected(
    plan: Plan, runs: tuple[str, ...], archs: str | None, budgets: str | None
) -> set[str] | None:
    """Return ids of the runs that were named on the command line; None: none was, so all.

    Raises:
        UserError: a run, arch or budget that the plan does not have, or none that has all of these.
    """
    from isoflop.plan.edit import select_runs

    flops = numbers_of_flops("--budgets", budgets)
    return select_runs(plan, runs, archs=words(archs), budgets=flops)


def selected_in(
    folder: Path, runs: tuple[str, ...], archs: str | None, budgets: str | None
) -> set[str] | None:
    """Return what :func:`selected` does of a folder's plan, which is read if any run is named."""
    if not (runs or archs or budgets):
        return None
    from isoflop.plan.artefact import read_plan

    return selected(read_plan(folder), runs, archs, budgets)


def words(text: str | None) -> list[str]:
    """Return the entries of a comma list such as mlp,swiglu; none where it was not given."""
    return [] if text is None else [word.strip() for word in text.split(",")]


def whole_numbers(name: str, text: str | None) -> list[int]:
    """Return the numbers of a comma list such as 1,2.

    Raises:
        UserError: an entry is no whole number.
    """
    for word in words(text):
        # isdecimal accepts digits of every script; int reads them all.
        if not word.isdecimal():
            raise UserError(name, shown(str(text)), "whole numbers such as 1,2", "correct it")
    return [int(word) for word in words(text)]


def numbers_of_flops(name: str, text: str | None) -> list[int]:
    """Return the budgets of a comma list such as 1e17,6e17.

    Raises:
        UserError: an entry is no whole number of FLOPs.
    """
    from isoflop.study import parse_flops

    return [parse_flops(word, name) for word in words(text)]
