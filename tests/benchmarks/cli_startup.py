"""How long the command line takes to start, as a multiple of bare python and of bare click.

Whole processes, in turn (A B C A B C …) so that drift of the machine's speed hits all alike; the
median of the ratios is reported.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "a bare click program": ["-c", "import click; click.command()(lambda: None)([])"],
    "isoflop --help": ["-m", "isoflop", "--help"],
    "isoflop plan --budgets 1e17,1e18": ["-m", "isoflop", "plan", "--budgets", "1e17,1e18"],
}
LIMITS = {"isoflop --help": 10, "isoflop plan --budgets 1e17,1e18": 40}


def seconds(arguments: list[str], folder: Path) -> float:
    out = [] if "plan" not in arguments else ["--out", str(folder / f"{time.monotonic_ns()}")]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments, *out], check=True, stdout=subprocess.DEVNULL, cwd=folder
    )
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for count in range(rounds + 1):
            for name, arguments in COMMANDS.items():
                spent = seconds(arguments, Path(folder))
                # The first round warms the file cache.
                if count:
                    times[name].append(spent)
    bare, click = times["python -c pass"], times["a bare click program"]
    print(f"{'command':34s} {'median s':>9s} {'× python':>9s} {'limit':>6s} {'× click':>8s}")
    for name, spent in times.items():
        ratio, of_click = (
            statistics.median(a / b for a, b in zip(spent, base, strict=True))
            for base in (bare, click)
        )
        limit = LIMITS.get(name, "")
        median = statistics.median(spent)
        print(f"{name:34s} {median:9.3f} {ratio:9.1f} {limit!s:>6s} {of_click:8.1f}")


if __name__ == "__main__":
    main()
