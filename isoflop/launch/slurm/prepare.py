"""A study made ready to be sent: checked, estimated, placed and grouped into arrays."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.launch.job import Job
from isoflop.launch.layout import laid_out, num_gpus
from isoflop.launch.local import open_session
from isoflop.launch.pool import num_cores
from isoflop.launch.slurm import executors, records, scheduler
from isoflop.launch.slurm.arrays import ArrayPlan, RunToSend, plan_arrays, share_evenly
from isoflop.launch.slurm.failures import num_failures
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.snapshot import Snapshot, snapshot_of
from isoflop.launch.slurm.states import live_runs
from isoflop.launch.store import RunFolder
from isoflop.placement import placement_from
from isoflop.plan.artefact import read_plan
from isoflop.plan.estimate import PlanEstimate, estimate_for
from isoflop.plan.planner import Plan

# sbatch reads them its own way in the names of logs, however they are quoted.
_NOT_IN_PATHS = "%\\\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A study made ready to be sent: data verified, specs written, placements chosen."""

    folder: Path
    plan: Plan
    profile: ClusterProfile
    estimate: PlanEstimate
    jobs: Mapping[str, Job]
    """How the runs that are to be sent are executed, by run id."""
    runs: Mapping[str, RunToSend]
    """The same, for grouping."""
    parked: tuple[str, ...]
    """Runs that failed too often; they are not sent."""
    num_done: int
    num_live: int
    """Runs that a process trains or a job in the queue is going to; they are not sent."""
    snapshot: Snapshot
    max_array_size: int
    submission_id: str
    options: Mapping[str, Any]
    """Entries of a [placement] table that were given for all runs."""

    @property
    def gpu_hours(self) -> float:
        """Estimated device-hours of what is to be sent."""
        hours = (self.estimate.runs[run_id].gpu_hours for run_id in self.runs)
        return sum(h for h in hours if h is not None)

    @property
    def cost(self) -> float | None:
        """Of these hours; None: no price is known."""
        price = self.profile.price_per_hour
        if price is None:
            price = self.profile.load_hardware().price_per_hour
        return None if price is None else price * self.gpu_hours


def prepare(
    folder: Path,
    profile: ClusterProfile,
    *,
    options: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> Prepared:
    """Make a study ready to be sent; asks the cluster for its limits and for what it has already.

    Args:
        folder: the study's folder, with a plan.
        profile: where the runs go.
        options: entries that take the place of those in the study's [placement] table.
        only: run ids; None: all. What `isoflop retry` decided for one takes the place of both.

    Raises:
        UserError: no plan, data that are not there or damaged, an option or layout that is not
            possible, no scheduler.
    """
    # The same paths on the nodes, whatever folder a job starts in.
    folder = folder.absolute()
    if not profile.is_local and any(letter in str(folder) for letter in _NOT_IN_PATHS):
        raise UserError("folder", str(folder), "a path without %, \\ and line ends", "rename it")
    # A folder without a plan is said before a scheduler that is not there.
    read_plan(folder)
    max_array_size = 1 if profile.is_local else _max_array_size()
    typed = {key: value for key, value in (options or {}).items() if value not in (None, ())}
    given = typed if profile.is_local else {**typed, "device": profile.device}
    # Workers are the cluster's business; what the study says of them is for `isoflop run`.
    session = open_session(folder, options={**given, "workers": 1})
    estimate = _estimate(session.plan, folder, profile)
    recorded = records.read_options(folder)
    live = live_runs(folder, session.plan)
    wanted = [job for job in session.jobs if only is None or job.run_id in only]
    free = [job for job in wanted if job.run_id not in live]
    parked = [job.run_id for job in free if _is_parked(folder, job.run_id, profile, recorded)]
    jobs, runs = {}, {}
    left_out = set(parked)
    for job in (job for job in free if job.run_id not in left_out):
        run_id = job.run_id
        own = recorded.get(run_id, {})
        tables = [session.plan.study.placement, given, own.get("placement", {})]
        jobs[run_id] = _placed(job, tables, estimate)
        runs[run_id] = _run_to_send(jobs[run_id], estimate, own.get("exclude_nodes", ()))
    return Prepared(
        folder=folder,
        plan=session.plan,
        profile=profile,
        estimate=estimate,
        jobs=jobs,
        runs=runs,
        parked=tuple(parked),
        num_done=session.num_done_before,
        num_live=len(wanted) - len(free),
        snapshot=snapshot_of(folder, _families(session.plan)),
        max_array_size=max_array_size,
        submission_id=_new_id(),
        options=typed,
    )


def arrays_of(prepared: Prepared, run_ids: Collection[str] | None = None) -> list[ArrayPlan]:
    """Return the arrays that some runs, or all that are to be sent, make."""
    profile = prepared.profile
    wanted = prepared.runs.keys() if run_ids is None else set(run_ids)
    runs = [run for run in prepared.runs.values() if run.run_id in wanted]
    if not profile.is_local:
        return plan_arrays(runs, profile, prepared.max_array_size)
    # One process each; as many as this machine has cores, or GPUs.
    shares = share_evenly(runs, _num_local_tasks(runs, prepared))
    resources = [
        plan_arrays([prepared.runs[share[0]]], profile, 1)[0].resources for share in shares
    ]
    return [
        ArrayPlan(resources=needs, tasks=(share,))
        for needs, share in zip(resources, shares, strict=True)
    ]


def parameters_of(prepared: Prepared, plan: ArrayPlan, array: int) -> dict[str, Any]:
    """Return what submitit is told of an array."""
    return executors.sbatch_parameters(
        plan,
        prepared.profile,
        job_name=f"isoflop-{prepared.plan.study.name}",
        comment=records.comment_of(prepared.submission_id, array),
        variables=variables_of(prepared),
    )


def dry_run_texts(prepared: Prepared) -> list[str]:
    """Return the script of each array, as it would be given to sbatch; none for this machine."""
    if prepared.profile.is_local:
        return []
    return [
        executors.sbatch_text(
            plan,
            prepared.profile,
            records.array_folder(prepared.folder, prepared.submission_id, number),
            parameters_of(prepared, plan, number),
        )
        for number, plan in enumerate(arrays_of(prepared))
    ]


def variables_of(prepared: Prepared) -> dict[str, str]:
    """Return environment of the tasks, besides what they inherit."""
    return prepared.snapshot.variables(os.environ.get("PYTHONPATH"))


def gpus_of(prepared: Prepared, plan: ArrayPlan, number: int) -> list[int]:
    """Return numbers of the GPUs of a local task."""
    gpus = _local_gpus(prepared)
    num_ranks = plan.resources.num_ranks
    first = number * num_ranks % len(gpus) if gpus else 0
    return gpus[first : first + num_ranks]


def _max_array_size() -> int:
    config = scheduler.config()
    # One more than the largest index. A cluster without arrays says 0.
    return int(config.get("MaxArraySize", "1001"))


def _estimate(plan: Plan, folder: Path, profile: ClusterProfile) -> PlanEstimate:
    profile.load_hardware()
    return estimate_for(plan, folder, profile.hardware, profile.price_per_hour)


def _is_parked(
    folder: Path, run_id: str, profile: ClusterProfile, recorded: Mapping[str, Mapping[str, Any]]
) -> bool:
    return num_failures(RunFolder(folder, run_id), recorded) >= profile.max_failures


def _placed(job: Job, tables: Sequence[Mapping[str, Any]], estimate: PlanEstimate) -> Job:
    """Return the job on the profile's hardware, whatever hardware the plan was estimated for."""
    given = {k: v for table in tables for k, v in table.items() if v is not None}
    planned = estimate.runs[job.run_id].placement
    return dataclasses.replace(job, placement=laid_out(placement_from(given), given, planned))


def _run_to_send(job: Job, estimate: PlanEstimate, excluded: Collection[str]) -> RunToSend:
    run = estimate.runs[job.run_id]
    devices = run.placement.num_devices
    return RunToSend(
        run_id=job.run_id,
        seconds=None if run.gpu_hours is None else 3600 * run.gpu_hours / devices,
        num_ranks=job.placement.num_ranks,
        peak_mem_bytes=run.peak_mem_bytes,
        exclude_nodes=tuple(sorted(excluded)),
    )


def _families(plan: Plan) -> set[str]:
    return {run.spec.family for run in plan.runs}


def _new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def _num_local_tasks(runs: Sequence[RunToSend], prepared: Prepared) -> int:
    num_ranks = max((run.num_ranks for run in runs), default=1)
    num_devices = len(_local_gpus(prepared)) or num_cores()
    return max(1, num_devices // num_ranks)


def _local_gpus(prepared: Prepared) -> list[int]:
    """Return numbers of the GPUs that local tasks share; empty: they use the CPU."""
    placement = next((job.placement for job in prepared.jobs.values()), None)
    if placement is None or not placement.device.startswith("cuda"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [int(number) for number in visible.split(",") if number.isdecimal()]
    return named or list(range(num_gpus(placement)))
