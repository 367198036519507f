"""Time and memory of runs by a command of the user's own: measured, or from FLOPs alone.

Where `isoflop calibrate` timed a rung, its runs take start-up and so many steps. Between rungs that
were timed, all three numbers lie on straight lines over the FLOPs of a step.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from isoflop.plan.estimate.hardware import Calibration, Hardware
from isoflop.plan.estimate.measured import MeasuredCommand, command_key
from isoflop.spec import TrainerSpec

if TYPE_CHECKING:
    from isoflop.plan.planner import Plan
    from isoflop.plan.runs import PlannedRun

# Without a word of the command's own precision, that of nearly all training.
_PRECISION = {"cpu": "fp32", "cuda": "bf16"}

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandEstimate:
    """What a run by a command is expected to take."""

    step_s: float
    start_s: float | None
    """Seconds of the run but for its steps; None: not known."""
    peak_mem_bytes: int | None
    """Per rank; None: not known."""
    source: Literal["calibrated", "interpolated", "flops"]
    """`calibrated`: its rung was measured; `interpolated`: others were; `flops`: none was."""


class CommandEstimator:
    """Estimates for the runs of a plan's trainer.

    Args:
        plan: of a study with a trainer.
        hardware: what FLOPs alone are held against.
        calibration: what was measured, on that kind of device; None: nothing.
    """

    def __init__(self, plan: Plan, hardware: Hardware, calibration: Calibration | None) -> None:
        study = plan.study
        assert study.trainer is not None
        self._hardware = hardware
        self._calibration = calibration
        self.num_ranks = study.placement.get("ranks", 1)
        self._step_flops = {
            (each.arch, each.size): each.count.training_flops * study.trainer.batch_tokens
            for each in plan.counts
        }
        self._archs = [arch for arch in study.archs if study.has_trainer(arch)]
        self._most_steps: dict[str, int] = {}
        for run in plan.runs:
            most = max(run.spec.steps, self._most_steps.get(run.arch, 0))
            self._most_steps[run.arch] = most
        codes = {run.spec.code for run in plan.runs if isinstance(run.spec, TrainerSpec)}
        measured = () if calibration is None else calibration.commands
        self._measured: dict[str, list[MeasuredCommand]] = {}
        self._of_other_code: list[str] = []
        for arch in self._archs:
            key = command_key(study.trainer, study.trainer_arch(arch))
            own = [m for m in measured if (m.command_key, m.num_ranks) == (key, self.num_ranks)]
            same = [each for each in own if each.code in codes]
            self._measured[arch] = same or own
            if own and not same:
                self._of_other_code.append(arch)

    def run(self, run: PlannedRun) -> CommandEstimate:
        """Return the estimate of a run of the trainer."""
        assert isinstance(run.spec, TrainerSpec)
        measured = self._measured[run.arch]
        if not measured:
            return CommandEstimate(
                step_s=run.flops / run.spec.steps / self.num_ranks / self._flops_per_s,
                start_s=None,
                peak_mem_bytes=None,
                source="flops",
            )
        for each in measured:
            if each.rung == run.spec.rung:
                return CommandEstimate(
                    step_s=each.step_s,
                    start_s=each.start_s,
                    peak_mem_bytes=each.peak_mem_bytes,
                    source="calibrated",
                )
        flops = self._step_flops[run.arch, run.size]
        memory = [(m.step_flops, m.peak_mem_bytes) for m in measured if m.peak_mem_bytes]
        return CommandEstimate(
            step_s=on_line([(m.step_flops, m.step_s) for m in measured], flops, through_0=True),
            start_s=on_line([(m.step_flops, m.start_s) for m in measured], flops),
            # One size says nothing of the memory of another.
            peak_mem_bytes=round(on_line(memory, flops)) if len(memory) > 1 else None,
            source="interpolated",
        )

    @property
    def _flops_per_s(self) -> float:
        return self._hardware.matmul_rate(_PRECISION[self._hardware.kind])

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the estimates take for granted, in sentences."""
        lines = []
        rungs = [f"{m.arch} {_rung_text(m)}" for each in self._measured.values() for m in each]
        if rungs and self._calibration is not None:
            lines.append(
                f"own trainer: steps and start-up of {', '.join(rungs)} "
                f"{self._calibration.describe()}, each alone; start-up is what a run does once, "
                "evaluation at its end included; what only longer runs do is not in it"
            )
            lines.append(
                "own trainer: other rungs by straight lines over the FLOPs of a step through "
                "those measured; with one measured, a step's time is proportional to its FLOPs and "
                "start-up the same"
            )
        if not all(self._measured.values()):
            name, efficiency = self._hardware.name, self._hardware.matmul_efficiency
            lines.append(
                f"own trainer, from FLOPs alone: its products reach {efficiency:.0%} of {name}'s "
                f"peak in {_PRECISION[self._hardware.kind]}, nothing else takes time; neither "
                "start-up nor memory is known"
            )
        return tuple(lines)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader has to know beside the numbers: a line each."""
        lines = []
        if self._of_other_code:
            lines.append(
                f"warning: times of {', '.join(self._of_other_code)} were measured with other code "
                "of the trainer; `isoflop calibrate` measures them again"
            )
        not_told = [
            f"{arch} {_rung_text(each)}"
            for arch, measured in self._measured.items()
            for each in measured
            if each.step_s == 0 and each.runs[-1].steps < self._most_steps.get(arch, 0)
        ]
        if not_told:
            lines.append(
                f"warning: the time of steps was not told from start-up for {', '.join(not_told)}: "
                "longer runs take longer than is said; `isoflop calibrate` with more --steps"
            )
        without = [arch for arch, measured in self._measured.items() if not measured]
        if without:
            known = self._calibration is not None and bool(self._calibration.commands)
            why = f" (calibrated: other commands{self._ranks_text})" if known else ""
            lines.append(
                f"from FLOPs alone, without start-up, evaluation and data: times of "
                f"{', '.join(without)}{why}; memory is not known; `isoflop calibrate` measures both"
            )
        return tuple(lines)

    @property
    def _ranks_text(self) -> str:
        return "" if self.num_ranks == 1 else f", or not with {self.num_ranks} ranks"


def on_line(points: Points, x: float, *, through_0: bool = False) -> float:
    """Return the value at ``x`` on straight lines between points; never below 0.

    Beyond the outer points the nearest line goes on, if it rises; else their values do.

    Args:
        points: pairs of x and value, in any order; those of equal x count by their mean.
        x: where.
        through_0: whether the value is 0 at 0: with one point it is proportional to x, else it is
            the same; below the first of several it is not below that proportion.
    """
    by_x: dict[float, list[float]] = {}
    for at, value in points:
        by_x.setdefault(at, []).append(value)
    known = sorted((at, statistics.fmean(values)) for at, values in by_x.items())
    if len(known) == 1:
        ((only_x, value),) = known
        return value * x / only_x if through_0 else value
    (x0, y0), (x1, y1) = _nearest(known, x)
    slope = (y1 - y0) / (x1 - x0)
    if x < x0:
        least = y0 * x / x0 if through_0 else 0.0
        return max(least, y0 + max(0.0, slope) * (x - x0))
    return y1 + (max(0.0, slope) if x > x1 else slope) * (x - x1)


def _nearest(known: Points, x: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the two neighbours of x, or the two outer points next to it."""
    pairs = list(itertools.pairwise(known))
    return next((pair for pair in pairs if x <= pair[1][0]), pairs[-1])


def _rung_text(measured: MeasuredCommand) -> str:
    return " ".join(f"{name} {value}" for name, value in measured.rung.items())
