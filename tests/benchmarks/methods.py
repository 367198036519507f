"""How far each method of finding optima is off: bias, spread and what an interval would hold.

Simulated profiles of one budget, read by each method. Of ln N* and of ln L*, in units of the
spread over the profiles: the bias, and the share of intervals of ±1.96 spreads about the estimate
that hold the truth (`held`, 0.95 without a bias). `spread` is that of ln N* over the parabola's,
`lost` the share of profiles without an interior minimum. Where sizes are missing, patterns of
missing sizes are taken one by one, and their shares averaged. Heavy tails are Student's with two
degrees of freedom; their centre and spread are the median and the quartiles.

    python tests/benchmarks/methods.py [--profiles 2000] [--surface besiroglu] [--noise .002]
                                       [--heavy-tails] [--methods two_powers parabola]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from isoflop.analysis.optima_methods import INTERIOR, METHODS, Method
from isoflop.analysis.parametric import ChinchillaLaw
from isoflop.arrays import Floats

BUDGET = 1e18
NUM_PATTERNS = 40

SURFACES = {
    # Besiroglu et al. 2024; Hoffmann et al. 2022; the other two of Czech's "Problems with
    # Chinchilla Approach 2".
    "besiroglu": ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
    "hoffmann": ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    "symmetric": ChinchillaLaw(E=1.69, A=400.0, B=400.0, alpha=0.31, beta=0.31),
    "asymmetric": ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """One budget's sizes: evenly spaced in ln N over a factor either way of their middle."""

    width: float
    num_sizes: int
    shift: float = 0.0
    """ln of the middle over the optimum."""
    num_missing: int = 0
    """Sizes without a result, drawn at random."""

    @property
    def name(self) -> str:
        """What sets it apart, in words."""
        words = f"±{self.width:g}× {self.num_sizes} sizes"
        words += f", middle off by {self.shift:+g}" if self.shift else ""
        return words + (f", {self.num_missing} missing" if self.num_missing else "")


DESIGNS = (
    *(Design(width=2, num_sizes=n) for n in (5, 7)),
    *(Design(width=4, num_sizes=n) for n in (5, 7, 11)),
    *(Design(width=16, num_sizes=n) for n in (7, 11, 15)),
    *(Design(width=4, num_sizes=7, shift=shift) for shift in (-0.7, 0.7)),
    *(Design(width=16, num_sizes=11, shift=shift) for shift in (-0.7, 0.7)),
    # The ends of one ladder for all of 1e17 to 3e18.
    *(Design(width=8, num_sizes=7, shift=shift) for shift in (-0.87, 0.87)),
    Design(width=4, num_sizes=7, num_missing=2),
    Design(width=16, num_sizes=11, num_missing=3),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How the estimates of one number lie about the truth."""

    bias: float
    spread: float

    @property
    def held(self) -> float:
        """The share of intervals of ±1.96 spreads that hold the truth."""
        ratio = self.bias / self.spread
        return NormalDist().cdf(1.96 - ratio) - NormalDist().cdf(-1.96 - ratio)


def quality(errors: Floats, *, is_heavy: bool) -> Quality:
    """Mean and standard deviation; median and quartiles under heavy tails."""
    if not is_heavy:
        return Quality(bias=float(errors.mean()), spread=float(errors.std()))
    low, middle, high = np.quantile(errors, [0.25, 0.5, 0.75])
    return Quality(bias=float(middle), spread=float(high - low) / 1.349)


def patterns(design: Design, rng: np.random.Generator) -> Iterator[Floats]:
    """The sizes with a result, as ln N over the optimum."""
    sizes = design.shift + np.linspace(-1, 1, design.num_sizes) * math.log(design.width)
    if not design.num_missing:
        yield sizes
        return
    for _ in range(NUM_PATTERNS):
        there = rng.choice(design.num_sizes, design.num_sizes - design.num_missing, replace=False)
        yield sizes[np.sort(there)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One method on one pattern of sizes."""

    size: Quality
    loss: Quality
    lost: float


def outcomes(
    law: ChinchillaLaw, design: Design, noise: float, num_profiles: int, *, is_heavy: bool
) -> dict[Method, list[Outcome]]:
    """All methods on the same profiles, an outcome per pattern of sizes."""
    rng = np.random.default_rng(0)
    best, tokens = law.optimum(BUDGET)
    truth = float(law.loss(best, tokens))
    found: dict[Method, list[Outcome]] = {method: [] for method in METHODS}
    for offsets in patterns(design, rng):
        num = num_profiles // (NUM_PATTERNS if design.num_missing else 1)
        shape = (num, len(offsets))
        errors = rng.standard_t(2, shape) if is_heavy else rng.standard_normal(shape)
        exact = law.loss(best * np.exp(offsets), tokens / np.exp(offsets))
        for name, method in METHODS.items():
            minima = method.find(offsets, exact * np.exp(noise * errors), None)
            inside = minima.code == INTERIOR
            if np.count_nonzero(inside) < 2:
                continue
            found[name].append(
                Outcome(
                    size=quality(minima.log_x[inside], is_heavy=is_heavy),
                    loss=quality(np.log(minima.loss[inside] / truth), is_heavy=is_heavy),
                    lost=1 - float(inside.mean()),
                )
            )
    return found


def root_mean_square(values: Sequence[float]) -> float:
    """Over patterns of missing sizes: biases of either sign do not cancel."""
    return math.sqrt(math.fsum(value**2 for value in values) / len(values))


def cell(found: Sequence[Outcome], parabola: Sequence[Outcome]) -> str:
    """One method's entry in a row of the table."""
    spread = root_mean_square([one.size.spread for one in found])
    bias = root_mean_square([one.size.bias for one in found]) / spread
    relative = spread / root_mean_square([one.size.spread for one in parabola])
    held_size = math.fsum(one.size.held for one in found) / len(found)
    held_loss = math.fsum(one.loss.held for one in found) / len(found)
    lost = math.fsum(one.lost for one in found) / len(found)
    entry = f"{bias:.2f}, {relative:.2f}; {held_size:.2f}, {held_loss:.2f}"
    return entry + (f" ({lost:.0%} lost)" if lost >= 0.005 else "")


def main() -> None:
    """Print a Markdown table: a row per design, a column per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profiles", type=int, default=2000)
    parser.add_argument("--surface", choices=SURFACES, default="besiroglu")
    parser.add_argument("--noise", type=float, default=0.002)
    parser.add_argument("--heavy-tails", action="store_true")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args()
    print(f"{args.surface}, noise {args.noise:g}; bias and spread of ln N*; held of N*, L*\n")
    print("| sizes | " + " | ".join(args.methods) + " |")
    print("|---|" + "---|" * len(args.methods))
    for design in DESIGNS:
        found = outcomes(
            SURFACES[args.surface], design, args.noise, args.profiles, is_heavy=args.heavy_tails
        )
        cells = [
            cell(found[name], found["parabola"]) if found[name] else "none" for name in args.methods
        ]
        print(f"| {design.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
