"""What is about to be sent to a cluster, and what became of it, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from isoflop.render.tables import new_table
from isoflop.spec import shown_id

if TYPE_CHECKING:
    from isoflop.launch.slurm.arrays import ArrayPlan
    from isoflop.launch.slurm.prepare import Prepared
    from isoflop.launch.slurm.profile import ClusterProfile
    from isoflop.launch.slurm.submit import SubmitReport

_SHOWN_JOBS = 5


def array_table(arrays: Sequence[ArrayPlan], profile: ClusterProfile) -> Table:
    """Return one row per array."""
    excludes = any(array.resources.exclude_nodes for array in arrays)
    table = new_table(
        ("array", ">"),
        ("tasks", ">"),
        ("runs", ">"),
        ("at a time", ">"),
        ("nodes", ">"),
        ("GPUs" if profile.gpus_per_node else "cores", ">"),
        ("memory", ">"),
        ("limit, h:min", ">"),
        *([("without nodes", "<")] if excludes else []),
    )
    for number, array in enumerate(arrays):
        needs = array.resources
        cores = 1 if profile.gpus_per_node else profile.cpus_per_device
        table.add_row(
            str(number),
            str(len(array.tasks)),
            str(array.num_runs),
            str(min(len(array.tasks), profile.throttle)),
            str(needs.num_nodes),
            str(needs.num_ranks * cores),
            "-" if needs.memory_mb_per_node is None else f"{needs.memory_mb_per_node:,} MB",
            _clock(needs.time_min),
            *([",".join(needs.exclude_nodes) or "-"] if excludes else []),
        )
    return table


def total_lines(prepared: Prepared) -> Iterator[str]:
    """Runs, device-hours and cost of what is to be sent, or that there is nothing."""
    if not prepared.runs:
        yield _nothing_line(prepared.num_done, prepared.num_live)
        yield from _parked_lines(prepared.parked, prepared.folder)
        return
    cost = "" if prepared.cost is None else f", {prepared.cost:,.4g} at the price given"
    live = f", {prepared.num_live} at work or queued" if prepared.num_live else ""
    yield (
        f"{_runs(len(prepared.runs))} to send to {prepared.profile.name}, {prepared.num_done} "
        f"complete already{live}; estimate on {prepared.estimate.hardware}: "
        f"{prepared.gpu_hours:,.4g} {prepared.estimate.unit}{cost}"
    )
    yield from (f"does not fit: {line}" for line in prepared.estimate.not_fitting)
    yield from _parked_lines(prepared.parked, prepared.folder)


def report_lines(report: SubmitReport, folder: Path) -> Iterator[str]:
    """Yield what was sent, what was not, and what to do next."""
    if report.submission_id is None:
        yield _nothing_line(report.num_done, report.num_live)
    if report.num_sent:
        jobs = report.job_ids
        one, many = ("process", "processes") if report.is_local else ("job", "jobs")
        word = one if len(jobs) == 1 else many
        more = f" and {len(jobs) - _SHOWN_JOBS} more" if len(jobs) > _SHOWN_JOBS else ""
        yield (
            f"sent {_runs(report.num_sent)} as submission {report.submission_id}: "
            f"{word} {', '.join(jobs[:_SHOWN_JOBS])}{more}"
        )
    if report.num_live and report.submission_id is not None:
        yield f"not sent again: {_runs(report.num_live)} at work or queued"
    for words, num_runs in report.rejected.items():
        yield f"rejected, {_runs(num_runs)}: {words}"
    if report.rejected:
        yield "correct the profile or ask for less; the same command then sends what is left"
    if report.num_left:
        yield f"left for later by max_submit: {_runs(report.num_left)}; submit again to send them"
    if report.num_sent:
        yield f"`isoflop status {folder}` tells what becomes of them"


def _nothing_line(num_done: int, num_live: int) -> str:
    return f"nothing to send: {_runs(num_done)} complete, {num_live} at work or queued"


def _parked_lines(parked: Sequence[str], folder: Path) -> Iterator[str]:
    for run_id in parked:
        yield f"parked: run {shown_id(run_id)} failed too often; `isoflop logs {folder} RUN`"
    if parked:
        yield f"`isoflop retry {folder} --failed all` sends parked runs again"


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def _clock(minutes: int) -> str:
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}"
