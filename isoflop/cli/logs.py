"""`isoflop logs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.cli.options import FOLDER
from isoflop.errors import UserError
from isoflop.files import read_regular
from isoflop.texts import printable

if TYPE_CHECKING:
    from isoflop.launch.run_folder import RunFolder
    from isoflop.launch.run_records import Attempt
    from isoflop.launch.slurm.logs import AttemptLog
    from isoflop.launch.slurm.queue import SentTask

# Of what a command printed.
_MAX_BYTES = 2**18


@click.command()
@click.argument("folder", type=FOLDER)
@click.argument("run", required=False)
@click.option("--attempt", type=int, metavar="N", help="This attempt.  [default: the newest]")
@click.option("--follow", is_flag=True, help="Go on until the attempt is over.")
def logs(folder: Path, run: str | None, attempt: int | None, follow: bool) -> None:
    """Show what RUN of the plan in FOLDER wrote: attempts, errors, output of its command and job.

    RUN is a run id or its first digits; or FOLDER is the run's own folder, STUDY/runs/ID, and RUN
    is left out.
    """
    from isoflop.launch.run_folder import RunFolder
    from isoflop.launch.slurm.logs import attempt_logs, choose, task_without_attempt
    from isoflop.launch.slurm.queue import sent_tasks
    from isoflop.launch.slurm.records import readable_submissions
    from isoflop.plan.artefact import read_plan
    from isoflop.plan.edit import find_run

    study, wanted = _study_and_run(folder, run)
    run_id = find_run(read_plan(study), wanted)[0].run_id
    run_folder = RunFolder(study, run_id)
    submissions, damaged = readable_submissions(study)
    for error in damaged:
        click.echo(printable(f"isoflop: {error}", ""), err=True)
    tasks = [task for task in sent_tasks(submissions) if run_id in task.run_ids]
    found = attempt_logs(study, run_folder, tasks)
    # A job that died before the run began has output, and the run no attempt.
    waiting = task_without_attempt([log.attempt for log in found], tasks)
    begun = choose(found, attempt) if attempt is not None or waiting is None else None
    outputs = list(begun.outputs) if begun is not None else waiting.logs(study) if waiting else []
    for line in _lines(found, begun, waiting, outputs):
        click.echo(line)
    if follow:
        own = [] if begun is None or begun.command is None else [begun.command]
        _follow(run_folder, [*outputs, *own])


def _study_and_run(folder: Path, run: str | None) -> tuple[Path, str]:
    if run is not None:
        return folder, run
    if folder.absolute().parent.name != "runs":
        raise UserError("run", None, "given after the study's folder", "give its first digits")
    return folder.absolute().parent.parent, folder.absolute().name


def _lines(
    found: list[AttemptLog],
    chosen: AttemptLog | None,
    waiting: SentTask | None,
    outputs: list[Path],
) -> Iterator[str]:
    for log in found:
        mark = "=>" if log is chosen else "  "
        yield f"{mark} attempt {log.attempt.number}: {printable(_describe(log.attempt), '')}"
    if waiting is not None:
        mark = "=>" if chosen is None else "  "
        sent = _clock(waiting.submission.created_at)
        yield f"{mark} {waiting.name}: sent {sent}; the run has not begun in it"
    if chosen is not None and chosen.traceback is not None:
        yield from _file(chosen.traceback)
    if chosen is not None and chosen.command is not None:
        yield from _end_of(chosen.command)
    for path in outputs:
        yield from _file(path)


def _file(path: Path) -> Iterator[str]:
    yield f"--- {path}"
    yield from read_regular(path).decode(errors="replace").splitlines()


def _end_of(path: Path) -> Iterator[str]:
    """Yield the end of what a command printed, which may be long, and is anybody's."""
    from isoflop.launch.slurm.logs import tail

    is_long = path.stat().st_size > _MAX_BYTES
    yield f"--- {path}{' (its end)' if is_long else ''}"
    yield from (printable(line, "\t") for line in tail(path, _MAX_BYTES))


def _describe(attempt: Attempt) -> str:
    parts = [f"began {_clock(attempt.start_s)}"]
    if attempt.job_id is not None:
        where = f" on {attempt.node}" if attempt.node else ""
        again = f", start {attempt.restarts + 1}" if attempt.restarts else ""
        parts.append(f"job {attempt.job_id}{where}{again}")
    if attempt.step_range is not None:
        parts.append("steps {} to {}".format(*attempt.step_range))
    parts.append(attempt.exit_reason or "no end recorded (at work, or killed)")
    return "; ".join(parts)


def _clock(time_s: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _follow(run_folder: RunFolder, outputs: list[Path]) -> None:
    from isoflop.launch.metrics import LINES_FILE
    from isoflop.launch.slurm.logs import follow

    def is_over() -> bool:
        if run_folder.result() is not None:
            return True
        attempts = run_folder.attempts()
        return bool(attempts) and attempts[-1].ended

    for text in follow([*outputs, run_folder.path / LINES_FILE], is_over):
        click.echo(text, nl=False)
