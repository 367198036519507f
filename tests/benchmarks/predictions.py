"""How often 95 % prediction intervals hold what a new study measures, in simulated studies.

Four families: the surface of Besiroglu et al. 2024 (arXiv 2404.10102), one that needs 1.3 times
less compute, one with other exponents, and one with a lower floor, too. Each is measured
at the budgets of a study, predicted at 4 and 10 times the largest of them, and then measured there,
with as many sizes, spread alike about the N* that was predicted,
and the same noise. What is measured of a multiplier is the difference of the two
families' losses over the reference's true elasticity there.

    python tests/benchmarks/predictions.py [--studies 200] [--n-boot 1000]
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

from isoflop.analysis import FitOptions, fit_optima, select_points
from isoflop.analysis.optima import find_optimum
from isoflop.analysis.parametric import ChinchillaLaw
from isoflop.analysis.predict import SIZE_AXES, predict

NUM_SIZES = 7
RATIOS = (4.0, 10.0)
REFERENCE = "mlp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """A family: its loss surface, with some of the compute for free."""

    law: ChinchillaLaw
    gain: float = 1.0

    def loss(self, n_params: float, n_tokens: float) -> float:
        """The loss; n_params and n_tokens count √gain-fold."""
        root = math.sqrt(self.gain)
        return float(self.law.loss(n_params * root, n_tokens * root))

    def optimum(self, budget: float) -> float:
        """N* under C = 6ND."""
        return float(self.law.optimum(budget * self.gain)[0]) / math.sqrt(self.gain)

    def optimal_loss(self, budget: float) -> float:
        """The loss at N*."""
        n_params = self.optimum(budget)
        return self.loss(n_params, budget / (6 * n_params))


_BESIROGLU = ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
FAMILIES = {
    REFERENCE: Surface(law=_BESIROGLU),
    "better": Surface(law=_BESIROGLU, gain=1.3),
    "steeper": Surface(law=ChinchillaLaw(E=1.8172, A=834.0, B=982.0, alpha=0.38, beta=0.33)),
    "lower": Surface(law=ChinchillaLaw(E=1.2, A=300.0, B=500.0, alpha=0.3, beta=0.29)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """A study: its budgets, runs per size, noise in ln(loss), reach of its sizes as a factor."""

    name: str
    budgets: tuple[float, ...] = (1e17, 3e17, 1e18, 3e18)
    noise: float = 0.002
    num_seeds: int = 1
    reach: float = 4.0


DESIGNS = (
    Design(name="4 budgets, noise .002"),
    Design(name="4 budgets, noise .005", noise=0.005),
    Design(name="4 budgets, 3 seeds, noise .002", num_seeds=3),
    Design(name="4 budgets, 3 seeds, noise .005", noise=0.005, num_seeds=3),
    Design(name="3 budgets, noise .005", budgets=(1e17, 5e17, 3e18), noise=0.005),
    Design(name="5 budgets, noise .005", budgets=(1e17, 3e17, 1e18, 3e18, 1e19), noise=0.005),
    Design(name="4 budgets, sizes over ± 16, noise .002", reach=16.0),
)


def runs_at(
    rng: np.random.Generator, arch: str, budget: float, design: Design, middle: float | None = None
) -> list[dict[str, Any]]:
    """The runs of a family at one budget, sizes about its optimum or another middle."""
    surface = FAMILIES[arch]
    sizes = (middle or surface.optimum(budget)) * np.geomspace(
        1 / design.reach, design.reach, NUM_SIZES
    )
    return [
        {
            "arch": arch,
            "budget_flops": budget,
            "n_params": float(size),
            "n_tokens": budget / (6 * size),
            "flops": budget,
            "loss": surface.loss(size, budget / (6 * size)) * math.exp(rng.normal(0, design.noise)),
            "seed": seed,
        }
        for size in sizes
        for seed in range(design.num_seeds)
    ]


def measured(
    rng: np.random.Generator,
    budget: float,
    design: Design,
    method: str,
    predicted: Mapping[tuple[str, str], float | None],
) -> dict[tuple[str, str], float | None]:
    """What a study of a single budget measures, by family and quantity."""
    found: dict[tuple[str, str], float | None] = {}
    for arch in FAMILIES:
        rows = runs_at(rng, arch, budget, design, predicted[arch, "n_params"])
        groups = select_points(rows).groups
        for axis in SIZE_AXES:
            optimum = find_optimum(
                groups[arch, budget], arch=arch, budget_flops=budget, axis=axis, method=method
            )
            found[arch, axis] = optimum.x_opt if optimum.is_point else None
            if axis == "n_params":
                found[arch, "loss"] = optimum.loss_opt if optimum.is_point else None
    return found | _multipliers(found, budget)


def _multipliers(
    found: Mapping[tuple[str, str], float | None], budget: float
) -> dict[tuple[str, str], float | None]:
    """The compute at which the reference has a family's loss, over the budget.

    The reference's true frontier, but for the error of its own measurement there.
    """
    base = FAMILIES[REFERENCE]

    def log_loss(log_c: float, above: float = 0.0) -> float:
        return math.log(base.optimal_loss(math.exp(log_c))) - above

    here = math.log(budget)
    elasticity = (log_loss(here + 0.01) - log_loss(here - 0.01)) / 0.02
    multipliers: dict[tuple[str, str], float | None] = {}
    for arch in FAMILIES:
        loss, reference = found[arch, "loss"], found[REFERENCE, "loss"]
        if loss and reference:
            reached = brentq(log_loss, here - 12, here + 12, args=(math.log(loss),))
            error = (math.log(reference) - log_loss(here)) / elasticity
            multipliers[arch, "multiplier"] = math.exp(reached - here - error)
    return multipliers


@dataclass(slots=True)
class Hits:
    """How many intervals held what was measured."""

    inside: int = 0
    predicted: int = 0
    refused: int = 0
    log_width: float = 0.0

    def __str__(self) -> str:
        if not self.predicted:
            return f"refused ({self.refused})"
        refused = f" ({self.refused} refused)" if self.refused else ""
        width = self.log_width / self.predicted
        return f"{self.inside / self.predicted:.3f} / {width:.3f}{refused}"


def measure(design: Design, num_studies: int, options: FitOptions) -> dict[tuple[float, str], Hits]:
    """Predict and measure; by ratio and quantity, all families together."""
    hits: dict[tuple[float, str], Hits] = defaultdict(Hits)
    for number in range(num_studies):
        rng = np.random.default_rng((number, int(1e6 * design.noise), design.num_seeds))
        rows = [
            row
            for arch in FAMILIES
            for budget in design.budgets
            for row in runs_at(rng, arch, budget, design)
        ]
        fits = fit_optima(select_points(rows), options, methods=(options.method,), axes=SIZE_AXES)
        for ratio in RATIOS:
            budget = ratio * design.budgets[-1]
            predictions = predict(fits, budget)
            values = {(row.arch, row.quantity): row.value for row in predictions}
            truth = measured(rng, budget, design, options.method, values)
            for row in predictions:
                if row.quantity == "learning_rate":
                    continue
                count = hits[ratio, row.quantity]
                value = truth.get((row.arch, row.quantity))
                if row.pi_lo is None or row.pi_hi is None or value is None:
                    count.refused += 1
                    continue
                count.predicted += 1
                count.inside += row.pi_lo <= value <= row.pi_hi
                count.log_width += math.log(row.pi_hi / row.pi_lo)
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("--method", default=FitOptions().method)
    chosen = parser.parse_args()
    options = FitOptions(n_boot=chosen.n_boot, method=chosen.method, reference=REFERENCE)
    print("share inside / mean width in ln\n")
    print("| design | beyond | N* | D* | loss | multiplier |\n|---|---|---|---|---|---|")
    for design in DESIGNS:
        hits = measure(design, chosen.studies, options)
        for ratio in RATIOS:
            cells = [str(hits[ratio, name]) for name in (*SIZE_AXES, "loss", "multiplier")]
            print(f"| {design.name} | {ratio:g} × | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
