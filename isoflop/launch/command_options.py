"""Options of the command line for where and how runs execute; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

import click

from isoflop.launch.sinks import NAMES
from isoflop.placement import HEADS, PARALLEL

_PLACEMENT_OPTIONS = (
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        help="[default: cpu; on a cluster, what its profile has]",
    ),
    click.option(
        "--parallel",
        type=click.Choice(PARALLEL),
        help="How the ranks of a run share it.  [default: single]",
    ),
    click.option(
        "--ranks",
        type=int,
        metavar="N",
        help="Processes that train one run together.  [default: 1]",
    ),
    click.option(
        "--micro-batch",
        type=int,
        metavar="N",
        help="Sequences at a time.  [default: the whole batch]",
    ),
    click.option(
        "--checkpoint-activations/--keep-activations",
        default=None,
        help="Recompute activations in the backward pass, to save memory.",
    ),
    click.option(
        "--compile/--no-compile",
        default=None,
        help="Use torch.compile where it computes the same.  [default: on GPUs, not with fsdp or "
        "channel]",
    ),
    click.option(
        "--head",
        type=click.Choice(HEADS),
        help="Rounding of float32 products, the head's above all.  [default: tf32 on CUDA]",
    ),
    click.option(
        "--checkpoint-every",
        type=float,
        metavar="SECONDS",
        help="Time between checkpoints.  [default: 300]",
    ),
    click.option(
        "--evaluate-every",
        type=int,
        metavar="STEPS",
        help="Held-out loss on the way, too.  [default: at the end only]",
    ),
    click.option(
        "--sink",
        "sinks",
        type=click.Choice(NAMES),
        multiple=True,
        help="Where metrics go too; may be given twice.",
    ),
)


def placement_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that take the place of entries in a study's [placement] table."""
    for option in reversed(_PLACEMENT_OPTIONS):
        command = option(command)
    return command
