"""The command: see the package. Its exit code is 0 only if all of it ran and nothing failed."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from isoflop.files import write_text_atomic
from isoflop.gpu_report.jobs import DEFAULT_BUDGET_S, SHARES, first_stage, shares, stages
from isoflop.gpu_report.page import Head, is_good, page
from isoflop.gpu_report.records import COMPUTE_MODE, FACT, ResultsFile, Row
from isoflop.gpu_report.schedule import Budget, Stage, run_stage
from isoflop.gpu_report.workers import Worker, worker_command, worker_environment

MOST_WORKERS = 16
RESULTS, REPORT = "results.jsonl", "report.md"


class _Stopped(Exception):
    """A signal asked the command to end."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one line, and leaves with 2.

    As that of isoflop_kernels.command, which imports torch: only workers do here.
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked options; exit with 2 and one line if one does not fit."""
    parser = _Parser(
        prog="isoflop.gpu_report",
        description="Hold the predictions of kernels and steps against this machine's GPU.",
    )
    add = parser.add_argument
    add("--budget-s", type=float, default=DEFAULT_BUDGET_S, help="seconds in all; %(default)g")
    add("--out", type=Path, required=True, metavar="DIR", help=f"for {RESULTS} and {REPORT}")
    add("--only", choices=list(SHARES), metavar="STAGE", help=f"one of {', '.join(SHARES)}")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal, tiny shapes")
    options = parser.parse_args(arguments)
    if not 0 < options.budget_s < float("inf"):
        parser.error(f"--budget-s {options.budget_s:g}: must be a positive number")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    if not os.access(options.out, os.W_OK):
        parser.error(f"--out {options.out}: cannot be written to")
    return options


def put_aside(folder: Path) -> None:
    """Give what an earlier command wrote into the folder other names: `results-1.jsonl` and so on.

    A GPU may be lent for these minutes only.
    """
    written = [folder / name for name in (RESULTS, REPORT)]
    for number in itertools.count(1):
        names = [path.with_stem(f"{path.stem}-{number}") for path in written]
        if not any(os.path.lexists(name) for name in names):
            break
    for path, name in zip(written, names, strict=True):
        if os.path.lexists(path):
            path.rename(name)


class _Report:
    """Runs the stages, and keeps the files as they should be if the command ended now."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._shares = shares(options.only)
        self._budget = Budget(options.budget_s, self._shares, time.monotonic)
        self._results = ResultsFile(options.out / RESULTS)
        self._done: list[str] = []
        interpret = options.device == "cpu"
        environment = worker_environment((options.out / "cache").absolute(), interpret=interpret)
        number = 1 if interpret else max(1, min(MOST_WORKERS, os.cpu_count() or 1))
        self._workers = [
            Worker(worker_command(options.device), environment, options.out / "workers.log")
            for _ in range(number)
        ]

    def run(self) -> bool:
        """Run everything and return whether it was all good."""
        stopped = ""
        try:
            self._run(first_stage())
            stopped = self._why_no_machine()
            if stopped:
                return self._write(stopped)
            for stage in stages(self._options.device, self._facts()):
                if stage.name in self._shares:
                    self._run(stage)
        except _Stopped as reason:
            stopped = str(reason)
        except KeyboardInterrupt:
            stopped = "interrupted"
        finally:
            for worker in self._workers:
                worker.close()
        return self._write(stopped)

    def _why_no_machine(self) -> str:
        """Return why nothing can be measured here; empty if it can."""
        rows = self._results.rows
        if any(FACT in row.details for row in rows):
            return ""
        return f"no {self._options.device} to measure on: {'; '.join(row.note for row in rows)}"

    def _run(self, stage: Stage) -> None:
        print(f"{self._budget.elapsed_s:5.0f} s  {stage.name}", flush=True)
        alone = "Exclusive" in self._facts().get(COMPUTE_MODE, "")
        together = stage.name == "compile" and not alone
        workers = self._workers if together else self._workers[:1]
        run_stage(stage, self._budget, workers, self._found)
        # What was compiled is in the cache; a GPU's memory is for one process.
        for worker in workers[1:]:
            worker.close()
        self._done.append(stage.name)
        self._write("")

    def _found(self, row: Row) -> None:
        self._results.append(row, self._budget.elapsed_s)
        if row.outcome in ("failed", "cut"):
            print(f"         {row.outcome}: {row.case}: {row.note}", flush=True)

    def _facts(self) -> dict[str, Any]:
        """Return what the first stage found, by name."""
        return {row.what: row.details[FACT] for row in self._results.rows if FACT in row.details}

    def _write(self, stopped: str) -> bool:
        head = Head(
            device=self._options.device,
            budget_s=self._options.budget_s,
            elapsed_s=self._budget.elapsed_s,
            planned=list(self._shares),
            done=self._done,
            stopped=stopped,
        )
        write_text_atomic(self._options.out / REPORT, page(head, self._results.rows))
        return is_good(head, self._results.rows)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _Stopped(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; 0, or 1 if anything failed, was cut or did not run."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _stop)
    put_aside(options.out)
    good = _Report(options).run()
    print(f"wrote {options.out / REPORT}{'' if good else ', which says what went wrong'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
