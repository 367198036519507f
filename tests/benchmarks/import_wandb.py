"""Time of importing 5,000 offline runs of W&B: the first time, and when they are in the cache.

A run has 200 logged steps of 5 metrics, 40 settings and a summary at each step, as the library
writes them; the baseline reads the bytes of all files.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from isoflop.ingest.sources import read_source
from made_wandb import exit_record, history, run_record, summary, write_wandb


def make(folder: Path, num_runs: int, num_steps: int) -> int:
    """Write runs that differ in their names; return their bytes."""
    values = [
        {"train/loss": 3 - step / 300, "lr": 1e-3, "grad_norm": 0.5, "tokens": step, "mfu": 0.4}
        for step in range(num_steps)
    ]
    log = [
        record
        for step, row in enumerate(values)
        for record in (summary({**row, "_step": step}), history(row, step))
    ]
    total = 0
    for number in range(num_runs):
        config = {f"key_{i}": i + number for i in range(40)}
        path = folder / f"wandb/offline-run-20260101_{number:06}-r{number}/run-r{number}.wandb"
        begin = run_record(f"r{number}", config, project="laws", display_name=f"run {number}")
        write_wandb(path, [begin, *log, summary({"val/loss": 2.5 + number / 1e5}), exit_record(0)])
        total += path.stat().st_size
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "runs"
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        num_bytes = make(folder, options.runs, options.steps)
        start = time.perf_counter()
        for path in folder.rglob("*.wandb"):
            path.read_bytes()
        base_s = time.perf_counter() - start
        print(f"{options.runs} runs, {num_bytes / 1e6:.0f} MB; their bytes alone: {base_s:.1f} s")
        for what in ("first import", "from the cache"):
            start, cpu = time.perf_counter(), time.process_time()
            frame = read_source(f"wandb:{folder}").frame
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
            assert len(frame) == options.runs
            print(f"{what}: {wall_s:.1f} s ({cpu_s:.1f} s of CPU), {wall_s / base_s:.1f} ×")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
