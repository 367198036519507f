"""`isoflop run`: trains on this machine every run that has no result yet, each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.data.prepare import prepared_for_plan
from isoflop.errors import UserError
from isoflop.files import write_many
from isoflop.launch.collect import Shared, shared
from isoflop.launch.job import (
    Job,
    JobResult,
    TrainerJob,
    check_gpus,
    check_layout,
    num_gpus,
    resolve_placement,
)
from isoflop.launch.run_folder import RunFolder, Watch, watch_all
from isoflop.launch.run_records import RunResult
from isoflop.launch.sinks import check_names
from isoflop.launch.trainer_code import ensure_snapshot, snapshot_folder
from isoflop.launch.trunks import remove_fork, steps_to_train, superfluous_forks, trunk_jobs
from isoflop.launch.weights import prune_weights
from isoflop.launch.workers import Event, num_cores, run_jobs
from isoflop.placement import Placement, placement_from, with_layout
from isoflop.plan.artefact import read_plan
from isoflop.plan.estimate import load_estimates
from isoflop.plan.own import check_unchanged
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.plan.trunks import flops_of_steps
from isoflop.spec import RunSpec, TrainerSpec
from isoflop.study import Study

# Entries of a placement that are for what isoflop itself trains.
_OF_BUILT_IN = frozenset(
    (
        *("parallel", "micro_batch", "checkpoint_activations", "compile", "head"),
        *("checkpoint_every", "evaluate_every"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """Results of one `isoflop run`."""

    results: dict[str, JobResult] = field(default_factory=dict)
    """How each run of this invocation ended, by run id."""

    @property
    def failed(self) -> dict[str, JobResult]:
        """Runs that ended otherwise than done."""
        return {rid: e for rid, e in self.results.items() if e.status != "done"}

    @property
    def disk_reason(self) -> str | None:
        """Why the session ended early, where a file system could not be used; None: it did not."""
        return next((e.reason for e in self.results.values() if e.failed_by_disk), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A study folder that is ready to run: data prepared, jobs listed."""

    folder: Path
    plan: Plan
    jobs: tuple[Job, ...]
    num_workers: int
    results: Mapping[str, RunResult]
    """Of the runs that are finished, by run id."""
    damaged: Mapping[str, UserError] = field(default_factory=dict)
    """Runs whose records cannot be read, by run id; they are not trained."""

    watches: Mapping[str, Watch] = field(default_factory=dict)
    """Of runs that may be at work where it cannot be seen; their jobs come last."""
    steps_left: Mapping[str, int] = field(default_factory=dict)
    """By run id, steps that are to be executed: not those of a checkpoint or a longer run."""

    @property
    def num_done_before(self) -> int:
        """Return how many runs are finished."""
        return len(self.results)


def open_session(
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
    data_dir: Path | None = None,
    is_here: bool = True,
) -> Session:
    """Check everything a run needs, before anything is trained; write nothing into the folder.

    Args:
        folder: the study's folder, with a plan.
        options: entries that take the place of those in the study's [placement] table, by the same
            names; None leaves them. Without `workers`: as many as cores, or GPUs, there are.
        only: ids of the runs to train; None: all.
        data_dir: where prepared data are kept; None: the default place.
        is_here: whether the runs are to be trained by this session; else their layouts are not
            checked, because others may take their place.

    Raises:
        UserError: no plan, a damaged plan or data set, data that cannot be prepared here, an
            option's value that is not allowed, a layout in which a run cannot be trained.
    """
    plan = read_plan(folder, with_code=True)
    given = given_placement(plan.study, options or {})
    placement = placement_from(given)
    sinks = tuple((options or {}).get("sinks") or plan.study.placement.get("sinks", ()))
    check_names(sinks)
    num_workers = _num_workers(given.get("workers"), placement)
    estimates = load_estimates(folder)
    planned_placements = {} if estimates is None else estimates.placements
    runs = [run for run in plan.unique_runs if only is None or run.run_id in only]
    data_ids = {run.spec.data_id for run in runs if isinstance(run.spec, RunSpec)}
    data_folder = (
        prepared_for_plan(plan.study.source, plan.study.tokenizer, data_ids.pop(), data_dir)
        if data_ids
        else ""
    )
    checked = {p.run_id: RunFolder(folder, p.run_id).checked() for p in runs}
    damaged = {run_id: error for run_id, (_, error) in checked.items() if error is not None}
    readable = [p for p in runs if p.run_id not in damaged]
    results = {run_id: result for run_id, (result, _) in checked.items() if result is not None}
    unfinished = [p for p in readable if p.run_id not in results]
    if any(isinstance(run.spec, TrainerSpec) for run in unfinished):
        check_code(folder, plan)
    watches = watch_all(folder, (p.run_id for p in unfinished)) if is_here else {}
    left = steps_to_train(folder, plan, {p.run_id for p in unfinished}, results)
    _put_in_order(unfinished, left, watches)
    trunks = trunk_jobs(plan)
    jobs = tuple(
        Job(
            study_folder=str(folder),
            run_id=planned.run_id,
            data_folder=str(data_folder),
            keep_weights=plan.study.keep_weights,
            placement=resolve_placement(placement, given, planned_placements.get(planned.run_id)),
            convention=plan.study.convention,
            sinks=sinks,
            family_digest=plan.family_digests.get(planned.spec.family)
            if isinstance(planned.spec, RunSpec)
            else None,
            trainer=trainer_job(folder, plan, planned),
            trunk=trunks.get(planned.run_id),
        )
        for planned in unfinished
    )
    if is_here:
        _check_layouts(unfinished, jobs)
    return Session(
        folder=folder,
        plan=plan,
        jobs=jobs,
        num_workers=num_workers,
        results=results,
        damaged=damaged,
        watches=watches,
        steps_left=left,
    )


def _put_in_order(
    runs: list[PlannedRun], steps_left: Mapping[str, int], last: Collection[str]
) -> None:
    """Sort runs, so that the last workers to finish do not wait for one long run.

    A run that begins where a longer one passes counts what is left from there.
    """
    runs.sort(key=lambda run: (run.run_id in last, -flops_of_steps(run, steps_left[run.run_id])))


def _check_layouts(runs: Iterable[PlannedRun], jobs: Iterable[Job]) -> None:
    for run, job in zip(runs, jobs, strict=True):
        check_layout(run.spec, job.placement)
        check_gpus(job.placement)


def given_placement(study: Study, *tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a study's [placement] table and of those that take their place.

    Raises:
        UserError: one that says nothing to a command of the user's own, where all runs have one.
    """
    every = (study.placement, *tables)
    given = {k: v for table in every for k, v in table.items() if v is not None}
    if study.trainer is None:
        return given
    if all(study.has_trainer(arch) for arch in study.archs):
        for name in _OF_BUILT_IN & given.keys():
            allowed = "left out where a command of your own trains all runs"
            raise UserError(name, given[name], allowed, "give it to the command in [trainer]")
    return with_layout(given)


def trainer_job(folder: Path, plan: Plan, run: PlannedRun) -> TrainerJob | None:
    """Return how a run's own command is executed; None: isoflop trains it."""
    trainer = plan.study.trainer
    if trainer is None or not isinstance(run.spec, TrainerSpec):
        return None
    values = trainer.values(run.arch, run.spec.rung, run.spec.steps, run.spec.seed)
    return TrainerJob(
        code_folder=str(snapshot_folder(folder.absolute(), run.spec.code)),
        source=str(Path(trainer.code).absolute()),
        resume=trainer.resume,
        result=trainer.result.filled(values),
        n_params=run.n_params,
        decay_start=trainer.decay_start(run.spec.steps),
    )


def check_code(folder: Path, plan: Plan) -> None:
    """Refuse to begin runs of a trainer whose code is not what was planned, or a copy of that.

    Raises:
        UserError: it is not, and which files differ.
    """
    trainer, code = plan.study.trainer, plan.code
    assert trainer is not None
    if code is None or not snapshot_folder(folder, code.digest).is_dir():
        check_unchanged(code, trainer)


def begin(folder: Path, plan: Plan, run_ids: Iterable[str]) -> None:
    """Write what runs need that are going to be trained; remove weights and forks not to stay.

    That is a copy of the code of the study's own trainer, where one trains them, and their specs.

    Raises:
        UserError: that code is not what was planned, or the copy was changed.
    """
    specs = {run.run_id: run.spec for run in plan.unique_runs}
    wanted = {run_id: specs[run_id] for run_id in run_ids}
    trainer = plan.study.trainer
    if any(isinstance(spec, TrainerSpec) for spec in wanted.values()):
        assert trainer is not None
        assert plan.code is not None
        ensure_snapshot(plan.code, Path(trainer.code).absolute(), folder, trainer.code_files)
    write_many(lambda run_id: RunFolder(folder, run_id).write_spec(wanted[run_id]), wanted)
    prune_weights(folder, plan)
    for path in list(superfluous_forks(folder, trunk_jobs(plan))):
        remove_fork(path)


def _num_workers(given: int | None, placement: Placement) -> int:
    if given is None:
        num_devices = num_cores() if placement.device == "cpu" else num_gpus(placement)
        return max(1, num_devices // placement.num_ranks)
    if given < 1:
        raise UserError("--workers", given, "1 or more", "correct it")
    return given


def run_session(
    session: Session,
    on_event: Callable[[Event], None],
    on_stop: Callable[[int], bool] = lambda num_saving: False,
) -> RunSummary:
    """Train the session's jobs; call ``on_event`` with every start, step and end.

    A run that fails by its file system ends the session: those at work save if they can and stop.
    ``on_stop`` is called while the workers are stopped before their time, also by an interrupt; see
    :func:`isoflop.launch.workers.run_jobs`.
    """
    summary = RunSummary()
    begin(session.folder, session.plan, (job.run_id for job in session.jobs))
    # Closed here, so that an interrupt stops the workers wherever it strikes.
    pool = run_jobs(session.jobs, session.num_workers, on_stop, session.watches)
    with closing(pool) as events:
        for event in events:
            if event.result is not None:
                summary.results[event.job.run_id] = event.result
                if event.result.status == "failed":
                    _record_death(event.job, event.result)
                elif session.plan.study.keep_weights == "best":
                    prune_weights(session.folder, session.plan)
            on_event(event)
            if summary.disk_reason is not None:
                break
    return summary


def shared_by(session: Session, summary: RunSummary) -> Shared | None:
    """Return what the study's finished runs took over from longer ones; None: nothing."""
    results = dict(session.results)
    for run_id, end in summary.results.items():
        # Damaged since, it tells nothing.
        with suppress(UserError):
            result = RunFolder(session.folder, run_id).result()
            if end.status in ("done", "diverged") and result is not None:
                results[run_id] = result
    return shared(session.plan, results)


def _record_death(job: Job, result: JobResult) -> None:
    """Close the record of an attempt whose worker died before it could do so itself."""
    folder = RunFolder(Path(job.study_folder), job.run_id)
    # Where the disk is full, there is no record; the reason is shown all the same.
    with suppress(OSError, UserError):
        attempts = folder.attempts()
        # Another process may have begun the next attempt by now.
        if attempts and not attempts[-1].ended and attempts[-1].holder.is_alive() is False:
            folder.end_attempt(attempts[-1], f"failed: {result.reason}")
