"""`isoflop submit`: sends the runs of a plan that are not done, each exactly once.

`prepare` makes a study ready and writes nothing: checked, estimated, placed, grouped into arrays.
`send` holds a lock in the study's folder, checks again which runs have a result, a live attempt or
a job in the queue, writes down what it is about to send, sends it, and writes down every answer.
Nothing waits for a job.
"""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from isoflop.errors import UserError
from isoflop.files import write_json_atomic
from isoflop.launch.job import Job, check_gpus, check_layout, resolve_placement
from isoflop.launch.local import begin, given_placement, open_session
from isoflop.launch.process import ProcessIdentity
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm import executors, records, scheduler
from isoflop.launch.slurm.arrays import ArrayPlan, RunToSend, plan_arrays, share_evenly
from isoflop.launch.slurm.environment import profile_in_shell
from isoflop.launch.slurm.failures import num_failures
from isoflop.launch.slurm.limits import LiveArray, live_arrays, room_for, throttled, within
from isoflop.launch.slurm.outcome import SubmitReport
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.queue import record_found
from isoflop.launch.slurm.records import SentArray, Submission, submit_lock
from isoflop.launch.slurm.snapshot import Snapshot, snapshot_of
from isoflop.launch.slurm.then_fit import fit_array, is_due
from isoflop.launch.status import live_work
from isoflop.launch.trunks import Start, starts
from isoflop.launch.workers import num_cores
from isoflop.placement import placement_from
from isoflop.plan.artefact import read_plan
from isoflop.plan.estimate import PlanEstimate, RunEstimate, estimate_for
from isoflop.plan.planner import Plan
from isoflop.spec import RunSpec

if TYPE_CHECKING:
    from isoflop.placement import PlacementTable

# sbatch reads them its own way in the names of logs, however they are quoted.
_NOT_IN_PATHS = "%\\\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A study made ready to be sent: data verified, placements chosen."""

    folder: Path
    plan: Plan
    profile: ClusterProfile
    estimate: PlanEstimate
    jobs: Mapping[str, Job]
    """How the runs that are to be sent are executed, by run id."""
    runs: Mapping[str, RunToSend]
    """The same, for grouping."""
    starts: Mapping[str, Start]
    """Where each of them is going to begin, by run id."""
    parked: tuple[str, ...]
    """Runs that failed too often; they are not sent."""
    num_done: int
    num_live: int
    """Runs that a process trains or a job in the queue is going to; they are not sent."""
    hidden: Mapping[str, str]
    """Likewise, runs whose job may be there without being shown, with the reason."""
    num_tasks: int
    """Jobs and tasks of arrays in the queue."""
    damaged: Mapping[str, UserError]
    """Runs whose records cannot be read, by run id; they are not sent."""
    snapshot: Snapshot
    max_array_size: int
    cluster_name: str | None
    """SLURM's name of the cluster; None: this machine."""
    live: tuple[LiveArray, ...]
    """The study's arrays that are in the queue."""
    then_fit: bool
    """Whether a last job is to fit when all is over."""
    submission_id: str
    options: Mapping[str, Any]
    """Entries of a [placement] table that were given for all runs."""
    shell_lines: tuple[str, ...] = ()
    """What variables of sbatch in the shell that submits came to, for people."""

    @property
    def gpu_hours(self) -> float:
        """Estimated device-hours of the steps that are to be executed."""
        found = ((self.estimate.runs[i], self.starts[i]) for i in self.runs)
        return sum(run.hours_of(start.num_left) or 0.0 for run, start in found)

    @property
    def gpu_hours_saved(self) -> float:
        """Estimated device-hours of the steps that longer runs do for these."""
        found = ((self.estimate.runs[i], self.starts[i]) for i in self.runs)
        hours = (
            (run.gpu_hours, run.hours_of(start.num_left)) for run, start in found if start.sibling
        )
        return sum(whole - left for whole, left in hours if whole is not None and left is not None)

    @property
    def cost(self) -> float | None:
        """Of these hours; None: no price is known."""
        price = self.profile.price_per_hour
        if price is None:
            price = self.profile.load_hardware().price_per_hour
        return None if price is None else price * self.gpu_hours


def submit(
    folder: Path,
    profile: ClusterProfile,
    *,
    options: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> SubmitReport:
    """Prepare and send; see :func:`prepare` and :func:`send`."""
    return send(prepare(folder, profile, options=options, only=only))


def prepare(
    folder: Path,
    profile: ClusterProfile,
    *,
    options: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
    then_fit: bool = False,
    decided: Mapping[str, Mapping[str, Any]] | None = None,
) -> Prepared:
    """Make a study ready to be sent; query the cluster for its limits and for what it has already.

    Args:
        folder: the study's folder, with a plan.
        profile: where the runs go.
        options: entries that take the place of those in the study's [placement] table.
        then_fit: whether a last job is to fit when all is over.
        only: run ids; None: all. What `isoflop retry` decided for one takes the place of both.
        decided: such decisions by run id, before they are recorded; None: only those that are.

    Raises:
        UserError: no plan, data that are not there or damaged, an option or layout that is not
            possible, no scheduler.
    """
    profile, shell_lines = profile_in_shell(profile, os.environ)
    # The same paths on the nodes, whatever folder a job starts in.
    folder = folder.absolute()
    if not profile.is_local and any(letter in str(folder) for letter in _NOT_IN_PATHS):
        raise UserError("folder", str(folder), "a path without %, \\ and line ends", "rename it")
    # A missing plan is reported before a missing scheduler.
    read_plan(folder)
    max_array_size, cluster_name = _cluster_of(profile)
    typed = {key: value for key, value in (options or {}).items() if value not in (None, ())}
    given = typed if profile.is_local else {**typed, "device": profile.device}
    # The study's number of workers is for `isoflop run`; here the cluster decides.
    session = open_session(folder, options={**given, "workers": 1}, only=only, is_here=False)
    profile.load_hardware()
    estimate = estimate_for(session.plan, folder, profile.hardware, profile.price_per_hour)
    specs = {run.run_id: run.spec for run in session.plan.unique_runs}
    recorded = {**records.read_options(folder, specs), **(decided or {})}
    live = live_work(folder, session.plan, session.results)
    wanted = {job.run_id for job in session.jobs}
    hidden = {run_id: words for run_id, words in live.hidden.items() if run_id in wanted}
    free = [job for job in session.jobs if job.run_id not in live.run_ids]
    parked = [job.run_id for job in free if _is_parked(folder, job.run_id, profile, recorded)]
    jobs, runs = {}, {}
    to_send = [job for job in free if job.run_id not in parked]
    begins = starts(folder, session.plan, live.run_ids | wanted - {*parked}, session.results)
    for job in to_send:
        run_id = job.run_id
        own = recorded.get(run_id, {})
        tables = [given, own.get("placement", {})]
        jobs[run_id] = _placed(job, given_placement(session.plan.study, *tables), estimate)
        check_layout(specs[run_id], jobs[run_id].placement)
        if profile.is_local:
            check_gpus(jobs[run_id].placement)
        excluded = own.get("exclude_nodes", ())
        runs[run_id] = _run_to_send(jobs[run_id], estimate.runs[run_id], begins[run_id], excluded)
    return Prepared(
        folder=folder,
        plan=session.plan,
        profile=profile,
        estimate=estimate,
        jobs=jobs,
        runs=runs,
        starts=begins,
        parked=tuple(parked),
        num_done=session.num_done_before,
        num_live=len(session.jobs) - len(free) - len(hidden),
        hidden=hidden,
        num_tasks=live.queue.num_live_tasks,
        damaged=session.damaged,
        snapshot=snapshot_of(folder, _families(session.plan)),
        max_array_size=max_array_size,
        cluster_name=cluster_name,
        live=tuple(live_arrays(live.queue)),
        then_fit=then_fit and (bool(runs) or is_due(live.queue, live.run_ids)),
        submission_id=_new_id(),
        options=typed,
        shell_lines=shell_lines,
    )


def _families(plan: Plan) -> set[str]:
    return {run.spec.family for run in plan.runs if isinstance(run.spec, RunSpec)}


def _cluster_of(profile: ClusterProfile) -> tuple[int, str | None]:
    """Return the cluster's MaxArraySize and name; this machine has no arrays and no name."""
    if profile.is_local:
        return 1, None
    config = scheduler.config()
    # One more than the largest index. A cluster without arrays has 0.
    size = int(config.get("MaxArraySize", "1001"))
    return size, scheduler.Cluster.of_config(config).name or None


def send(prepared: Prepared, *, fills_up: bool = False) -> SubmitReport:
    """Send what has no result, no live attempt and no job yet; do not wait for jobs.

    Args:
        prepared: what is to be sent.
        fills_up: whether to send no more tasks than the throttle lets run at once now.

    Raises:
        UserError: another submission of this study is at work, the scheduler does not answer (then
            nothing was sent), or the code snapshot was changed.
    """
    with submit_lock(prepared.folder):
        live = live_work(prepared.folder, prepared.plan)
        prepared = dataclasses.replace(
            prepared,
            live=tuple(live_arrays(live.queue)),
            num_tasks=live.queue.num_live_tasks,
        )
        record_found(prepared.folder, live.queue)
        free = [run_id for run_id in prepared.runs if run_id not in live.run_ids]
        hidden = {r: live.hidden[r] for r in prepared.runs if r in live.hidden}
        todo = [r for r in free if RunFolder(prepared.folder, r).result() is None]
        room = _room(prepared, fills_up=fills_up)
        plans, left = within(_grouped(prepared, todo), room)
        num_tasks = sum(len(plan.tasks) for plan in plans)
        fit_is_left = prepared.then_fit and (bool(left) or room == num_tasks)
        plans = _throttled(prepared, plans, with_fit=prepared.then_fit and not fit_is_left)
        arrays: tuple[SentArray, ...] = ()
        begin(prepared.folder, prepared.plan, todo)
        unanswered = None
        if plans:
            prepared.snapshot.write()
            arrays, unanswered = _send_all(prepared, plans)
    return SubmitReport(
        submission_id=prepared.submission_id if plans else None,
        arrays=arrays,
        num_done=prepared.num_done + len(free) - len(todo),
        num_live=prepared.num_live + len(prepared.runs) - len(free) - len(hidden),
        hidden={**prepared.hidden, **hidden},
        parked=prepared.parked,
        left=left,
        fit_is_left=fit_is_left,
        num_tasks=prepared.num_tasks + sum(len(array.tasks) for array in arrays if array.job_id),
        unanswered=unanswered,
        is_local=prepared.profile.is_local,
    )


def send_left(prepared: Prepared, left: Collection[str]) -> SubmitReport:
    """Send those that an earlier :func:`send` left and may run at once now; raises as it does."""
    runs = {run_id: run for run_id, run in prepared.runs.items() if run_id in left}
    later = dataclasses.replace(
        prepared, runs=runs, parked=(), num_done=0, num_live=0, submission_id=_new_id()
    )
    return send(later, fills_up=True)


def _new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def _send_all(
    prepared: Prepared, plans: Sequence[ArrayPlan]
) -> tuple[tuple[SentArray, ...], str | None]:
    """Send array after array; after each, what is known is on the disk.

    Returns the arrays, and what was said in place of an answer: after it nothing more is sent.
    """
    jobs = {
        run_id: prepared.jobs[run_id].to_json()
        for plan in plans
        for task in plan.tasks
        for run_id in task
    }
    write_json_atomic(records.jobs_file(prepared.folder, prepared.submission_id), jobs)
    arrays = [
        SentArray(
            job_id=None,
            tasks=plan.tasks,
            rejected=None,
            is_array=not prepared.profile.is_local and len(plan.tasks) > 1,
            at_a_time=plan.at_a_time,
            is_fit=plan.is_fit,
        )
        for plan in plans
    ]
    created_at = time.time()
    _record(prepared, created_at, arrays)
    for number, plan in enumerate(plans):
        try:
            job_id = _send(prepared, plan, number, [array.job_id for array in arrays])
            process = ProcessIdentity.of(int(job_id)) if prepared.profile.is_local else None
            sent = dataclasses.replace(arrays[number], job_id=job_id, process=process)
            arrays[number] = sent
        except executors.Rejected as error:
            arrays[number] = dataclasses.replace(arrays[number], rejected=str(error))
        except executors.Unanswered as error:
            # The record stays as that of a submission that was cut off here.
            return tuple(arrays), str(error)
        _record(prepared, created_at, arrays)
    return tuple(arrays), None


def _record(prepared: Prepared, created_at: float, arrays: Sequence[SentArray]) -> None:
    submission = Submission(
        submission_id=prepared.submission_id,
        created_at=created_at,
        profile=prepared.profile.to_json(),
        snapshot=str(prepared.snapshot.folder),
        cluster="local" if prepared.profile.is_local else "slurm",
        arrays=tuple(arrays),
        options=cast("PlacementTable", dict(prepared.options)),
        cluster_name=prepared.cluster_name,
        user=None if prepared.profile.is_local else scheduler.user_name(),
        job_name=None if prepared.profile.is_local else _job_name(prepared),
    )
    records.write_submission(prepared.folder, submission)


def _send(prepared: Prepared, plan: ArrayPlan, number: int, ids: Sequence[str | None]) -> str:
    """Send one array, of which those before have got these ids; return its own."""
    folder = records.array_folder(prepared.folder, prepared.submission_id, number)
    arguments = _arguments(prepared, number)
    if prepared.profile.is_local:
        gpus = gpus_of(prepared, plan, number)
        variables = variables_of(prepared)
        return executors.send_to_this_machine(folder, variables, arguments, gpus)
    parameters = parameters_of(prepared, plan, number, ids)
    return executors.send_to_slurm(plan, prepared.profile, folder, parameters, arguments)


def _arguments(prepared: Prepared, array: int) -> tuple[str, str, str]:
    """Return what isoflop.launch.slurm.task is given."""
    return (str(prepared.folder), prepared.submission_id, str(array))


def num_left_of(prepared: Prepared) -> int:
    """Return the runs that the limit on submitted tasks leaves for later, as things stand now."""
    return len(within(_grouped(prepared, None), _room(prepared, fills_up=False))[1])


def _room(prepared: Prepared, *, fills_up: bool) -> int | None:
    return room_for(prepared.profile, prepared.num_tasks, prepared.live, fills_up=fills_up)


def arrays_of(prepared: Prepared, run_ids: Collection[str] | None = None) -> list[ArrayPlan]:
    """Return the arrays that some runs, or all that are to be sent, make."""
    return _throttled(prepared, _grouped(prepared, run_ids), with_fit=prepared.then_fit)


def _throttled(
    prepared: Prepared, plans: Sequence[ArrayPlan], *, with_fit: bool
) -> list[ArrayPlan]:
    """Return arrays with their shares of the throttle, and after them the job that fits."""
    shared = list(plans)
    if not prepared.profile.is_local:
        shared = throttled(plans, prepared.profile.throttle, prepared.live)
    fit = [fit_array(prepared.profile, len(shared), prepared.live)] if with_fit else []
    return [*shared, *fit]


def _grouped(prepared: Prepared, run_ids: Collection[str] | None) -> list[ArrayPlan]:
    """Return the arrays before anything limits them."""
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


def parameters_of(
    prepared: Prepared, plan: ArrayPlan, array: int, ids: Sequence[str | None]
) -> dict[str, Any]:
    """Return the parameters of an array for submitit, where those before have got these ids."""
    before = (ids[number] for number in plan.after_arrays)
    return executors.sbatch_parameters(
        plan,
        prepared.profile,
        job_name=_job_name(prepared),
        comment=records.comment_of(prepared.submission_id, array),
        variables=variables_of(prepared),
        # One whose id is not known, or that was rejected, cannot be waited for.
        after=[*plan.after_jobs, *(job_id for job_id in before if job_id is not None)],
    )


def _job_name(prepared: Prepared) -> str:
    return f"isoflop-{prepared.plan.study.name}"


def dry_run_texts(prepared: Prepared) -> list[str]:
    """Return the script of each array, as it would be given to sbatch; none for this machine."""
    if prepared.profile.is_local:
        return []
    plans = arrays_of(prepared)
    ids = [f"JOB_OF_ARRAY_{number}" for number in range(len(plans))]
    return [
        executors.sbatch_text(
            plan,
            prepared.profile,
            records.array_folder(prepared.folder, prepared.submission_id, number),
            parameters_of(prepared, plan, number, ids),
            _arguments(prepared, number),
        )
        for number, plan in enumerate(plans)
    ]


def variables_of(prepared: Prepared) -> dict[str, str]:
    """Return the environment of the tasks, besides what they inherit."""
    return prepared.snapshot.variables(os.environ.get("PYTHONPATH"))


def gpus_of(prepared: Prepared, plan: ArrayPlan, number: int) -> list[int]:
    """Return the numbers of the GPUs of a local task."""
    if plan.is_fit:
        return []
    gpus = executors.local_gpus(prepared.jobs.values())
    num_ranks = plan.resources.num_ranks
    first = number * num_ranks % len(gpus) if gpus else 0
    return gpus[first : first + num_ranks]


def _is_parked(
    folder: Path, run_id: str, profile: ClusterProfile, recorded: Mapping[str, Mapping[str, Any]]
) -> bool:
    return num_failures(RunFolder(folder, run_id), recorded) >= profile.max_failures


def _placed(job: Job, given: Mapping[str, Any], estimate: PlanEstimate) -> Job:
    """Return the job on the profile's hardware, whatever hardware the plan was estimated for."""
    planned = estimate.runs[job.run_id].placement
    return dataclasses.replace(
        job, placement=resolve_placement(placement_from(given), given, planned)
    )


def _run_to_send(job: Job, run: RunEstimate, start: Start, excluded: Collection[str]) -> RunToSend:
    # FLOPs alone say too little of how long a command takes to limit it by them.
    hours = None if run.source == "flops" else run.hours_of(start.num_left)
    fork_s = None
    if start.sibling is not None and not start.is_there:
        # A step of the longer one takes as long.
        fork_s = math.inf if run.step_s is None else start.step * run.step_s
    return RunToSend(
        run_id=job.run_id,
        seconds=None if hours is None else 3600 * hours / run.num_devices,
        num_ranks=job.placement.num_ranks,
        peak_mem_bytes=run.peak_mem_bytes,
        exclude_nodes=tuple(sorted(excluded)),
        starts_ranks=job.trainer is not None,
        fork_s=fork_s,
    )


def _num_local_tasks(runs: Sequence[RunToSend], prepared: Prepared) -> int:
    num_ranks = max((run.num_ranks for run in runs), default=1)
    num_devices = len(executors.local_gpus(prepared.jobs.values())) or num_cores()
    return max(1, num_devices // num_ranks)
