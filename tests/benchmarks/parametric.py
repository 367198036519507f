"""Fits of the Chinchilla surface and 1,000 bootstrap refits, in seconds, against other packages.

The 240 points of Besiroglu et al. 2024 where ../shared/scaling-data has them, else as many points
of their surface. Baselines: the Python package `chinchilla` (0.2.0; the same criterion as a mean,
by BFGS in 80-bit floats; its plots are left out) and scipy's L-BFGS-B on our criterion, both one
fit at a time. Of 1,000 refits of a baseline --refits are timed and the rest extrapolated.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from isoflop.analysis.parametric import ChinchillaLaw, Resampling, fit_surface
from isoflop.analysis.parametric.descent import minimise
from isoflop.analysis.parametric.forms import CHINCHILLA
from isoflop.analysis.parametric.solve import solve
from isoflop.analysis.parametric.terms import Problem, evaluate, make_problem
from isoflop.analysis.points import Point
from isoflop.arrays import Floats

DATA = Path(__file__).resolve().parents[3] / "shared" / "scaling-data" / "chinchilla_epoch.csv"
SURFACE = ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
NUM_DRAWS = 1000


def arrays() -> tuple[str, Floats, Floats, Floats]:
    """What the points are, and their parameters, tokens and losses."""
    if DATA.is_file():
        rows = [
            row
            for row in csv.DictReader(DATA.read_text().splitlines())
            if row["besiroglu_excluded"] != "True"
        ]
        n, d, loss = (
            np.array([float(row[name]) for row in rows])
            for name in ("n_params", "n_tokens", "loss")
        )
        return "published points", n, d, loss
    rng = np.random.default_rng(0)
    n, flops = np.exp(rng.uniform(17.6, 23.5, 240)), np.exp(rng.uniform(41.4, 50.0, 240))
    d = flops / 6 / n
    return "made points", n, d, SURFACE.loss(n, d) * np.exp(rng.normal(0, 0.005, 240))


def draws_of(num_points: int, count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(0, num_points, num_points)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    value = work()
    return time.perf_counter() - begin, value


def ours(n: Floats, d: Floats, loss: Floats) -> tuple[dict[str, float], dict[str, Any]]:
    points = [
        Point(
            run_id=None,
            arch="dense",
            budget_flops=1e20,
            n_params=float(size),
            n_tokens=float(tokens),
            n_active=None,
            loss=float(nats),
        )
        for size, tokens, nats in zip(n, d, loss, strict=True)
    ]
    seconds, found = {}, {}
    for method in ("huber", "vpnls"):
        for draws in (0, NUM_DRAWS):
            seconds[f"{method} {draws}"], found[f"{method} {draws}"] = timed(
                functools.partial(
                    fit_surface,
                    points,
                    arch="dense",
                    method=method,
                    resampling=Resampling(n_boot=draws),
                )
            )
    return seconds, found


def by_scipy(problem: Problem, best: Floats, count: int) -> float:
    """Seconds of one warm-started refit by L-BFGS-B, averaged."""
    from scipy.optimize import minimize

    def value_and_gradient(theta: Floats, weight: Floats) -> tuple[float, Floats]:
        value, gradient, _ = evaluate(problem, theta[None], problem.target[None], weight)
        return float(value[0]), gradient[0]

    def refit_all() -> None:
        for draw in draws_of(problem.num_points, count):
            weight = np.bincount(draw, minlength=problem.num_points).astype(float)[None]
            minimize(
                value_and_gradient,
                best,
                args=(weight,),
                jac=True,
                method="L-BFGS-B",
                options={"ftol": 0.0, "gtol": 1e-10, "maxiter": 5000, "maxfun": 20_000},
            )

    return timed(refit_all)[0] / count


class OtherPackage:
    """The package `chinchilla` with the same criterion, from the same kind of starts."""

    def __init__(self, folder: str) -> None:
        from chinchilla import Chinchilla
        from chinchilla._metrics import log_huber

        self.model = Chinchilla(
            folder,
            param_grid={"e": [0.5], "a": [6.0], "b": [7.0], "alpha": [0.3], "beta": [0.3]},
            loss_fn=functools.partial(log_huber, delta=1e-3),
            log_level=100,
        )
        self.model.visualizer.optim = lambda *_args, **_kwargs: None

    def fit(self, n: Floats, d: Floats, loss: Floats, starts: dict[str, list[float]]) -> None:
        import pandas as pd

        self.model.database.df = pd.DataFrame({"C": 6 * n * d, "N": n, "D": d, "loss": loss})
        self.model.param_grid = starts
        self.model.fit(parallel=len(next(iter(starts.values()))) > 1)

    def objective(self, n: Floats, d: Floats, loss: Floats) -> float:
        p = self.model.params
        away = np.abs(np.log(loss / (p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"])))
        return float(np.where(away <= 1e-3, away**2 / 2, 1e-3 * (away - 5e-4)).sum())


def by_package(
    n: Floats, d: Floats, loss: Floats, best: dict[str, float], count: int
) -> tuple[float, float, float]:
    """Seconds of a fit from 48 starts, its objective, and seconds of one warm-started refit."""
    grid = {
        "e": [0.0, 0.5, 1.0],
        "a": [2.0, 6.0],
        "b": [2.0, 7.0],
        "alpha": [0.2, 0.5],
        "beta": [0.2, 0.5],
    }
    warm = {"e": [float(np.log(best["E"]))], "alpha": [best["alpha"]], "beta": [best["beta"]]}
    warm = {"e": warm["e"], "a": [np.log(best["A"])], "b": [np.log(best["B"])], **warm}
    warm = {name: [float(warm[name][0])] for name in grid}
    with tempfile.TemporaryDirectory() as folder:
        other = OtherPackage(folder)
        fit_s, _ = timed(lambda: other.fit(n, d, loss, grid))
        objective = other.objective(n, d, loss)

        def refit_all() -> None:
            for draw in draws_of(len(n), count):
                other.fit(n[draw], d[draw], loss[draw], warm)

        return fit_s, objective, timed(refit_all)[0] / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--refits", type=int, default=20)
    count = parser.parse_args().refits
    what, n, d, loss = arrays()
    # Import and first call, outside the times.
    minimise_warm = make_problem(CHINCHILLA, "huber", ((n,), (d,), ()), loss)
    solution = solve(minimise_warm)
    minimise(minimise_warm, solution.theta[None], minimise_warm.target[None], np.ones((1, len(n))))
    seconds, found = ours(n, d, loss)
    boot_s = seconds[f"huber {NUM_DRAWS}"] - seconds["huber 0"]
    scipy_s = by_scipy(minimise_warm, solution.theta, count)
    fit_s, objective, refit_s = by_package(n, d, loss, dict(found["huber 0"].values), count)
    print(f"{len(n)} {what}")
    rows = [
        (f"fit, ours, {found['huber 0'].n_starts} starts", seconds["huber 0"], None),
        ("fit, chinchilla, 48 starts, all cores", fit_s, seconds["huber 0"]),
        ("fit, ours, variable projection", seconds["vpnls 0"], None),
        (f"{NUM_DRAWS} refits, ours", boot_s, None),
        (f"{NUM_DRAWS} refits, scipy L-BFGS-B ({count} timed)", NUM_DRAWS * scipy_s, boot_s),
        (f"{NUM_DRAWS} refits, chinchilla ({count} timed)", NUM_DRAWS * refit_s, boot_s),
    ]
    print(f"{'':50s} {'seconds':>10s} {'over ours':>10s}")
    for name, spent, base in rows:
        ratio = "" if base is None else f"{spent / base:10.1f}"
        print(f"{name:50s} {spent:10.2f} {ratio}")
    print(f"objective: ours {found['huber 0'].objective:.11f}, chinchilla {objective:.11f}")


if __name__ == "__main__":
    main()
