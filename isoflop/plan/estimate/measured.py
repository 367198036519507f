"""What was measured of commands of the user's own, and how measured steps scale to other shapes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from isoflop.files import sha256_json
from isoflop.study.trainer import ArchTable, Trainer, filled
from isoflop.validate import CLOSED, Count, Digest, Ge, Lt, Whole

_FiniteSeconds = Annotated[float, Ge(0), Lt(math.inf)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedRun:
    """A short run, start to end."""

    __pydantic_config__: ClassVar = CLOSED

    steps: Count
    wall_s: _FiniteSeconds
    step_s: _FiniteSeconds | None = None
    """Seconds per step between its own reports; None: it made none, or too few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredCommand:
    """The command of one arch at one rung, on one machine."""

    __pydantic_config__: ClassVar = CLOSED

    arch: str
    """For people."""
    rung: Mapping[str, int | float | str]
    command_key: Digest
    """Of the command, see :func:`command_key`."""
    code: Digest
    """Of the trainer's code."""
    step_flops: Count
    """Of an optimizer step: every matrix product, or as declared."""
    num_ranks: Count
    step_s: _FiniteSeconds
    """Seconds per optimizer step: as reported, else by what runs of more steps took longer; 0.0:
    they did not."""
    start_s: _FiniteSeconds
    """Seconds of a run but for its steps: start-up, and evaluation at its end."""
    runs: tuple[TimedRun, ...]
    """By which step_s and start_s were told apart."""
    peak_mem_bytes: Whole | None
    """Per rank: of all processes on the CPU, of the GPU where it tells; None: not known."""


def command_key(trainer: Trainer, arch: ArchTable) -> str:
    """Return what is equal where runs of equal rungs and code take equally long for a step."""
    known = {"arch": arch.name}
    return sha256_json(
        {
            "command": [filled(text, known) for text in trainer.command_of(arch)],
            "env": {name: filled(text, known) for name, text in trainer.env_of(arch).items()},
            "batch_tokens": trainer.batch_tokens,
            "seq_len": trainer.seq_len,
            "data": trainer.data,
        }
    )


# Measured shapes that stand for one that was not.
NEAREST_SHAPES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRatio:
    """A measured shape beside the roofline's prediction of it."""

    family: str
    predicted_s: float
    ratio: float
    """Measured over predicted seconds of a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What the roofline of a shape that was not measured is multiplied by."""

    ratio: float
    """Geometric mean of measured over predicted."""
    low: float
    high: float
    """Its range over the shapes it is from."""
    num_shapes: int
    of_family: bool
    """Whether they are of the shape's own family; else of all families."""

    def describe(self) -> str:
        """Return what the number rests on, in a phrase."""
        shapes = "shape" if self.num_shapes == 1 else "shapes"
        whose = "" if self.of_family else " of other families"
        spread = "" if self.num_shapes == 1 else f", {self.low:.2f} to {self.high:.2f}"
        return (
            f"scaled from {self.num_shapes} measured {shapes}{whose}: "
            f"{self.ratio:.2f} times the roofline{spread}"
        )


def scale_of(family: str, predicted_s: float, measured: Sequence[MeasuredRatio]) -> Scale | None:
    """Return the scale of a shape from the nearest measured ones; None: nothing was measured.

    Nearest are those whose predicted steps take the most similar times. Of all families where none
    of its own was measured.

    Args:
        family: of the shape.
        predicted_s: the roofline's seconds of its step.
        measured: shapes with their ratios.
    """
    own = [each for each in measured if each.family == family]
    known = sorted(own or measured, key=lambda m: abs(math.log(m.predicted_s / predicted_s)))
    ratios = [each.ratio for each in known[:NEAREST_SHAPES]]
    if not ratios:
        return None
    return Scale(
        ratio=statistics.geometric_mean(ratios),
        low=min(ratios),
        high=max(ratios),
        num_shapes=len(ratios),
        of_family=bool(own),
    )
