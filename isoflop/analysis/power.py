"""How sharp the answer of a plan can be: intervals to expect, by simulation, before any run.

Losses are drawn from a stated surface with stated noise for every run of the plan, fitted like
results (an optimum per budget by the default method, power laws through the interior ones), and the
spread over the draws is reported. It is an estimate: PowerReport.assumptions says on what it rests.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isoflop.analysis.designs import (
    Cell,
    Design,
    design_of,
    executed_flops,
    independent,
    num_runs,
    total_flops,
    with_budget,
    with_seed,
    with_seeds_near,
    with_size,
)
from isoflop.analysis.laws import fit_known_lines
from isoflop.analysis.optima_methods import DEFAULT_METHOD, METHODS
from isoflop.analysis.parametric import ChinchillaLaw
from isoflop.analysis.shared_noise import DEFAULT, DEFAULT_SOURCE
from isoflop.arrays import Floats, percentiles
from isoflop.errors import UserError
from isoflop.numbers import format_flops

if TYPE_CHECKING:
    from isoflop.plan.planner import Plan

DEFAULT_NOISE = 0.005
# The half-width of a 95 % interval from 2,000 draws is itself uncertain by about 3 %.
NUM_DRAWS = 2000
SEED = 0
_STREAM_OF_TRUNKS = 22_083
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """A published loss surface, for training FLOPs C = 6·N·D."""

    law: ChinchillaLaw
    source: str
    lowest_flops: float
    """Below this the surface is not used; see assumptions."""


CHINCHILLA = Surface(
    law=ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
    source="Besiroglu et al. 2024, arXiv 2404.10102 (refit of Hoffmann et al. 2022)",
    lowest_flops=1e17,
)


def true_losses(cell: Cell, flops: float, surface: Surface) -> Floats:
    """Return noise-free losses [runs], nats per token, with the optimum at the centre of the grid.

    How much larger a run's model is than the centre is read from its tokens (fewer by the same
    factor at equal FLOPs), since parameters of sparse families are not what FLOPs pay for.
    """
    law = surface.law
    n_opt, d_opt = law.optimum(flops)
    log_tokens = np.array(cell.log_tokens)
    larger = (log_tokens.max() + log_tokens.min()) / 2 - log_tokens
    return np.asarray(law.loss(n_opt * np.exp(larger), d_opt / np.exp(larger)))


def fit_optima(cell: Cell, losses: Floats) -> tuple[Floats, Floats]:
    """Return ln x and ln loss of each draw's optimum [draws]; NaN where it is not interior.

    Args:
        cell: the design that the losses belong to.
        losses: nats per token [draws, runs].
    """
    if cell.num_sizes < METHODS[DEFAULT_METHOD].min_sizes:
        return np.full(len(losses), np.nan), np.full(len(losses), np.nan)
    log_x = np.array(cell.log_x)
    order = np.argsort(log_x, kind="stable")
    minima = METHODS[DEFAULT_METHOD].find(log_x[order], losses[:, order], None)
    usable = minima.loss > 0
    return np.where(usable, minima.log_x, np.nan), np.log(np.where(usable, minima.loss, np.nan))


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """One arch's optima over all draws."""

    log_budgets: Floats
    """[budgets]"""
    log_x: Floats
    """Without the noise-free optimum, so that the true exponent is 0 [draws, budgets]."""
    log_loss: Floats
    """[draws, budgets]"""


def simulate(
    cells: Sequence[Cell], stream: int, noise: float, num_draws: int, surface: Surface
) -> Simulated:
    """Draw the losses of one arch and fit them.

    Args:
        cells: one per budget, ascending.
        stream: number of the arch, for its random numbers.
        noise: standard deviation of ln(loss).
        num_draws: simulated studies.
        surface: where the losses come from.
    """
    scale = max(1.0, surface.lowest_flops / cells[0].budget_flops)
    optima = []
    for index, cell in enumerate(cells):
        rng = np.random.default_rng((SEED, stream, index))
        errors = _with_trunks(rng.standard_normal((num_draws, len(cell.log_x))), cell, stream)
        truth = true_losses(cell, cell.budget_flops * scale, surface)
        log_x, log_loss = fit_optima(cell, truth * np.exp(noise * errors))
        # Relative to the fit without noise: grids need not be centred on one power law, and which
        # budgets a draw loses at an edge must not look like noise in the exponent.
        noise_free, _ = fit_optima(cell, truth[None])
        optima.append((log_x - np.nan_to_num(noise_free), log_loss))
    return Simulated(
        log_budgets=np.log([cell.budget_flops for cell in cells]),
        log_x=np.stack([log_x for log_x, _ in optima], axis=1),
        log_loss=np.stack([log_loss for _, log_loss in optima], axis=1),
    )


def _with_trunks(errors: Floats, cell: Cell, stream: int) -> Floats:
    """Return noise [draws, runs] of which runs of one trunk have a part in common."""
    rho = DEFAULT.value
    for place, trunk in enumerate(cell.trunks):
        if trunk is not None:
            entropy = (SEED, _STREAM_OF_TRUNKS, stream, zlib.crc32(repr(trunk).encode()))
            common = np.random.default_rng(entropy).standard_normal(len(errors))
            errors[:, place] = np.sqrt(rho) * common + np.sqrt(1 - rho) * errors[:, place]
    return errors


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
    """Training FLOPs executed, as a multiple of the plan's."""
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
    """The plan as it is, then one seed, one size and one budget more. Of a plan that shares trunks
    also: the same runs trained alone, runs that share no noise, and what sharing saves in seeds."""
    assumptions: tuple[str, ...]


def estimate_power(
    plan: Plan,
    *,
    noise: float = DEFAULT_NOISE,
    reference: str | None = None,
    num_draws: int = NUM_DRAWS,
    surface: Surface = CHINCHILLA,
) -> PowerReport:
    """Return the 95 % intervals to expect from a plan, by simulation; the same for the same plan.

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
        **_without_trunks(design),
    }
    costs = {label: executed_flops(variant) for label, variant in variants.items()}
    if ALONE in variants:
        costs[ALONE] = total_flops(design)
    powers = {
        label: _arch_powers(variant, reference, noise, num_draws, surface)
        for label, variant in variants.items()
        if label != ALONE
    }
    # Results are the same to the last bit, and so is what they tell.
    powers[ALONE] = powers["as planned"]
    return PowerReport(
        noise=noise,
        num_draws=num_draws,
        seed=SEED,
        reference=reference,
        archs=powers["as planned"],
        designs=tuple(
            _summary(label, powers[label], costs[label] / costs["as planned"], plan.study.budgets)
            for label in variants
        ),
        assumptions=_assumptions(design, noise, num_draws, surface),
    )


ALONE = "as planned, each run trained alone"
INDEPENDENT = "other seeds at each budget, nothing shared"


def _without_trunks(design: Design) -> dict[str, Design]:
    """Return the designs that say what sharing costs and saves; none of a plan that shares none."""
    alone, most = total_flops(design), with_seed(design)
    if executed_flops(design) == alone:
        return {}
    found = {ALONE: design, INDEPENDENT: independent(design)}
    num = max(c.num_sizes for cells in design.values() for c in cells)
    paid = [n for n in range(1, num + 1) if executed_flops(with_seeds_near(design, n)) <= alone]
    if paid:
        bought = most if paid[-1] == num else with_seeds_near(design, paid[-1])
        more = num_runs(bought) - num_runs(design)
        found[f"what sharing saves, spent on seeds: {more:,} runs more"] = bought
    return found


def _arch_powers(
    design: Design, reference: str, noise: float, num_draws: int, surface: Surface
) -> tuple[ArchPower, ...]:
    simulated = {
        arch: simulate(cells, stream, noise, num_draws, surface)
        for stream, (arch, cells) in enumerate(design.items())
    }
    frontier = simulated[reference]
    slope, intercept = fit_known_lines(frontier.log_budgets, frontier.log_loss)
    # A frontier that does not fall with compute has no inverse.
    slope = np.where(slope < 0, slope, np.nan)
    powers = []
    for arch, cells in design.items():
        own = simulated[arch]
        exponent, _ = fit_known_lines(own.log_budgets, own.log_x)
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


def _sd(values: Floats) -> float | None:
    """Return the standard deviation of the draws that gave a value; None where they are too few."""
    if percentiles(values, CONFIDENCE) is None:
        return None
    return float(values[np.isfinite(values)].std(ddof=1))


def _halfwidth(values: Floats) -> float | None:
    interval = percentiles(values, CONFIDENCE)
    return None if interval is None else (interval[1] - interval[0]) / 2


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


def _dependence(design: Design) -> str:
    """Return which runs have noise in common."""
    if not any(cell.trunks for cells in design.values() for cell in cells):
        return "independent between runs"
    return (
        f"alike by {DEFAULT.value:.2g} between runs of one trunk ({DEFAULT_SOURCE}), also if each "
        "is trained alone, since results are the same; else independent between runs"
    )


def _assumptions(design: Design, noise: float, num_draws: int, surface: Surface) -> tuple[str, ...]:
    law = surface.law
    lines = [
        f"estimate by simulation: {num_draws} seeded draws of every loss, fitted like results "
        f"(optima over ln parameters by {DEFAULT_METHOD}, power laws through the interior ones)",
        f"loss noise between seeds: {noise:g} of the loss (standard deviation of ln loss), the "
        f"same everywhere, {_dependence(design)}; measure it with repeated seeds",
        f"loss surface: {law.E} + {law.A}/N^{law.alpha} + "
        f"{law.B}/D^{law.beta} ({surface.source}), the same for every arch: the true "
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
