"""Reading a table of 100,000 rows and 40 columns, against pandas.read_csv in the same process.

Each step has its CPU seconds, its ratio to `pandas.read_csv` of the same file, and the most memory
that the process has held by then.
"""

from __future__ import annotations

import argparse
import csv
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from isoflop.analysis.load import OPTIONAL, REQUIRED
from isoflop.analysis.points import select_points
from isoflop.ingest.files import read_files
from isoflop.ingest.frames import rows_of
from isoflop.ingest.sources import read_source
from isoflop.ingest.store import write_import
from isoflop.ingest.suggest import suggest
from isoflop.ingest.table import import_table

NUM_COLUMNS = 40
HEADER = (*REQUIRED, "seed", "status")


def write_table(path: Path, num_rows: int) -> None:
    """Write ten families at twenty budgets, and columns that no fit uses."""
    rng = random.Random(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*HEADER, *(f"config.c{i}" for i in range(NUM_COLUMNS - len(HEADER)))])
        for i in range(num_rows):
            size, budget = 10 ** rng.uniform(6, 9), 10.0 ** (17 + i % 20 * 0.25)
            cells = [f"arch{i % 10}", budget, size, budget / 6 / size, budget]
            cells += [3 + 1e7 / size + rng.gauss(0, 0.01), i // 200, "finished"]
            rest = (f"{rng.random():.6f}" for _ in range(NUM_COLUMNS - len(cells)))
            writer.writerow([*cells, *rest])


def as_people_write(path: Path) -> None:
    """Write the table again with a tracker's names, and counts as 125.3M and 16,517,336."""
    frame = pd.read_csv(path)
    people = {
        "num_params": frame.pop("n_params").map(lambda count: f"{count / 1e6:.4f}M"),
        "total_tokens": frame.pop("n_tokens").map(lambda count: f"{count:,.0f}"),
        "eval/loss": frame.pop("loss"),
    }
    frame.assign(**people).to_csv(path, index=False)


def timed(name: str, work: Callable[[], Any], baseline: float | None = None) -> tuple[float, Any]:
    """Print and return the CPU seconds of some work, and what it returned."""
    begin = time.process_time()
    value = work()
    seconds = time.process_time() - begin
    ratio = "" if baseline is None else f"{seconds / baseline:5.1f} x"
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<34} {seconds:6.2f} s  {ratio:>8}  {mib:6.0f} MiB", flush=True)
    return seconds, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        write_table(path, chosen.rows)
        print(f"{chosen.rows:,} rows, {NUM_COLUMNS} columns, {path.stat().st_size / 1e6:.0f} MB")
        # What is imported at the first use is no part of the work.
        rows_of(read_files(str(path)).frame[:1], "table", REQUIRED, optional=OPTIONAL)
        baseline, _ = timed("pandas.read_csv", lambda: pd.read_csv(path))
        _, raw = timed("read_files", lambda: read_files(str(path)), baseline)
        _, rows = timed(
            "rows_of",
            lambda: rows_of(raw.frame, "table", REQUIRED, optional=OPTIONAL),
            baseline,
        )
        timed("select_points", lambda: select_points(rows), baseline)
        as_people_write(path)
        begin = time.process_time()
        _, raw = timed("import: read_source", lambda: read_source(str(path)), baseline)
        _, suggestion = timed("import: suggest", lambda: suggest(raw), baseline)
        _, imported = timed(
            "import: import_table", lambda: import_table(raw, suggestion.mapping), baseline
        )
        out = Path(folder) / "out"
        timed("import: write_import", lambda: write_import(imported, raw, "", out), baseline)
        print(f"import in all {time.process_time() - begin:.2f} s")


if __name__ == "__main__":
    main()
