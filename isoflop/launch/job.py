"""What a worker is told of one run, and what it answers; plain values, for any launcher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isoflop.placement import Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Which run is to be trained, from which data, and how."""

    study_folder: str
    run_id: str
    data_folder: str
    keep_weights: str = "none"
    """none, best or all: the study's word."""
    placement: Placement = field(default_factory=Placement)
    convention: str = "paper"
    """The study's FLOP convention, in which rates are logged."""
    sinks: tuple[str, ...] = ()
    """Where metrics go besides the run's folder; see isoflop.launch.sinks."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Job:
        """Return the inverse of :meth:`to_json`."""
        placement = Placement(**values["placement"])
        return Job(**{**values, "placement": placement, "sinks": tuple(values["sinks"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a job ended: done, diverged, failed, held (another process has the run), interrupted."""

    status: str
    reason: str | None = None
    loss: float | None = None
    wall_s: float | None = None

    @staticmethod
    def of(result: Mapping[str, Any]) -> Ending:
        """Return how a run ended by its result, or by what training returned."""
        return Ending(
            status="interrupted" if result["status"] == "stopped" else result["status"],
            reason=result["status_reason"],
            loss=result["loss"],
            wall_s=result["wall_s"],
        )
