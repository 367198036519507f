"""What short runs of a command of the user's own took, as a calibration keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
