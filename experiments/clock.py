"""Does time follow FLOPs? Step times measured alone on a quiet machine, against planned FLOPs.

    isoflop calibrate results/cpu_reference
    python experiments/clock.py results/cpu_reference > results/cpu_reference/clock.md

Claim C9. It reads the study's plan.json and calibration.json and, where they are there, two tables:
optima.parquet, to take each family at its own optimum (interpolated between the sizes; else at the
centre of its grid), and runs.parquet, to compare families along time with steps × measured seconds
in place of what the runs took while others ran beside them. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from seconds_per_flop import CellKey, SecondsPerFlop, cells, centre, markdown_table

from isoflop.analysis.compare.multipliers import Comparison, compare_archs
from isoflop.analysis.fit import Fits, fit_optima
from isoflop.analysis.hypotheses import judge
from isoflop.analysis.optima import OPTIMA
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.analysis.points import select_points
from isoflop.analysis.report.comparison import comparison_sentence
from isoflop.errors import UserError
from isoflop.numbers import format_flops
from isoflop.plan.artefact import read_plan
from isoflop.plan.estimate import Calibration, load_calibration
from isoflop.plan.estimate.hardware import MeasuredStep, shape_key
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.tables import RUNS, read_table

Optima = Mapping[CellKey, float]
"""Optimal parameters by family and budget, where they lie inside the grid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """How fast one family goes at its optimum of one budget."""

    arch: str
    budget_flops: int
    step_s: float
    """Seconds of an optimizer step, the median of the timed ones."""
    flops_per_s: float
    """Training FLOPs of the plan per second: the achieved rate."""
    slowest: float
    """The rate in the slowest of the timed steps."""
    fastest: float
    at_optimum: bool
    """False: at the centre of the grid."""

    @property
    def seconds_per_flop(self) -> SecondsPerFlop:
        """The same in seconds per FLOP."""
        return SecondsPerFlop(
            s_per_flop=1 / self.flops_per_s, low=1 / self.fastest, high=1 / self.slowest
        )


def interior_optima(folder: Path) -> Optima:
    """Return the optimal parameters of a study; none where it is not fitted."""
    path = folder / "optima.parquet"
    rows = read_table(path, OPTIMA) if path.is_file() else []
    return {
        (row["arch"], int(row["budget_flops"])): row["x_opt"]
        for row in rows
        if (row["axis"], row["method"], row["status"]) == ("n_params", DEFAULT_METHOD, "interior")
    }


def clocks(plan: Plan, calibration: Calibration, optima: Optima) -> dict[CellKey, Clock]:
    """Return the rate of each family and budget.

    Raises:
        UserError: a shape of the plan was not measured.
    """
    measured = calibration.by_shape()
    for run in plan.runs:
        if shape_key(run.spec) not in measured:
            raise UserError(
                "calibration",
                f"without {run.arch} size {run.size}",
                "of every shape of the plan",
                "run `isoflop calibrate FOLDER` again",
            )
    return {
        key: _clock(key, runs, [measured[shape_key(run.spec)] for run in runs], optima.get(key))
        for key, runs in cells(plan).items()
    }


def _clock(
    key: CellKey, runs: Sequence[PlannedRun], steps: Sequence[MeasuredStep], n_opt: float | None
) -> Clock:
    """Take the rates at the optimum: ln rate, interpolated in ln parameters between the sizes."""
    flops = [run.flops / run.spec.steps for run in runs]

    def at(values: Sequence[float]) -> float:
        if n_opt is None:
            return centre(values)
        log_n = np.log([run.n_params for run in runs])
        return float(np.exp(np.interp(np.log(n_opt), log_n, np.log(values))))

    return Clock(
        arch=key[0],
        budget_flops=key[1],
        step_s=at([step.step_s for step in steps]),
        flops_per_s=at([f / step.step_s for f, step in zip(flops, steps, strict=True)]),
        slowest=at([f / step.step_s_max for f, step in zip(flops, steps, strict=True)]),
        fastest=at([f / step.step_s_min for f, step in zip(flops, steps, strict=True)]),
        at_optimum=n_opt is not None,
    )


def page(found: Mapping[CellKey, Clock], calibration: Calibration, reference: str) -> str:
    """Return the rates as Markdown, with what they say of time and FLOPs."""
    rows = [_row(clock, found[reference, clock.budget_flops]) for clock in found.values()]
    head = ["family, budget", "at", "ms a step", "GFLOP/s", f"seconds per FLOP over {reference}'s"]
    steps = sorted({entry.num_steps for entry in calibration.entries})
    return "\n\n".join(
        [
            "# Time against FLOPs",
            f"Optimizer steps {calibration.describe()}, {calibration.num_threads} thread, each "
            f"shape alone on a quiet machine: medians of {', '.join(map(str, steps))} steps. "
            "GFLOP/s are the plan's training FLOPs over measured seconds. In brackets: with the "
            f"family's fastest and its slowest step, over {reference}'s median.",
            markdown_table(head, rows),
            *_sentences(found, reference),
        ]
    )


def _row(clock: Clock, reference: Clock) -> list[str]:
    return [
        f"{clock.arch}, {format_flops(clock.budget_flops)}",
        "optimum" if clock.at_optimum else "centre",
        f"{1000 * clock.step_s:.2f}",
        f"{clock.flops_per_s / 1e9:.2f}",
        clock.seconds_per_flop.over(reference.seconds_per_flop),
    ]


def _sentences(found: Mapping[CellKey, Clock], reference: str) -> list[str]:
    """Say for each family how far its time is from following FLOPs."""
    lines = []
    for arch in dict.fromkeys(arch for arch, _ in found):
        own = [clock for clock in found.values() if clock.arch == arch]
        ratios = [
            clock.seconds_per_flop.relative(found[reference, clock.budget_flops].seconds_per_flop)
            for clock in own
        ]
        rates = [clock.flops_per_s for clock in own]
        line = f"- {arch}: its rate varies by a factor of {max(rates) / min(rates):.2f} from budget"
        if arch != reference:
            line += (
                f" to budget; a FLOP takes {min(ratios):.2f} to {max(ratios):.2f} times as long as "
                f"{reference}'s, which is the compute multiplier that breaks even by the clock."
            )
        else:
            line += " to budget."
        lines.append(line)
    return ["\n".join(lines)]


def timed_fits(folder: Path, plan: Plan, calibration: Calibration) -> Fits | None:
    """Fit a study's runs with their times replaced by steps × measured seconds; None before runs.

    Raises:
        UserError: the table holds a run that the plan does not.
    """
    path = folder / "runs.parquet"
    if not path.is_file():
        return None
    measured = calibration.by_shape()
    specs = {run.run_id: run.spec for run in plan.runs}
    rows = read_table(path, RUNS)
    for row in rows:
        if row["run_id"] not in specs:
            raise UserError("runs table", row["run_id"], "runs of the plan", "fit the study again")
        spec = specs[row["run_id"]]
        row["wall_s"] = spec.steps * measured[shape_key(spec)].step_s
    return fit_optima(select_points(rows), methods=(DEFAULT_METHOD,), axes=("n_params",))


def time_section(fits: Fits, plan: Plan, reference: str) -> str:
    """Return the multipliers along measured time, and what the study's rules on time say then."""
    compared: Sequence[Comparison] = compare_archs(
        fits.under(reference=reference), resources=("wall_s",)
    )
    sentences = [f"- {comparison_sentence(row)}" for row in compared if row.arch != reference]
    rules = [one for one in plan.study.hypotheses if "wall_s" in one.decide]
    verdicts = [
        f"- {verdict.id}, `{verdict.decide}`: **{verdict.verdict}** ({verdict.detail})"
        for verdict in judge(rules, fits)
    ]
    blocks = [
        "## Families along measured time",
        "Every run's time is its steps times the seconds measured here, since the runs themselves "
        "shared the machine. Time that goes into the same losses:",
        "\n".join(sentences),
    ]
    if verdicts:
        start = "The study's frozen rules on time, judged with these times:"
        blocks += [start, "\n".join(verdicts)]
    return "\n\n".join(blocks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument("--reference", default="mlp")
    chosen = parser.parse_args(arguments)
    plan, calibration = read_plan(chosen.folder), load_calibration(chosen.folder)
    found = clocks(plan, calibration, interior_optima(chosen.folder))
    if chosen.reference not in {arch for arch, _ in found}:
        parser.error(f"--reference = {chosen.reference}: the plan has no such arch")
    sections = [page(found, calibration, chosen.reference)]
    fits = timed_fits(chosen.folder, plan, calibration)
    if fits is not None:
        sections.append(time_section(fits, plan, chosen.reference))
    print("\n\n".join(sections))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"clock: {error}") from None
