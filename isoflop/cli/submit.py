"""`isoflop submit`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.cli.options import FOLDER, selected_in, selection
from isoflop.cli.plan_tables import hours_text
from isoflop.cli.prompts import confirm
from isoflop.cli.run import INTERRUPTED
from isoflop.cli.tables import console, counted, new_table, print_damaged, print_lines
from isoflop.errors import UserError
from isoflop.launch.command_options import placement_options
from isoflop.spec import shown_id

if TYPE_CHECKING:
    from rich.table import Table

    from isoflop.launch.slurm.arrays import ArrayPlan
    from isoflop.launch.slurm.outcome import SubmitReport
    from isoflop.launch.slurm.profile import ClusterProfile
    from isoflop.launch.slurm.records import SentArray
    from isoflop.launch.slurm.submit import Prepared


SOME_NOT_SENT = 1
SOME_DAMAGED = 1
NOTHING_SENT = 2
NO_ANSWER = 3

_SHOWN_JOBS = 5


@click.command()
@click.argument("folder", type=FOLDER)
@selection
@click.option(
    "--cluster",
    required=True,
    metavar="PROFILE",
    help="Your cluster's profile (a .toml file; h100, a100 and cpu are examples), or `local`: "
    "this machine.",
)
@click.option(
    "--runs-per-task",
    type=int,
    metavar="N",
    help="Runs that one job trains, one after the other.  [default: the profile's]",
)
@click.option("--watch", is_flag=True, help="Stay, and send what max_submit holds back.")
@click.option(
    "--every",
    type=click.FloatRange(min=1),
    show_default=False,
    default=60,
    metavar="SECONDS",
    help="Between two looks, with --watch; 1 or more.  [default: 60]",
)
@click.option("--then-fit", is_flag=True, help="Send a last job, which fits when all is over.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before sending.")
@placement_options
def submit(
    folder: Path,
    runs: tuple[str, ...],
    archs: str | None,
    budgets: str | None,
    cluster: str,
    runs_per_task: int | None,
    watch: bool,
    every: float,
    then_fit: bool,
    dry_run: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Send every run of the plan in FOLDER that has no result and no job yet.

    With RUNS (run ids or their first digits), only those of them. It returns at once; `isoflop
    status` tells what becomes of the runs. Typed again, or from two shells, it sends nothing twice.
    slurm/README.md tells how to write a profile. Exit code 1 when the scheduler rejected some of
    the jobs, records of runs are damaged, or jobs may be there that are not visible from here, 2
    when nothing could be sent, 3 when it did not answer whether it took them. Options from --device
    on take the place of entries in the study's [placement] table.
    """
    from isoflop.launch.slurm.submit import prepare, send

    profile = _profile(cluster, runs_per_task, options)
    only = selected_in(folder, runs, archs, budgets)
    prepared = prepare(folder, profile, options=options, only=only, then_fit=then_fit)
    code = SOME_DAMAGED if print_damaged(prepared.damaged.values()) else 0
    if dry_run:
        show_dry_run(prepared)
        sys.exit(code)
    _show_totals(prepared)
    if not (prepared.runs or prepared.then_fit):
        if then_fit and not prepared.num_live:
            click.echo(f"no job that fits: nothing is to come; type: isoflop fit {folder}")
        sys.exit(max(code, SOME_NOT_SENT if prepared.hidden else 0))
    if not yes:
        confirm(
            "Send them?" if prepared.runs else "Send the job that fits?",
            "nothing was sent",
            "add it, or look with --dry-run first",
        )
    report = send(prepared)
    sent = show_report(report, prepared.folder, is_watched=watch)
    sys.exit(max(code, _feed(prepared, report, sent, every) if watch else sent))


def _profile(cluster: str, runs_per_task: int | None, options: dict[str, Any]) -> ClusterProfile:
    import dataclasses

    from isoflop.launch.slurm.profile import load_profile

    profile = load_profile(cluster)
    device = options.get("device")
    if device is not None and not profile.is_local and device != profile.device:
        raise UserError("--device", device, f"{profile.device}, the profile's", "leave it out")
    if runs_per_task is None:
        return profile
    if runs_per_task < 1:
        raise UserError("--runs-per-task", runs_per_task, "1 or more", "correct it")
    return dataclasses.replace(profile, runs_per_task=runs_per_task)


def show_dry_run(prepared: Prepared) -> None:
    """Print the script of each array and the totals."""
    from isoflop.launch.slurm.submit import dry_run_texts

    for number, text in enumerate(dry_run_texts(prepared)):
        click.echo(f"# array {number}\n{text}")
    _show_totals(prepared)
    click.echo("nothing was sent")


def _show_totals(prepared: Prepared) -> None:
    from isoflop.launch.slurm.submit import arrays_of

    out = console()
    arrays = arrays_of(prepared)
    if arrays and not prepared.profile.is_local:
        out.print(array_table(arrays, prepared.profile))
    print_lines(out, total_lines(prepared))


def _feed(prepared: Prepared, report: SubmitReport, code: int, every_s: float) -> int:
    """Send what is left whenever there is room, until nothing is; return the exit code."""
    from isoflop.launch.slurm.scheduler import SchedulerError
    from isoflop.launch.slurm.submit import send_left

    left, is_down = _to_come(report), False
    num_rejected = sum(report.rejected.values())
    if left or report.fit_is_left:
        click.echo(
            f"{counted(len(left), 'run')} to send; a look every {every_s:g} s, "
            "Ctrl-C ends only the looking"
        )
    try:
        while left or report.fit_is_left:
            time.sleep(every_s)
            try:
                report = send_left(prepared, left)
            except SchedulerError as error:
                if not is_down:
                    click.echo(f"the scheduler does not answer: {error.words}; looking goes on")
                is_down = True
                continue
            if is_down:
                click.echo("the scheduler answers again")
            left, is_down = _to_come(report), False
            if report.arrays:
                code = _worse(code, show_report(report, prepared.folder, is_watched=True))
                num_rejected += sum(report.rejected.values())
            if report.arrays and (left or not report.fit_is_left):
                click.echo(_left_line(len(left), num_rejected))
    except KeyboardInterrupt:
        click.echo(f"{counted(len(left), 'run')} left for later; the same command goes on")
        return INTERRUPTED
    return code


def _left_line(num_left: int, num_rejected: int) -> str:
    if num_left:
        return f"{counted(num_left, 'run')} to send"
    if num_rejected:
        rejected = f"what was rejected ({counted(num_rejected, 'run')})"
        return f"everything else is sent; the same command sends {rejected}"
    return "everything is sent"


def _to_come(report: SubmitReport) -> tuple[str, ...]:
    """Return the runs that another look may send, or find sent."""
    return (*report.left, *report.unknown)


def _worse(before: int, now: int) -> int:
    """Return the exit code of two submissions; what had no answer was looked for again."""
    return SOME_NOT_SENT if {SOME_NOT_SENT, NOTHING_SENT} & {before, now} else now


def show_report(report: SubmitReport, folder: Path, *, is_watched: bool = False) -> int:
    """Print the outcome of a submission; return the exit code.

    Args:
        report: the outcome.
        folder: the study's folder.
        is_watched: whether what is left will be sent by this command.
    """
    fit_is_rejected = report.fit is not None and report.fit.rejected is not None
    out = console(stderr=bool(report.rejected or report.unanswered or fit_is_rejected))
    print_lines(out, report_lines(report, folder, is_watched=is_watched))
    if report.unanswered:
        return NO_ANSWER
    if not report.rejected:
        return SOME_NOT_SENT if report.hidden or fit_is_rejected else 0
    return SOME_NOT_SENT if report.job_ids else NOTHING_SENT


def array_table(arrays: Sequence[ArrayPlan], profile: ClusterProfile) -> Table:
    """Return one row per array."""
    excludes = any(array.resources.exclude_nodes for array in arrays)
    waits = any(array.after_arrays or array.after_jobs for array in arrays)
    table = new_table(
        ("array", ">"),
        ("tasks", ">"),
        ("runs", ">"),
        ("at a time", ">"),
        ("nodes", ">"),
        ("GPUs" if profile.gpus_per_node else "cores", ">"),
        ("memory", ">"),
        ("limit, h:min", ">"),
        *([("after", "<")] if waits else []),
        *([("without nodes", "<")] if excludes else []),
    )
    for number, array in enumerate(arrays):
        needs = array.resources
        cores = 1 if profile.gpus_per_node else profile.cpus_per_device
        table.add_row(
            "fit" if array.is_fit else str(number),
            str(len(array.tasks)),
            str(array.num_runs),
            str(array.at_a_time),
            str(needs.num_nodes),
            str(needs.num_ranks * cores),
            "-" if needs.memory_mb_per_node is None else f"{needs.memory_mb_per_node:,} MB",
            _clock(needs.time_min),
            *([_after(array)] if waits else []),
            *([",".join(needs.exclude_nodes) or "-"] if excludes else []),
        )
    return table


def _after(array: ArrayPlan) -> str:
    """Return what an array waits for: others of the table, jobs in the queue."""
    arrays = [f"array {number}" for number in array.after_arrays]
    shown = [f"job {job_id}" for job_id in array.after_jobs[:_SHOWN_JOBS]]
    more = [f"{len(array.after_jobs) - len(shown)} more"] if array.after_jobs[_SHOWN_JOBS:] else []
    return ", ".join([*arrays, *shown, *more]) or "-"


def total_lines(prepared: Prepared) -> Iterator[str]:
    """Yield the runs, device-hours and cost to be submitted, or that there are none."""
    from isoflop.launch.slurm.submit import num_left_of

    if not prepared.runs:
        yield _nothing_line(prepared.num_done, prepared.num_live)
        yield from _hidden_lines(prepared.hidden)
        yield from _parked_lines(prepared.parked, prepared.folder)
        return
    cost = "" if prepared.cost is None else f", {prepared.cost:,.4g} at the price given"
    live = f", {prepared.num_live} at work or queued" if prepared.num_live else ""
    yield (
        f"{counted(len(prepared.runs), 'run')} to send to {prepared.profile.name}, "
        f"{prepared.num_done} complete already{live}; estimate on {prepared.estimate.hardware}: "
        f"{hours_text(prepared.gpu_hours)} {prepared.estimate.unit}{cost}"
    )
    yield from _saved_lines(prepared)
    yield from _unmeasured_lines(prepared)
    yield from prepared.shell_lines
    num_left = num_left_of(prepared)
    if num_left:
        limit, tasks = prepared.profile.max_submit, counted(prepared.num_tasks, "task")
        queued = f"max_submit = {limit}, {tasks} in the queue"
        yield f"{counted(num_left, 'run')} of them left for later ({queued})"
    yield from (f"does not fit: {line}" for line in prepared.estimate.not_fitting)
    yield from _hidden_lines(prepared.hidden)
    yield from _parked_lines(prepared.parked, prepared.folder)


def _saved_lines(prepared: Prepared) -> Iterator[str]:
    """Yield what runs begin after, because they did it before or a longer run does it."""
    starts = [prepared.starts[run_id] for run_id in prepared.runs]
    num_runs = sum(start.sibling is not None for start in starts)
    if num_runs:
        hours = f"{hours_text(prepared.gpu_hours_saved)} {prepared.estimate.unit}"
        yield f"{num_runs} of them begin from a state of another run: {hours} less"


def _unmeasured_lines(prepared: Prepared) -> Iterator[str]:
    """Yield what the times of runs by a command of the user's own rest on."""
    yield from prepared.estimate.warnings
    num_runs = sum(prepared.estimate.runs[run_id].source == "flops" for run_id in prepared.runs)
    if num_runs and not prepared.profile.is_local:
        limit = _clock(prepared.profile.time_limit_min)
        yield f"time limit of {counted(num_runs, 'run')}: the profile's {limit}, not an estimate"


def report_lines(report: SubmitReport, folder: Path, *, is_watched: bool = False) -> Iterator[str]:
    """Yield what was submitted, what was not, and what to do next."""
    if report.submission_id is None and not report.left:
        yield _nothing_line(report.num_done, report.num_live)
    if report.num_sent:
        jobs = report.job_ids
        one, many = ("process", "processes") if report.is_local else ("job", "jobs")
        word = one if len(jobs) == 1 else many
        more = f" and {len(jobs) - _SHOWN_JOBS} more" if len(jobs) > _SHOWN_JOBS else ""
        yield (
            f"sent {counted(report.num_sent, 'run')} as submission {report.submission_id}: "
            f"{word} {', '.join(jobs[:_SHOWN_JOBS])}{more}"
        )
    if report.num_live and report.submission_id is not None:
        yield f"not sent again: {counted(report.num_live, 'run')} at work or queued"
    for words, num_runs in report.rejected.items():
        yield f"rejected, {counted(num_runs, 'run')}: {words}"
    if report.hidden:
        yield f"not sent, since their jobs may be there: {counted(len(report.hidden), 'run')}"
    if report.fit is not None:
        yield _fit_line(report.fit, "process" if report.is_local else "job")
    elif report.fit_is_left and not is_watched:
        yield "left for later: the job that fits"
    if report.rejected:
        yield "correct the profile or ask for less; the same command then sends what is left"
    if report.unanswered:
        yield f"no answer about {counted(len(report.unknown), 'run')}: {report.unanswered}"
    if report.unanswered and not is_watched:
        yield "the same command then finds out which the scheduler took, and sends the others"
    if report.left and not is_watched:
        yield (
            f"left for later by max_submit, with {counted(report.num_tasks, 'task')} in the queue: "
            f"{counted(len(report.left), 'run')}; submit again, or with --watch, to send them"
        )
    if report.num_sent and not is_watched:
        yield f"`isoflop status {folder}` tells what becomes of them"


def _fit_line(fit: SentArray, kind: str) -> str:
    if fit.rejected is not None:
        return f"rejected, the job that fits: {fit.rejected}"
    name = "no answer about the job that" if fit.job_id is None else f"{kind} {fit.job_id}"
    return f"{name} fits when all runs are over"


def _nothing_line(num_done: int, num_live: int) -> str:
    return f"nothing to send: {counted(num_done, 'run')} complete, {num_live} at work or queued"


def _hidden_lines(hidden: Mapping[str, str]) -> Iterator[str]:
    for run_id, words in hidden.items():
        yield f"not sent, since its job may be there: run {shown_id(run_id)}, {words}"
    if hidden:
        yield "look from where it is visible; if it is gone for good, remove its folder in .launch"


def _parked_lines(parked: Sequence[str], folder: Path) -> Iterator[str]:
    for run_id in parked:
        yield f"parked: run {shown_id(run_id)} failed too often; `isoflop logs {folder} RUN`"
    if parked:
        yield f"`isoflop retry {folder} --failed all` sends parked runs again"


def _clock(minutes: int) -> str:
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}"
