"""How alike the noise of runs of one size and seed is at different budgets.

    python experiments/trunk_noise.py results/trunks

The difference of two seeds of one size in ln loss, in standard deviations of its family and budget,
is compared between the budgets that the size has: all pairs of them together, and by how far apart
they are. Intervals are 95 % percentiles over draws of sizes, each with all of its budgets. Whether
the common part was trained once does not matter: results are the same to the last bit.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.analysis import load_rows
from isoflop.numbers import format_flops

NUM_DRAWS = 4000

Differences = Mapping[float, float]
"""By budget: ln loss of one seed minus that of the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alike:
    """The correlation over some pairs of budgets; None of no pairs."""

    factor: float | None
    """How far apart the budgets are, to the nearest power of 2; None: all pairs."""
    rho: float | None
    ci_lo: float | None
    ci_hi: float | None
    num_pairs: int


def differences(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, float, int], Differences]:
    """Return what each further seed of a size differs by from its first, by arch, size and seed."""
    losses: dict[tuple[str, float], dict[int, dict[float, float]]] = {}
    for row in rows:
        if row.get("status", "done") == "done" and row["loss"] is not None:
            of_size = losses.setdefault((row["arch"], row["n_params"]), {})
            of_size.setdefault(row["seed"], {})[row["budget_flops"]] = math.log(row["loss"])
    found = {}
    for (arch, size), by_seed in losses.items():
        first, *others = sorted(by_seed)
        for seed in others:
            both = by_seed[first].keys() & by_seed[seed].keys()
            off = {budget: by_seed[seed][budget] - by_seed[first][budget] for budget in both}
            found[arch, size, seed] = dict(sorted(off.items()))
    return found


def seed_sds(found: Mapping[tuple[str, float, int], Differences]) -> dict[tuple[str, float], float]:
    """Return the standard deviation of ln loss between seeds, by arch and budget."""
    squares: dict[tuple[str, float], list[float]] = {}
    for (arch, *_), off in found.items():
        for budget, value in off.items():
            squares.setdefault((arch, budget), []).append(value**2 / 2)
    return {key: math.sqrt(sum(of) / len(of)) for key, of in sorted(squares.items())}


def alike(rows: Iterable[Mapping[str, Any]]) -> list[Alike]:
    """Return the correlation over all pairs of budgets, then by how far apart they are."""
    found = differences(rows)
    sds = seed_sds(found)
    pairs: list[tuple[int, int, float, float]] = []
    for unit, ((arch, *_), off) in enumerate(sorted(found.items())):
        for low, high in itertools.combinations(off, 2):
            # Copies have no noise to compare.
            if sds[arch, low] and sds[arch, high]:
                scaled = off[low] / sds[arch, low], off[high] / sds[arch, high]
                pairs.append((unit, round(math.log2(high / low)), *scaled))
    if not pairs:
        return [Alike(factor=None, rho=None, ci_lo=None, ci_hi=None, num_pairs=0)]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 4)
    lags = sorted(set(table[:, 1]))
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(found), np.full(len(found), 1 / len(found)), NUM_DRAWS)
    return [_alike(None, table, counts)] + [
        _alike(2.0**lag, table[table[:, 1] == lag], counts) for lag in lags
    ]


def _alike(factor: float | None, table: np.ndarray, counts: np.ndarray) -> Alike:
    weights = counts[:, table[:, 0].astype(int)]
    everything = _correlations(table, np.ones((1, len(table))))[0]
    drawn = _correlations(table, weights)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (math.nan, math.nan)
    known = [None if math.isnan(v) else float(v) for v in (everything, low, high)]
    return Alike(factor=factor, rho=known[0], ci_lo=known[1], ci_hi=known[2], num_pairs=len(table))


def _correlations(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the correlation about 0 of each set of weights [draws, pairs]."""
    one, other = table[:, 2], table[:, 3]
    squares = (weights @ one**2) * (weights @ other**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(weights @ (one * other) / np.sqrt(squares))


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what was measured, in lines."""
    found = differences(rows)
    told = [
        f"{arch} at {format_flops(budget)}: standard deviation {sd:.4f} of ln loss between seeds"
        for (arch, budget), sd in seed_sds(found).items()
    ]
    for one in alike(rows):
        where = (
            "all pairs of budgets" if one.factor is None else f"a factor of {one.factor:g} apart"
        )
        if one.rho is None:
            told.append(f"{where}: no size has two seeds at two budgets")
            continue
        told.append(
            f"{where}: correlation {one.rho:.2f} ({one.ci_lo:.2f} to {one.ci_hi:.2f}), "
            f"{one.num_pairs} pairs of {len(found)} sizes"
        )
    return told


def main() -> None:
    """Print what a table tells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="a study's folder or a table of runs")
    print("\n".join(lines(load_rows(parser.parse_args().table))))


if __name__ == "__main__":
    main()
