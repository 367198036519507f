"""How sharp the answer of a plan can be: intervals to expect, by simulation, before any run.

Losses are drawn from a stated surface with stated noise for every run of the plan, fitted like
results (a parabola per budget, power laws through the interior optima), and the spread over the
draws is reported. It is an estimate: PowerReport.assumptions says on what it rests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isoflop.analysis.simulation import (
    CHINCHILLA,
    SEED,
    Design,
    Floats,
    Surface,
    design_of,
    fit_lines,
    simulate,
    total_flops,
    with_budget,
    with_seed,
    with_size,
)
from isoflop.errors import UserError
from isoflop.numbers import format_flops

if TYPE_CHECKING:
    from isoflop.plan.planner import Plan

DEFAULT_NOISE = 0.005
# The half-width of a 95 % interval from 2,000 draws is itself uncertain by about 3 %.
NUM_DRAWS = 2000

# With fewer draws than this share the spread of those left over describes nothing.
MIN_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchPower:
    """What to expect for one arch. None: fewer than half of the draws gave a value."""

    arch: str
    num_runs: int
    exponent_sd: float | None
    """Standard deviation of the exponent a of N* ∝ C^a over the draws."""
    exponent_halfwidth: float | None
    """Half of the distance from the 2.5 % to the 97.5 % quantile of a."""
    multipliers: Mapping[float, float | None]
    """By budget: the factor by which the compute multiplier against the reference is uncertain
    (its 95 % interval is the value × or ÷ this factor). Empty for the reference itself."""
    edge_share: float
    """Share of the simulated optima that are no interior optima, and so are lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DesignPower:
    """A whole design: the plan as it is, or with something added. Widest of all archs."""

    label: str
    num_runs: int
    cost: float
    """Training FLOPs, as a multiple of the plan's."""
    exponent_halfwidth: float | None
    multiplier: float | None
    """At the lowest or highest budget of the plan, whichever is wider."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerReport:
    """The intervals to expect from a plan, and what more runs would buy."""

    noise: float
    """Standard deviation of ln(loss) between runs that differ in their seed only."""
    num_draws: int
    seed: int
    reference: str
    """The arch that multipliers refer to."""
    archs: tuple[ArchPower, ...]
    designs: tuple[DesignPower, ...]
    """The plan as it is, then one seed, one size and one budget more."""
    assumptions: tuple[str, ...]


def estimate_power(
    plan: Plan,
    *,
    noise: float = DEFAULT_NOISE,
    reference: str | None = None,
    num_draws: int = NUM_DRAWS,
    surface: Surface = CHINCHILLA,
) -> PowerReport:
    """The 95 % intervals to expect from a plan, by simulation; the same plan, the same answer.

    Args:
        plan: the plan; its budgets, sizes and seeds are the design.
        noise: standard deviation of ln(loss) between seeds: 0.005 is half a percent of the loss.
        reference: arch that compute multipliers refer to; None: the first of the study.
        num_draws: simulated studies.
        surface: where the losses come from.

    Raises:
        UserError: noise is not a number above 0 and below 1, or the reference is not in the plan.
    """
    if plan.study.epochs:
        do = "leave --power out: the intervals are those of optima over sizes at one budget"
        raise UserError("epochs", list(plan.study.epochs), "budgets", do)
    if not 0 < noise < 1:
        raise UserError("--noise", noise, "a number above 0 and below 1", "take 0.005 or so")
    design = design_of(plan)
    reference = reference or plan.study.archs[0]
    if reference not in design:
        raise UserError(
            "reference", reference, f"one of {', '.join(design)}", "name an arch of the plan"
        )
    variants = {
        "as planned": design,
        "one seed more": with_seed(design),
        "one size more": with_size(design),
        "one budget more": with_budget(design),
    }
    cost = total_flops(design)
    powers = {
        label: _arch_powers(variant, reference, noise, num_draws, surface)
        for label, variant in variants.items()
    }
    return PowerReport(
        noise=noise,
        num_draws=num_draws,
        seed=SEED,
        reference=reference,
        archs=powers["as planned"],
        designs=tuple(
            _summary(label, powers[label], total_flops(variant) / cost, plan.study.budgets)
            for label, variant in variants.items()
        ),
        assumptions=_assumptions(design, noise, num_draws, surface),
    )


def _arch_powers(
    design: Design, reference: str, noise: float, num_draws: int, surface: Surface
) -> tuple[ArchPower, ...]:
    simulated = {
        arch: simulate(cells, stream, noise, num_draws, surface)
        for stream, (arch, cells) in enumerate(design.items())
    }
    frontier = simulated[reference]
    slope, intercept = fit_lines(frontier.log_budgets, frontier.log_loss)
    # A frontier that does not fall with compute has no inverse.
    slope = np.where(slope < 0, slope, np.nan)
    powers = []
    for arch, cells in design.items():
        own = simulated[arch]
        exponent, _ = fit_lines(own.log_budgets, own.log_x)
        log_multiplier = (own.log_loss - intercept[:, None]) / slope[:, None] - own.log_budgets
        powers.append(
            ArchPower(
                arch=arch,
                num_runs=sum(len(cell.log_x) for cell in cells),
                exponent_sd=_sd(exponent),
                exponent_halfwidth=_halfwidth(exponent),
                multipliers={}
                if arch == reference
                else {
                    cell.budget_flops: _exp(_halfwidth(log_multiplier[:, index]))
                    for index, cell in enumerate(cells)
                },
                edge_share=float(np.isnan(own.log_x).mean()),
            )
        )
    return tuple(powers)


def _enough(values: Floats) -> Floats | None:
    there = values[np.isfinite(values)]
    return there if len(there) >= MIN_SHARE * len(values) else None


def _sd(values: Floats) -> float | None:
    there = _enough(values)
    return None if there is None else float(there.std(ddof=1))


def _halfwidth(values: Floats) -> float | None:
    there = _enough(values)
    if there is None:
        return None
    low, high = np.quantile(there, (0.025, 0.975))
    return float(high - low) / 2


def _exp(log_factor: float | None) -> float | None:
    # Beyond this the answer is "nothing at all", and exp would overflow.
    return None if log_factor is None or log_factor > 100 else math.exp(log_factor)


def _summary(
    label: str, powers: Sequence[ArchPower], cost: float, budgets: Sequence[int]
) -> DesignPower:
    outer = {float(budgets[0]), float(budgets[-1])}
    return DesignPower(
        label=label,
        num_runs=sum(power.num_runs for power in powers),
        cost=cost,
        exponent_halfwidth=_widest([power.exponent_halfwidth for power in powers]),
        multiplier=_widest(
            [factor for p in powers for b, factor in p.multipliers.items() if b in outer]
        ),
    )


def _widest(values: Sequence[float | None]) -> float | None:
    """Return the largest; None if there is none or one of them is not known."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _assumptions(design: Design, noise: float, num_draws: int, surface: Surface) -> tuple[str, ...]:
    lines = [
        f"estimate by simulation: {num_draws} seeded draws of every loss, fitted like results "
        "(a parabola in ln parameters per budget, power laws through the interior optima)",
        f"loss noise between seeds: {noise:g} of the loss (standard deviation of ln loss), the "
        "same everywhere, independent between runs; measure it with repeated seeds",
        f"loss surface: {surface.e} + {surface.a}/N^{surface.alpha} + "
        f"{surface.b}/D^{surface.beta} ({surface.source}), the same for every arch: the true "
        "multiplier is 1",
        "shifted so that each arch's optimum is at the centre of its grid at every budget; off "
        "centre, intervals are wider and optima get lost at edges",
        "compute multiplier: budget at which the reference's fitted loss line reaches the arch's "
        "optimal loss, over the arch's budget",
    ]
    lowest = min(cells[0].budget_flops for cells in design.values())
    if lowest < surface.lowest_flops:
        lines.append(
            f"budgets below {format_flops(surface.lowest_flops)}, where the surface was never "
            f"measured, are moved up together until the lowest is there; {format_flops(lowest)} "
            "may well differ"
        )
    return tuple(lines)
