"""How often 95 % intervals hold the truth: simulated studies, fitted as `isoflop fit` does.

Surface: the parametric fit of Besiroglu et al. 2024 to Chinchilla's data (E 1.8172, A 482.01,
B 2085.43, alpha .3478, beta .3658). Grids are centred on the true optimum, 4x either way,
with Gaussian noise in ln(loss). The truth is that of the surface, so the bias of a method counts
against it.

    python tests/benchmarks/coverage.py [--studies 200] [--n-boot 1000] [--bootstrap residual]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from isoflop.analysis import FitOptions, fit_optima, select_points
from isoflop.analysis.optima_methods import METHODS, Method

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
WIDTH = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """A study: budgets in FLOPs, sizes per budget, runs per size, noise in ln(loss)."""

    name: str
    budgets: tuple[float, ...]
    num_sizes: int
    noise: float
    num_seeds: int = 1


FOUR_BUDGETS = (1e17, 3e17, 1e18, 3e18)
DESIGNS = (
    Design(name="4 budgets x 7 sizes, noise .002", budgets=FOUR_BUDGETS, num_sizes=7, noise=0.002),
    Design(name="4 budgets x 7 sizes, noise .005", budgets=FOUR_BUDGETS, num_sizes=7, noise=0.005),
    Design(name="2 budgets x 7 sizes, noise .002", budgets=(1e17, 1e18), num_sizes=7, noise=0.002),
    Design(name="2 budgets x 5 sizes, noise .002", budgets=(1e17, 1e18), num_sizes=5, noise=0.002),
    Design(
        name="4 budgets x 7 sizes x 2 seeds, noise .005",
        budgets=FOUR_BUDGETS,
        num_sizes=7,
        noise=0.005,
        num_seeds=2,
    ),
)


def optimum(budget: float) -> float:
    """N* of the surface under C = 6ND."""
    scale = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return scale * (budget / 6) ** (BETA / (ALPHA + BETA))


def loss_at(budget: float, size: float) -> float:
    """The surface at C = 6ND."""
    return E + A / size**ALPHA + B / (budget / (6 * size)) ** BETA


def study(design: Design, number: int) -> list[dict[str, object]]:
    """The runs of one simulated study."""
    rng = np.random.default_rng((design.num_sizes, int(design.noise * 1e6), number))
    return [
        {
            "arch": "dense",
            "budget_flops": budget,
            "n_params": (size := optimum(budget) * WIDTH ** (2 * i / (design.num_sizes - 1) - 1)),
            "n_tokens": budget / (6 * size),
            "flops": budget,
            "loss": loss_at(budget, size) * math.exp(rng.normal(0, design.noise)),
            "seed": seed,
        }
        for budget in design.budgets
        for i in range(design.num_sizes)
        for seed in range(design.num_seeds)
    ]


@dataclass(slots=True)
class Count:
    """Intervals that hold the truth, of those there are; the others are missing."""

    hits: int = 0
    known: int = 0
    missing: int = 0
    width: float = 0.0

    def add(self, interval: tuple[float, float] | None, truth: float) -> None:
        """Count one interval."""
        if interval is None:
            self.missing += 1
            return
        self.known += 1
        self.hits += interval[0] <= truth <= interval[1]
        self.width += interval[1] - interval[0]

    def __str__(self) -> str:
        """Coverage, mean width and the number of missing intervals."""
        if not self.known:
            return f"none ({self.missing} missing)"
        missing = f" ({self.missing} missing)" if self.missing else ""
        return f"{self.hits / self.known:.3f} / {self.width / self.known:.4f}{missing}"


QUANTITIES = ("exponent of N*", "exponent of L*", "ln N*", "L*")


def measure(
    design: Design,
    methods: Collection[Method] = METHODS,
    num_studies: int = 200,
    options: FitOptions = FitOptions(),  # noqa: B008 (frozen)
) -> dict[Method, dict[str, Count]]:
    """Coverage per method of the exponents and of the optima at every budget."""
    counts = {method: {name: Count() for name in QUANTITIES} for method in methods}
    for number in range(num_studies):
        selection = select_points(study(design, number))
        fits = fit_optima(selection, options, methods=methods, axes=["n_params"])
        for method in methods:
            for name, interval, truth in _intervals(fits, method):
                counts[method][name].add(interval, truth)
    return counts


def _intervals(
    fits: object, method: Method
) -> Iterator[tuple[str, tuple[float, float] | None, float]]:
    law = fits.law("dense", "n_params", method)
    yield "exponent of N*", law.exponent_ci, BETA / (ALPHA + BETA)
    losses = [math.log(loss_at(c, optimum(c))) for c in fits.budgets]
    slope = np.polyfit(np.log(fits.budgets), losses, 1)[0]
    yield "exponent of L*", fits.law("dense", "loss", method).exponent_ci, float(slope)
    for found in fits.optima_of("dense", "n_params", method):
        truth = optimum(found.budget_flops)
        known = found.ci_lo is not None
        logs = (math.log(found.ci_lo), math.log(found.ci_hi)) if known else None
        yield "ln N*", logs, math.log(truth)
        losses = (found.loss_ci_lo, found.loss_ci_hi) if known else None
        yield "L*", losses, loss_at(found.budget_flops, truth)


def main() -> None:
    """Print a Markdown table of coverage / mean width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("--bootstrap", default="auto")
    parser.add_argument("--designs", type=int, nargs="*", default=range(len(DESIGNS)))
    args = parser.parse_args()
    print("| design | method | " + " | ".join(QUANTITIES) + " |")
    print("|---|---|" + "---|" * len(QUANTITIES))
    options = FitOptions(n_boot=args.n_boot, bootstrap=args.bootstrap)
    start = time.perf_counter()
    for index in args.designs:
        counts = measure(DESIGNS[index], num_studies=args.studies, options=options)
        for method, row in counts.items():
            cells = " | ".join(str(row[name]) for name in QUANTITIES)
            print(f"| {DESIGNS[index].name} | {method} | {cells} |", flush=True)
    print(f"\n{args.studies} studies each, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
