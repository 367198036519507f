"""Seconds that families take for a training FLOP: what turns a compute multiplier into one of time.

Shared by at_scale.py (seconds predicted for a GPU) and clock.py (seconds measured on a CPU).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun

CellKey = tuple[str, int]
"""(arch, budget in training FLOPs)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondsPerFlop:
    """Device-seconds per training FLOP of one family at one budget, and how far they vary."""

    s_per_flop: float
    """Seconds at the centre of the grid, or at the optimum."""
    low: float
    """Seconds of the fastest: size of the grid, or timed step."""
    high: float
    """Seconds of the slowest."""

    def relative(self, reference: SecondsPerFlop) -> float:
        """Return seconds per FLOP over the reference's: the multiplier that breaks even by clock.

        A family that reaches the reference's loss with m times fewer FLOPs, each of which takes r
        times longer, takes r / m of its time.
        """
        return self.s_per_flop / reference.s_per_flop

    def over(self, reference: SecondsPerFlop) -> str:
        """Return the multiplier as text, in brackets those of the fastest and the slowest."""
        low, high = self.low / reference.s_per_flop, self.high / reference.s_per_flop
        return f"{self.relative(reference):.2f} ({low:.2f} to {high:.2f})"


def cells(plan: Plan) -> dict[CellKey, list[PlannedRun]]:
    """Return the runs of each family and budget, one a size, ascending in parameters."""
    found: dict[CellKey, dict[int, PlannedRun]] = {}
    for run in plan.runs:
        found.setdefault((run.arch, run.budget_flops), {}).setdefault(run.size, run)
    return {key: sorted(by.values(), key=lambda r: r.n_params) for key, by in found.items()}


def centre(values: Sequence[float]) -> float:
    """Return the middle value of a grid, or the mean of the middle two."""
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def by_cell(plan: Plan, seconds: Mapping[str, float]) -> dict[CellKey, SecondsPerFlop]:
    """Return seconds per FLOP of each family and budget at the centre of its grid.

    Args:
        plan: the plan.
        seconds: device-seconds of whole runs, by run id; a cell that lacks one is left out.
    """
    found = {}
    for key, runs in cells(plan).items():
        if all(run.run_id in seconds for run in runs):
            per_flop = [seconds[run.run_id] / run.flops for run in runs]
            found[key] = SecondsPerFlop(
                s_per_flop=centre(per_flop), low=min(per_flop), high=max(per_flop)
            )
    return found


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
