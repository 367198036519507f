"""The runs of a plan as a design: what its power is simulated from, and designs with more runs.

Sharing trunks does not change a result, so that the same runs cost less and tell as much. What they
tell less than runs of independent noise, and what the saved FLOPs buy, are designs of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isoflop.plan.trunks import flops_of_steps, trunks_of

if TYPE_CHECKING:
    from isoflop.plan.planner import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """The runs of one arch at one budget, an entry each."""

    budget_flops: float
    log_x: tuple[float, ...]
    """ln of the parameters: the axis that optima are found on."""
    log_tokens: tuple[float, ...]
    flops: tuple[float, ...]
    trunks: tuple[Hashable | None, ...] = ()
    """The trunk of each run, None of one that shares none; empty where none does."""
    in_common: tuple[float, ...] = ()
    """Share of a run's FLOPs that its trunk executes where a longer run of it is there."""

    @property
    def num_sizes(self) -> int:
        """Distinct sizes."""
        return len(set(self.log_x))


Design = Mapping[str, tuple[Cell, ...]]
"""By arch: one cell a budget, ascending."""


def design_of(plan: Plan) -> dict[str, tuple[Cell, ...]]:
    """Return the design of a plan: what a simulation needs of its runs."""
    design: dict[str, list[Cell]] = {arch: [] for arch in plan.study.archs}
    trunks = trunks_of(plan)
    label_of = {run.run_id: f"{i}" for i, trunk in enumerate(trunks) for run in trunk.runs}
    forks = {
        run.run_id: fork
        for trunk in trunks
        for run, fork in zip(trunk.runs, trunk.forks, strict=True)
    }
    runs: dict[tuple[str, int], list[_Entry]] = {}
    for run in plan.runs:
        fork = forks.get(run.run_id, 0)
        entry = _Entry(
            log_x=math.log(run.n_params),
            log_tokens=math.log(run.n_tokens),
            flops=float(run.flops),
            trunk=label_of.get(run.run_id),
            in_common=flops_of_steps(run, fork) / run.flops if fork else 0.0,
        )
        runs.setdefault((run.arch, run.budget_flops), []).append(entry)
    for (arch, budget), entries in runs.items():
        design[arch].append(_cell(float(budget), entries))
    return {arch: tuple(cells) for arch, cells in design.items()}


def with_seed(design: Design) -> Design:
    """Return the design with one run more of each size."""
    return with_seeds_near(design, max(c.num_sizes for cells in design.values() for c in cells))


def with_seeds_near(design: Design, num_sizes: int) -> Design:
    """Return the design with one run more of so many sizes of each grid, the middle ones first."""
    return {
        arch: tuple(_extended(c, *_middle(c)[:num_sizes]) for c in cells)
        for arch, cells in design.items()
    }


def independent(design: Design) -> Design:
    """Return the design with runs that share nothing: a seed of its own at each budget."""
    return {
        arch: tuple(dataclasses.replace(c, trunks=(), in_common=()) for c in cells)
        for arch, cells in design.items()
    }


def with_size(design: Design) -> Design:
    """Return the design with one size more above each grid: its mean spacing, its seeds."""
    return {arch: tuple(_one_size_more(c) for c in cells) for arch, cells in design.items()}


def with_budget(design: Design) -> Design:
    """Return the design with one budget more, at the mean spacing, on the highest one's grid."""
    budgets = sorted({cell.budget_flops for cells in design.values() for cell in cells})
    # A single budget has no spacing; half a decade is a common one.
    spacing = (budgets[-1] / budgets[0]) ** (1 / max(1, len(budgets) - 1))
    factor = spacing if len(budgets) > 1 else math.sqrt(10)
    return {
        arch: (
            *cells,
            dataclasses.replace(
                cells[-1],
                budget_flops=cells[-1].budget_flops * factor,
                flops=tuple(flops * factor for flops in cells[-1].flops),
            ),
        )
        for arch, cells in design.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """One run of a cell."""

    log_x: float
    log_tokens: float
    flops: float
    trunk: Hashable | None = None
    in_common: float = 0.0


def _entries(cell: Cell) -> list[_Entry]:
    num = len(cell.log_x)
    columns = (
        cell.log_x,
        cell.log_tokens,
        cell.flops,
        cell.trunks or (None,) * num,
        cell.in_common or (0.0,) * num,
    )
    return [
        _Entry(log_x=x, log_tokens=tokens, flops=flops, trunk=trunk, in_common=share)
        for x, tokens, flops, trunk, share in zip(*columns, strict=True)
    ]


def _cell(budget_flops: float, entries: Sequence[_Entry]) -> Cell:
    shares = any(entry.trunk is not None for entry in entries)
    return Cell(
        budget_flops=budget_flops,
        log_x=tuple(entry.log_x for entry in entries),
        log_tokens=tuple(entry.log_tokens for entry in entries),
        flops=tuple(entry.flops for entry in entries),
        trunks=tuple(entry.trunk for entry in entries) if shares else (),
        in_common=tuple(entry.in_common for entry in entries) if shares else (),
    )


def _one_each(cell: Cell) -> list[_Entry]:
    """Return a run more of each size: of a trunk of its own where that size has one."""
    last = {entry.log_x: entry for entry in _entries(cell)}
    return [
        entry
        if entry.trunk is None
        else dataclasses.replace(entry, trunk=("seed more", entry.trunk))
        for entry in last.values()
    ]


def _middle(cell: Cell) -> list[_Entry]:
    """Return a run more of each size, those in the middle of the grid first."""
    middle = (max(cell.log_x) + min(cell.log_x)) / 2
    return sorted(_one_each(cell), key=lambda entry: abs(entry.log_x - middle))


def _extended(cell: Cell, *entries: _Entry) -> Cell:
    return _cell(cell.budget_flops, [*_entries(cell), *entries])


def _one_size_more(cell: Cell) -> Cell:
    if cell.num_sizes < 2:
        return cell
    ordered = sorted(_one_each(cell), key=lambda entry: (entry.log_x, entry.log_tokens))
    low, high = ordered[0], ordered[-1]
    steps = cell.num_sizes - 1
    log_x = high.log_x + (high.log_x - low.log_x) / steps
    new = dataclasses.replace(
        high,
        log_x=log_x,
        log_tokens=high.log_tokens + (high.log_tokens - low.log_tokens) / steps,
        # Of the same size at other budgets it is one training, if runs of the design are.
        trunk=None if high.trunk is None else ("size more", log_x),
    )
    num_seeds = round(len(cell.log_x) / cell.num_sizes)
    return _extended(
        cell,
        *(
            new if new.trunk is None else dataclasses.replace(new, trunk=(new.trunk, seed))
            for seed in range(num_seeds)
        ),
    )


def total_flops(design: Design) -> float:
    """Return training FLOPs of all runs, as if each was trained alone."""
    return math.fsum(flops for cells in design.values() for cell in cells for flops in cell.flops)


def executed_flops(design: Design) -> float:
    """Return training FLOPs that are executed, what trunks have in common once."""
    spent = []
    for cells in design.values():
        entries = [entry for cell in cells for entry in _entries(cell)]
        longest: dict[Hashable, float] = {}
        for entry in entries:
            if entry.trunk is not None:
                longest[entry.trunk] = max(entry.flops, longest.get(entry.trunk, 0.0))
        spent += [
            entry.flops * (1 - entry.in_common)
            if entry.flops < longest.get(entry.trunk, 0.0)
            else entry.flops
            for entry in entries
        ]
    return math.fsum(spent)


def num_runs(design: Design) -> int:
    """Return the number of runs."""
    return sum(len(cell.log_x) for cells in design.values() for cell in cells)
