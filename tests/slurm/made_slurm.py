"""Small studies on a real cluster, and how the same runs end where nothing disturbs them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from command import isoflop
from isoflop.data.prepare import prepare
from isoflop.data.windows import open_data
from isoflop.launch.collect import RunState
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm.records import SentArray, read_submissions, slurm_task_id
from isoflop.launch.status import study_status
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.runs import PlannedRun
from isoflop.plan.trunks import trunks_of
from isoflop.study import Study
from isoflop.train.loop import Placement, RunOutcome, train_run
from made_studies import micro
from slurm.made_cluster import Cluster, wait_until

# Steps of a size-1 mlp at these budgets, and how long they take on an idle core.
SHORT = 10**8  # 63 steps, 0.3 s
LONG = 15 * 10**8  # 953 steps, 4 s
LONGER = 5 * 10**9  # 3,178 steps, 15 s
VERY_LONG = 10**10  # 6,357 steps, 30 s
NUMBERS = ("loss", "loss_se", "bits_per_byte", "reference_perplexity", "num_steps")

_PROFILE = {
    "name": "tests",
    "hardware": "cpu2",
    "partition": "main",
    "memory_gb_per_device": 0.9,
    "time_limit_min": 60,
    "time_floor_min": 15,
    "signal_s": 30,
}


@dataclass
class ClusterStudy:
    """A study's folder, and the cluster that it is sent to."""

    cluster: Cluster
    folder: Path
    profile: dict[str, Any] = field(default_factory=lambda: dict(_PROFILE))
    plan: Plan = field(init=False)

    @property
    def runs(self) -> Sequence[PlannedRun]:
        """In the plan's order; where some share a trunk, the longest first."""
        if not trunks_of(self.plan):
            return self.plan.unique_runs
        return sorted(self.plan.unique_runs, key=lambda run: -run.spec.steps)

    def run_folder(self, index: int = 0) -> RunFolder:
        return RunFolder(self.folder, self.runs[index].run_id)

    def write_profile(self, **changes: Any) -> Path:
        path = self.folder.parent / "profile.toml"
        values = {k: v for k, v in (self.profile | changes).items() if v is not None}
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        return path

    def submit(self, *options: str, **changes: Any) -> CompletedProcess[str]:
        """Sends the plan; settings of the profile may differ from those of the other tests."""
        profile = self.write_profile(**changes)
        sent = isoflop("submit", self.folder, "--cluster", profile, "--yes", *options)
        assert sent.returncode == 0, sent.stdout + sent.stderr
        return sent

    def arrays(self) -> list[SentArray]:
        return [a for submission in read_submissions(self.folder) for a in submission.arrays]

    def submission_id(self) -> str:
        """Of the newest one."""
        return read_submissions(self.folder)[-1].submission_id

    def job(self, index: int = 0) -> str:
        """The scheduler's name of the task that a run was last sent in."""
        run_id = self.runs[index].run_id
        for array in reversed(self.arrays()):
            for task, run_ids in enumerate(array.tasks):
                if run_id in run_ids and (job := slurm_task_id(array, task)):
                    return job
        raise AssertionError("it was not sent")

    def state(self, index: int = 0) -> RunState:
        """Where a run stands, as `isoflop status` has it."""
        states = study_status(self.folder, self.plan).states
        return next(s for s in states if s.run.run_id == self.runs[index].run_id)

    def wait_for_state(self, *states: str, seconds: float = 60.0) -> RunState:
        return wait_until(
            lambda: (state := self.state()).state in states and state,
            " or ".join(states),
            seconds=seconds,
        )

    def wait_for_step(self, step: int = 50, *, attempt: int = 1, index: int = 0) -> int:
        """Until an attempt is that far and can be resumed; the process that trains."""
        folder = self.run_folder(index)

        def look() -> bool:
            assert folder.result() is None, "the run ended before it could be disturbed"
            return any(folder.checkpoints.glob("[0-9]*")) and any(
                row["attempt"] >= attempt and row.get("step", 0) >= step
                for row in folder.metrics()
                if "grad_norm" in row
            )

        wait_until(look, f"step {step} of attempt {attempt}")
        return folder.attempts()[-1].holder.pid

    def wait_for_results(self, *, seconds: float = 120.0) -> None:
        wait_until(
            lambda: all(self._is_over(self.run_folder(i)) for i in range(len(self.runs))),
            "all runs done",
            seconds=seconds,
        )

    @staticmethod
    def _is_over(folder: RunFolder) -> bool:
        """Whether there is a result, and the attempt that wrote it has said so."""
        return folder.result() is not None and folder.attempts()[-1].ended

    def wait_for_empty_queue(self) -> None:
        # A job that ended while the controller was down tells it so minutes later.
        wait_until(lambda: not self.cluster.run("squeue", "-h"), "no job in the queue", seconds=240)

    def assert_branches_began_at_their_forks(self) -> None:
        """What the longest run of the trunk did was not done again."""
        (trunk,) = trunks_of(self.plan)
        for run, fork in trunk.branches:
            result = RunFolder(self.folder, run.run_id).result()
            assert result is not None
            assert result.trunk_steps == fork
        # What nothing needs any more is gone.
        assert not list(self.folder.glob("runs/*/forks/[0-9]*"))

    def assert_each_ended_once_as_undisturbed(self) -> None:
        """Bit for bit, whatever came between."""
        for index, run in enumerate(self.runs):
            folder = self.run_folder(index)
            result = folder.result()
            assert result is not None
            wanted = undisturbed(self.plan.study, run.run_id)
            for name in NUMBERS:
                assert getattr(result, name) == getattr(wanted, name)
            reasons = {a.number: a.exit_reason for a in folder.attempts()}
            assert [n for n, reason in reasons.items() if reason == "done"] == [result.attempt]
            later = [reason for n, reason in reasons.items() if n > result.attempt]
            assert set(later) <= {"already complete"}


def cluster_study(cluster: Cluster, folder: Path, **changes: Any) -> ClusterStudy:
    """A planned study of short runs of one family; ``changes`` are the study's."""
    made = ClusterStudy(cluster, folder)
    values = {"budgets": (SHORT,), "archs": ("mlp",), "sizes": (1,)} | changes
    placement = {"checkpoint_every": 1.0} | values.pop("placement", {})
    made.plan = make_plan(micro(placement=placement, **values))
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(made.plan, folder)
    prepare("sotu-embedded", "byte")
    return made


def undisturbed(study: Study, run_id: str) -> RunOutcome:
    """A run in this process, from start to end."""
    (run,) = (run for run in make_plan(study).unique_runs if run.run_id == run_id)
    return _trained(run_id, json.dumps(run.spec.to_json()))


@functools.cache
def _trained(run_id: str, spec: str) -> RunOutcome:
    from isoflop.spec import RunSpec

    data = open_data(prepare("sotu-embedded", "byte"))
    return train_run(RunSpec.from_json(json.loads(spec)), data, placement=Placement())
