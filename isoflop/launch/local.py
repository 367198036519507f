"""Running a plan on this machine: every run that has no result yet, each exactly once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.data.prepare import prepare
from isoflop.errors import UserError
from isoflop.families import family_digest
from isoflop.launch.execute import Ending, Job
from isoflop.launch.pool import Event, num_cores, run_jobs
from isoflop.launch.store import RunFolder
from isoflop.plan.artefact import read_plan
from isoflop.plan.planner import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What one `isoflop run` did."""

    num_planned: int
    num_done_before: int
    endings: dict[str, Ending] = field(default_factory=dict)
    """How each run of this invocation ended, by run id."""

    @property
    def failed(self) -> dict[str, Ending]:
        """Runs that ended otherwise than done."""
        return {rid: e for rid, e in self.endings.items() if e.status != "done"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A study folder made ready to run: data prepared, specs written, jobs listed."""

    plan: Plan
    jobs: tuple[Job, ...]
    num_workers: int
    num_done_before: int


def open_session(
    folder: Path,
    *,
    num_workers: int | None = None,
    device: str = "cpu",
    data_dir: Path | None = None,
) -> Session:
    """Checks everything a run needs, before anything is trained.

    Args:
        folder: the study's folder, with a plan.
        num_workers: runs at a time; None: one per core on the CPU, one on a GPU.
        device: torch device of the runs.
        data_dir: where prepared data are kept; None: the default place.

    Raises:
        UserError: no plan, a damaged plan or data set, data that cannot be prepared here.
    """
    plan = read_plan(folder)
    _check_families(plan)
    if num_workers is not None and num_workers < 1:
        raise UserError("--workers", num_workers, "1 or more", "correct it")
    if num_workers is None:
        num_workers = num_cores() if device == "cpu" else 1
    data_folder = prepare(plan.study.source, plan.study.tokenizer, data_dir)
    jobs = []
    num_done = 0
    # The longest first, so that the last workers to finish do not wait for one long run.
    for run in sorted(plan.unique_runs, key=lambda run: -run.flops):
        run_folder = RunFolder(folder, run.run_id)
        if run_folder.result() is not None:
            num_done += 1
            continue
        run_folder.write_spec(run.spec)
        jobs.append(
            Job(
                study_folder=str(folder),
                run_id=run.run_id,
                data_folder=str(data_folder),
                keep_weights=plan.study.keep_weights == "all",
                device=device,
                num_threads=1,
            )
        )
    return Session(plan=plan, jobs=tuple(jobs), num_workers=num_workers, num_done_before=num_done)


def _check_families(plan: Plan) -> None:
    """A family from outside the package must still be the one that was planned."""
    for family, planned in plan.family_digests.items():
        found = family_digest(family)
        if found != planned:
            raise UserError(
                f"source of family {family}",
                found,
                f"the one that was planned ({planned})",
                "restore it, or plan a study of another name",
            )


def run_session(session: Session, on_event: Callable[[Event], None]) -> RunSummary:
    """Trains the session's jobs; ``on_event`` is told of every start, step and end."""
    summary = RunSummary(
        num_planned=len(session.plan.unique_runs), num_done_before=session.num_done_before
    )
    # Closed here, so that an interrupt stops the workers wherever it strikes.
    with closing(run_jobs(session.jobs, session.num_workers)) as events:
        for event in events:
            if event.ending is not None:
                summary.endings[event.job.run_id] = event.ending
                if event.ending.status == "failed":
                    _record_death(event.job, event.ending)
            on_event(event)
    return summary


def _record_death(job: Job, ending: Ending) -> None:
    """Closes the record of an attempt whose worker died before it could do so itself."""
    folder = RunFolder(Path(job.study_folder), job.run_id)
    attempts = folder.attempts()
    if attempts and not attempts[-1].ended:
        folder.end_attempt(attempts[-1], f"failed: {ending.reason}", 0)
