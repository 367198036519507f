"""Studies of a trainer of one's own with results whose optima are known; nothing is trained."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.launch.collect import RunState, runs_row
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import RunResult
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.runs import PlannedRun
from isoflop.study.file import study_from_toml
from isoflop.tables import runs_schema, write_table
from made_trainer import SCRIPT, own_values

SIZES = tuple(round(4e5 * 2**rung) for rung in range(7))
BUDGETS = (1e14, 4e14, 1.6e15)
DECLARED: Mapping[str, Any] = {
    "flops_per_token": [6 * size for size in SIZES],
    "n_params": list(SIZES),
}


def nats(run: PlannedRun) -> float:
    """A surface whose optima lie inside the ladder; gated has a third of the compute for free."""
    gain = 4 / 3 if run.arch == "gated" else 1.0
    noise = random.Random(f"{run.arch} {run.size} {run.budget_flops}").gauss(0, 1e-3)
    terms = 2.0 / (run.n_params / 1e6) ** 0.35 + 2.0 / (gain * run.n_tokens / 2e7) ** 0.37
    return (1.6 + terms) * math.exp(noise)


def make_plan_of(folder: Path, *, budgets: Sequence[float] = BUDGETS, **trainer: Any) -> Plan:
    """Plan the study into a folder, with its code beside it; some of [trainer] changed."""
    code = folder.parent / "code"
    code.mkdir(parents=True, exist_ok=True)
    (code / "train.py").write_text(SCRIPT)
    given = {"count": DECLARED, "ladder": {"depth": list(range(1, len(SIZES) + 1))}} | trainer
    values = own_values(code, **given)
    values["study"]["budgets"] = list(budgets)
    plan = make_plan(study_from_toml(values))
    write_plan(plan, folder)
    return plan


def result_of(run: PlannedRun, loss: float, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What came of a run, as its attempt writes it."""
    return {
        "status": "done",
        "status_reason": None,
        "loss": loss,
        "num_steps": run.spec.steps,
        "wall_s": run.flops / 1e13,
        "metrics": metrics,
    }


def write_runs(
    folder: Path,
    plan: Plan,
    loss: Callable[[PlannedRun], float] = nats,
    metrics: Callable[[PlannedRun], Mapping[str, float]] = lambda _: {},
) -> None:
    """Write runs.parquet as `collect` does of a study whose runs are all done."""
    rows = []
    for run in plan.runs:
        values = result_of(run, loss(run), metrics(run))
        result = RunResult(schema_version=1, run_id=run.run_id, attempt=1, **values)
        state = RunState(
            run=run, state="done", reason=None, num_attempts=1, step=None, result=result
        )
        rows.append(runs_row(state))
    write_table(folder / "runs.parquet", rows, runs_schema(rows, plan.study.loss_unit))


def write_results(
    folder: Path,
    plan: Plan,
    loss: Callable[[PlannedRun], float] = nats,
    metrics: Callable[[PlannedRun], Mapping[str, float]] = lambda _: {},
) -> None:
    """Write a run folder with a result of every run."""
    for run in plan.unique_runs:
        run_folder = RunFolder(folder, run.run_id)
        run_folder.path.mkdir(parents=True)
        run_folder.write_spec(run.spec)
        attempt = run_folder.claim({})
        assert attempt is not None
        assert run_folder.write_result(attempt, result_of(run, loss(run), metrics(run)))
        run_folder.end_attempt(attempt, "done")
