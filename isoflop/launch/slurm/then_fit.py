"""`isoflop submit --then-fit`: a last job that fits when all runs are over.

On a cluster it depends on every array of the study (`--dependency=afterany`), which a task that
requeues itself does not end; on this machine it is a process that waits. It runs `isoflop fit` on
the submission's copy of the code where every run has a result, and else says in one line how many
have none. What it did is in .launch/SUBMISSION_ID/fit.json.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import UserError
from isoflop.launch.job import DONE, FAILED, TO_BE_CONTINUED
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm.arrays import ArrayPlan, Resources
from isoflop.launch.slurm.limits import LiveArray
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.queue import Queue, SentTask
from isoflop.launch.slurm.records import FitOutcome, read_fit, write_fit
from isoflop.plan.artefact import read_plan
from isoflop.spec import shown_id

# Assumed: the tables of a study, and scipy and matplotlib.
_MEMORY_MB = 2048
_TIME_MIN = 60
_POLL_S = 2.0
# A shared file system shows the results of other nodes so late.
_SEEN_AFTER_S = 60.0
_MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class FitState:
    """Where the last job of the newest `submit --then-fit` stands."""

    line: str
    """For people."""
    is_live: bool
    """Whether it waits or runs."""


def fit_array(profile: ClusterProfile, num_arrays: int, live: Sequence[LiveArray]) -> ArrayPlan:
    """Return the job that comes after the arrays of a submission and those in the queue."""
    memory_mb = max(_MEMORY_MB, round(1024 * (profile.memory_gb_per_device or 0)))
    return ArrayPlan(
        resources=Resources(
            num_nodes=1,
            ranks_per_node=1,
            memory_mb_per_node=memory_mb,
            exclude_nodes=(),
            time_min=min(max(_TIME_MIN, profile.time_floor_min), profile.time_limit_min),
        ),
        tasks=((),),
        after_arrays=tuple(range(num_arrays)),
        after_jobs=tuple(array.job_id for array in live),
        is_fit=True,
    )


def live_fits(queue: Queue) -> tuple[SentTask, ...]:
    """Return the jobs that are going to fit, or do."""
    jobs = ((task, queue.job(task)) for task in queue.fits)
    return tuple(task for task, job in jobs if job is not None and not job.is_final)


def is_due(queue: Queue, live: Collection[str]) -> bool:
    """Return whether there are live runs to wait for, and no job waits for them already."""
    return bool(live) and not live_fits(queue)


def fit_state(study_folder: Path, queue: Queue) -> FitState | None:
    """Return where the last job of the newest submission that has one stands; None: none has."""
    if not queue.fits:
        return None
    task = queue.fits[-1]
    try:
        outcome = read_fit(study_folder, task.submission.submission_id)
    except UserError as error:
        return FitState(line=f"damaged: {error}", is_live=False)
    job = queue.job(task)
    if outcome is not None:
        outputs = task.logs(study_folder) if outcome.exit_code else []
        see = f"; see {outputs[0]}" if outputs else ""
        return FitState(line=f"{task.name} {_words(outcome)}{see}", is_live=False)
    if job is not None and not job.is_final:
        reason = f" ({job.reason})" if job.reason else ""
        return FitState(
            line=f"{task.name} {job.state}{reason}, fits when all is over", is_live=True
        )
    if task.rejected is not None:
        return FitState(line=f"rejected: {task.rejected}", is_live=False)
    is_cut_off = task.job_id is None
    if queue.answer.unreachable is not None and not task.is_local:
        sent = (
            "not known, since its submission was cut off" if is_cut_off else f"sent as {task.name}"
        )
        return FitState(line=f"{sent}; the scheduler does not answer", is_live=True)
    if is_cut_off:
        line = "not sent, since its submission was cut off: submit again, with --then-fit"
        return FitState(line=line, is_live=False)
    ended = "is gone" if job is None else f"ended {job.state}"
    return FitState(line=f"{task.name} {ended} before it was made", is_live=False)


def fit_when_done(
    study_folder: Path,
    submission_id: str,
    should_stop: Callable[[], str | None],
    *,
    is_any_live: Callable[[], bool] | None = None,
    seen_after_s: float = _SEEN_AFTER_S,
) -> int:
    """Fit if every run of the study has a result; return the exit code of the process.

    Args:
        study_folder: the study's folder.
        submission_id: which submission this is of.
        should_stop: why to stop, or None.
        is_any_live: whether a run is at work or in the queue; None: nothing is waited for.
        seen_after_s: how long results that are not seen are looked for.

    Raises:
        UserError: no plan, or a damaged record.
    """
    while is_any_live is not None and is_any_live():
        if should_stop() is not None:
            return TO_BE_CONTINUED
        time.sleep(_POLL_S)
    end_s = time.monotonic() + seen_after_s
    while (missing := _missing(study_folder)) and time.monotonic() < end_s:
        if should_stop() is not None:
            return TO_BE_CONTINUED
        time.sleep(_POLL_S)
    if missing:
        outcome = FitOutcome(num_missing=len(missing), exit_code=None)
        names = ", ".join(shown_id(run_id) for run_id in missing[:_MAX_NAMED])
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        print(f"isoflop: {_words(outcome)}: {names}{more}", flush=True)
    else:
        command = [sys.executable, "-m", "isoflop", "fit", str(study_folder)]
        outcome = FitOutcome(num_missing=0, exit_code=subprocess.run(command).returncode)
    # Of a job that was stopped the scheduler knows more.
    if should_stop() is not None:
        return TO_BE_CONTINUED
    write_fit(study_folder, submission_id, outcome)
    return DONE if outcome.exit_code == 0 else FAILED


def _words(outcome: FitOutcome) -> str:
    if outcome.num_missing:
        runs = "1 run has" if outcome.num_missing == 1 else f"{outcome.num_missing} runs have"
        return f"did not fit, since {runs} no result"
    if outcome.exit_code == 0:
        return "made the fit"
    return f"could not fit (exit code {outcome.exit_code})"


def _missing(study_folder: Path) -> list[str]:
    ids = (run.run_id for run in read_plan(study_folder).unique_runs)
    return [run_id for run_id in ids if RunFolder(study_folder, run_id).result() is None]
