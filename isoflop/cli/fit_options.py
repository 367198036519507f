"""The options that say how to fit, of the verbs that fit."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import click

from isoflop.analysis.bootstrap import Requested
from isoflop.analysis.laws import BUDGETS
from isoflop.analysis.optima_methods import DEFAULT_METHOD, METHODS
from isoflop.analysis.parametric.terms import HUBER_DELTA
from isoflop.analysis.screening import Repeats
from isoflop.errors import UserError, shown
from isoflop.ingest.budgets import Budgets
from isoflop.units import UNITS

_Option = Callable[[Callable[..., None]], Callable[..., None]]


def _irreducible_loss(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> float | None:
    """Return the loss that ``E=LOSS`` gives; UserError for anything else."""
    if text is None:
        return None
    values = given_parameters("--fix", text, ("E",))
    return values["E"]


def given_parameters(option: str, text: str, names: Sequence[str]) -> dict[str, float]:
    """Return the values of ``NAME=VALUE,…``, all of the names.

    Raises:
        UserError: it reads otherwise, or a value is no number that a law can have.
    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    values: dict[str, float] = {}
    with contextlib.suppress(ValueError):
        values = {name.strip(): float(value) for name, _, value in pairs}
    is_right = all(math.isfinite(value) and value >= 0 for value in values.values())
    if sorted(values) != sorted(names) or len(pairs) != len(names) or not is_right:
        allowed = ",".join(f"{name}=NUMBER" for name in names)
        raise UserError(option, text, f"{allowed}, none below 0", "correct it")
    return values


REFERENCE = click.option(
    "--reference",
    metavar="ARCH",
    help="What the others are compared with.  [default: swiglu, else mlp, else the first]",
)
LOSS_UNIT = click.option(
    "--loss-unit",
    metavar="UNIT",
    help=f"What the losses of a table that does not say are: {', '.join(UNITS)}, or the name of a "
    "metric of which less is better.  [default: nats_per_token]",
)
SCREENING = (
    click.option(
        "--budgets",
        type=click.Choice(get_args(Budgets)),
        default="given",
        show_default=True,
        help="Budgets as the table gives them; near-equal ones as one (round); or, whatever the "
        "table gives, those that FLOPs gather at (auto).",
    ),
    click.option("--round-budgets", is_flag=True, help="The same as --budgets round."),
    click.option(
        "--repeats",
        type=click.Choice(get_args(Repeats)),
        help="Runs of one size and budget that no seed tells apart: their mean counts (seeds), or "
        "the lowest loss (best).  [default: none of them counts]",
    ),
    click.option(
        "--screen/--no-screen",
        default=True,
        show_default=True,
        help="Leave out losses far from the curve of the other sizes, and runs off their budget.",
    ),
)
FIT_OPTIONS = (
    click.option(
        "--method",
        type=click.Choice(tuple(METHODS)),
        default=DEFAULT_METHOD,
        show_default=True,
        help="How optima are found for laws, comparisons and plots; the tables have all.",
    ),
    click.option(
        "--axis",
        metavar="COUNT",
        default="n_params",
        show_default=True,
        help="Count that comparisons and plots are over: n_params, n_tokens, n_active, n_nonembed "
        "or another column of the table. The tables have the first three and it.",
    ),
    click.option(
        "--law-budget",
        type=click.Choice(("auto", *BUDGETS)),
        default="auto",
        show_default=True,
        help="C of laws: FLOPs achieved where all runs tell them, else nominal; tables have both.",
    ),
    REFERENCE,
    click.option(
        "--bootstrap",
        type=click.Choice(get_args(Requested)),
        default="auto",
        show_default=True,
        help="Kind of the intervals; auto takes what the table can support.",
    ),
    click.option(
        "--n-boot",
        type=click.IntRange(min=0),
        default=1000,
        show_default=True,
        help="Bootstrap draws; 0 for no intervals.",
    ),
    click.option("--tied", is_flag=True, help="One exponent for both terms of the surface."),
    click.option(
        "--fix",
        "fixed_e",
        metavar="E=LOSS",
        callback=_irreducible_loss,
        help="The surface's irreducible loss, where it is known, as in E=1.7.",
    ),
    click.option(
        "--huber-delta",
        type=click.FloatRange(min=0, min_open=True, max=1),
        default=HUBER_DELTA,
        show_default=True,
        help="Residuals of ln L beyond it weigh linearly in the surface.",
    ),
    *SCREENING,
)


def fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how to fit; their names are those of FitOptions."""
    return _with(FIT_OPTIONS, command)


def screening_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which runs enter; their names are those of FitOptions."""
    return _with(SCREENING, command)


def _with(options: Sequence[_Option], command: Callable[..., None]) -> Callable[..., None]:
    decorated = _with_round_budgets(command)
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def _with_round_budgets(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command of a ``budgets`` that --round-budgets sets."""

    @functools.wraps(command)
    def with_budgets(*args: Any, budgets: str, round_budgets: bool, **chosen: Any) -> None:
        if round_budgets and budgets == "auto":
            allowed = "given alone"
            do = "leave one of them out"
            raise UserError("--round-budgets", shown("with --budgets auto"), allowed, do)
        command(*args, budgets="round" if round_budgets else budgets, **chosen)

    return with_budgets
