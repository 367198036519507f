"""How often the intervals of `isoflop gate` hold the true multiplier, and what it decides.

A reference of 4 budgets × 7 sizes is simulated (simulated_studies.py), and runs of families with
the multipliers 1, 1.3 and 2, each at its own best size, at the reference's budgets and between
them; also beyond its largest, where nothing may be decided. A run is one seed, or the mean of as
many as the reference has.

    python tests/benchmarks/gate.py [--studies 100] [--n-boot 1000]
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.coverage import Count, Record
from benchmarks.simulated_studies import (
    BUDGETS,
    FALLING_NOISE,
    REFERENCE,
    Family,
    loss_of_optimum,
    optimum,
    rows_of,
)
from isoflop.analysis import FitOptions, fit_optima, select_points
from isoflop.analysis.gate import GateRow, gate

MULTIPLIERS = (1.0, 1.3, 2.0)
BETWEEN = tuple(math.sqrt(a * b) for a, b in itertools.pairwise(BUDGETS))
BEYOND = (2.0, 4.0)
"""Times the largest budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A reference, and how many seeds a run is the mean of."""

    name: str
    reference: Family
    seeds: int = 1


CASES = (
    Case(name="noise .002", reference=Family(noise=0.002)),
    Case(name="noise .002, three seeds", reference=Family(noise=0.002, seeds=3), seeds=3),
    Case(name="noise .005", reference=Family(noise=0.005)),
    Case(name="noise .005, three seeds", reference=Family(noise=0.005, seeds=3), seeds=3),
    Case(name="noise .005, three seeds, one run", reference=Family(noise=0.005, seeds=3)),
    Case(name="noise that falls", reference=Family(noise=FALLING_NOISE)),
)


@dataclass(slots=True)
class Tally:
    """What came out, by kind of run."""

    counts: dict[str, Count] = field(default_factory=dict)
    """Of ln of the multiplier: at the reference's budgets, between them, extrapolated."""
    verdicts: dict[str, list[str]] = field(default_factory=dict)
    """By the true multiplier, and beyond."""
    together: list[bool] = field(default_factory=list)
    """Whether all simultaneous intervals of a study held their truth."""


def _noise_at(family: Family, flops: float) -> float:
    if not isinstance(family.noise, dict):
        return family.noise
    logs = [math.log(budget) for budget in family.noise]
    return float(np.interp(math.log(flops), logs, list(family.noise.values())))


def runs_of(case: Case, rng: np.random.Generator) -> Iterator[tuple[float, float, dict[str, Any]]]:
    """Yield the true multiplier, the FLOPs and the row of every seed of every run."""
    places = [(m, flops) for m in MULTIPLIERS for flops in (*BUDGETS, *BETWEEN)]
    places += [(m, factor * BUDGETS[-1]) for m in (1.0, 1.15) for factor in BEYOND]
    for number, (m, flops) in enumerate(places):
        size = optimum(flops, m)
        for seed in range(case.seeds):
            noise = rng.normal(0, _noise_at(case.reference, flops))
            row = {
                "arch": f"new {number}",
                "n_params": size,
                "n_tokens": flops / (6 * size),
                "flops": flops,
                "seed": seed,
                "loss": loss_of_optimum(flops, m) * math.exp(noise),
            }
            yield m, flops, row


def measure(case: Case, num_studies: int = 200, n_boot: int = 1000) -> Tally:
    """Simulate studies of a case, and judge its runs against each."""
    tally = Tally()
    for study in range(num_studies):
        rng = np.random.default_rng((study, len(case.name)))
        options = FitOptions(n_boot=n_boot, seed=study)
        selection = select_points(rows_of(REFERENCE, case.reference, rng))
        fits = fit_optima(selection, options, methods=[options.method], axes=["n_params"])
        truths, rows = {}, []
        for m, flops, row in runs_of(case, rng):
            truths[row["arch"]] = m, flops
            rows.append(row)
        judged = gate(fits, rows).along("flops")
        assert len(judged) == len(truths)
        held = [_count(tally, got, *truths[got.arch], study) for got in judged]
        tally.together.append(all(held))
    return tally


def _count(tally: Tally, got: GateRow, m: float, flops: float, study: int) -> bool:
    """Count one run; return whether its simultaneous interval holds the truth."""
    is_beyond = flops > BUDGETS[-1]
    if is_beyond:
        tally.verdicts.setdefault("beyond", []).append(got.verdict)
    else:
        tally.verdicts.setdefault(f"m = {m:g}", []).append(got.verdict)
    kind = "at a budget" if flops in BUDGETS else "between budgets"
    if m * flops > BUDGETS[-1]:
        kind = "beyond" if is_beyond else "extrapolated"
    ends = [None if end is None else math.log(end) for end in (got.ci_lo, got.ci_hi)]
    record = Record(
        quantity=kind,
        arch=got.arch or "",
        budget=flops,
        estimate=None if got.multiplier is None else math.log(got.multiplier),
        lo=ends[0],
        hi=ends[1],
        truth=math.log(m),
    )
    tally.counts.setdefault(kind, Count()).add(record, study)
    low, high = got.ci_lo_simultaneous, got.ci_hi_simultaneous
    return (low is None or low <= m) and (high is None or m <= high)


KINDS = ("at a budget", "between budgets", "extrapolated", "beyond")


def cells(tally: Tally) -> list[str]:
    """The cells of a case's row."""
    shown = []
    for kind in KINDS:
        found = tally.counts[kind].summary()
        missing = f" ({found['missing']} missing)" if found["missing"] else ""
        shown.append(
            f"{found['coverage']:.3f} / {found['mean_width']:.3f} / {found['bias']:+.3f}{missing}"
        )
    same = tally.verdicts["m = 1"]
    shown.append(f"{1 - same.count('undecided') / len(same):.3f}")
    shown += [
        f"{tally.verdicts[name].count('pass') / len(tally.verdicts[name]):.2f}"
        for name in ("m = 1.3", "m = 2")
    ]
    beyond = tally.verdicts["beyond"]
    shown.append(str(len(beyond) - beyond.count("undecided")))
    return [*shown, f"{np.mean(tally.together):.3f}"]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)))
    args = parser.parse_args()
    heads = [*KINDS, "false at m = 1", "pass at 1.3", "pass at 2", "decided beyond", "all held"]
    print("| case | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 1))
    start = time.perf_counter()
    for index in args.cases:
        tally = measure(CASES[index], args.studies, args.n_boot)
        print(f"| {CASES[index].name} | " + " | ".join(cells(tally)) + " |", flush=True)
    print(f"\n{args.studies} studies each, {time.perf_counter() - start:.0f} s")
    print(
        "Coverage / mean width in ln m / bias in ln m of 95 % intervals; all held: 25 runs at once."
    )


if __name__ == "__main__":
    main()
