"""Seconds of `isoflop fit` with 1,000 draws and all checks, against another commit of the package.

Whole processes in turn (A B A B …), so that drift of the machine's speed hits both alike. CPU
seconds are those of the process and what it starts; medians are reported. Tables: 60 simulated runs
(5 families × 4 budgets × 3 sizes) and the 180 of results/cpu_reference.

    python tests/benchmarks/fit_time.py [--against COMMIT] [--rounds 3]
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from simulated_studies import Family, rows_of

REPOSITORY = Path(__file__).resolve().parents[2]
BEFORE = "1fde038"
"""The release whose time is the limit."""


def sixty_runs(path: Path) -> None:
    """Write a table of 60 runs with time and memory, so that all resources are compared."""
    rng = np.random.default_rng(60)
    family = Family(num_sizes=3, noise=0.005)
    rows = [row for i in range(5) for row in rows_of(f"family{i}", family, rng)]
    rows = [{**row, "wall_s": row["flops"] / 1e13, "peak_mem_bytes": 1e9} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def seconds(tree: Path, table: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of one fit by the package of a tree."""
    paths = os.pathsep.join([str(tree), str(tree / "kernels")])
    with tempfile.TemporaryDirectory() as out:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "isoflop", "fit", str(table), "--out", out],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=out,
            env={**os.environ, "PYTHONPATH": paths},
        )
        wall = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", default=BEFORE)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other, made = Path(folder) / "other", Path(folder) / "sixty.csv"
        sixty_runs(made)
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(other), args.against], check=True)
        try:
            _compare(args.against, other, made, args.rounds)
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)


def _compare(name: str, other: Path, made: Path, rounds: int) -> None:
    reference = REPOSITORY / "results" / "cpu_reference" / "runs.parquet"
    tables = {"60 runs": made, "cpu_reference": reference}
    print(f"| table | {name}: s, CPU s | now: s, CPU s | ratio of CPU |")
    print("|---|---|---|---|")
    for title, table in tables.items():
        spent = [(seconds(other, table), seconds(REPOSITORY, table)) for _ in range(rounds)]
        medians = [
            [statistics.median(pair[which][unit] for pair in spent) for unit in (0, 1)]
            for which in (0, 1)
        ]
        cells = " | ".join(f"{wall:.1f}, {cpu:.1f}" for wall, cpu in medians)
        print(f"| {title} | {cells} | {medians[1][1] / medians[0][1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
