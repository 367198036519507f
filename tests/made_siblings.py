"""Studies of one trunk of three runs, whose folders a test fills."""

from __future__ import annotations

from pathlib import Path

from isoflop.launch.job import Job, TrunkJob
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt
from isoflop.launch.trunks import trunk_jobs, waits_for
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import PlannedRun
from made_studies import micro


class Made:
    """A study of one trunk of three runs, in a folder."""

    def __init__(self, folder: Path, **changes: object) -> None:
        budgets = (10**10, 2 * 10**10, 4 * 10**10)
        plan = make_plan(
            micro(recipe="micro-v3", budgets=budgets, sizes=(2,), archs=("mlp",), **changes)
        )
        self.folder = folder
        self.plan = plan
        self.runs: tuple[PlannedRun, ...] = plan.runs
        self.jobs: dict[str, TrunkJob] = trunk_jobs(plan)
        for run in self.runs:
            self.of(run).write_spec(run.spec)

    def of(self, run: PlannedRun) -> RunFolder:
        return RunFolder(self.folder, run.run_id)

    def job(self, run: PlannedRun) -> TrunkJob:
        return self.jobs[run.run_id]

    def whole_job(self, run: PlannedRun) -> Job:
        return Job(
            study_folder=str(self.folder),
            run_id=run.run_id,
            data_folder="d",
            trunk=self.job(run),
        )

    def fork(self, run: PlannedRun, step: int) -> Path:
        path = self.of(run).forks / str(step)
        path.mkdir(parents=True)
        return path

    def begin(self, run: PlannedRun) -> Attempt:
        attempt = self.of(run).claim({})
        assert attempt is not None
        return attempt

    def longer(self, run: PlannedRun, *coming: PlannedRun, retries: bool = False) -> str | None:
        """The run that another one waits for."""
        ids = {other.run_id for other in coming}
        job = self.job(run)
        found = waits_for(self.folder, run.run_id, job, ids.__contains__, retries=retries)
        return None if found is None else found.run_id

    def finish(self, run: PlannedRun, status: str = "done", num_steps: int | None = None) -> None:
        attempt = self.begin(run)
        values = {
            "status": status,
            "status_reason": None,
            "loss": 3.0 if status == "done" else None,
            "num_steps": run.spec.steps if num_steps is None else num_steps,
        }
        assert self.of(run).write_result(attempt, values)
