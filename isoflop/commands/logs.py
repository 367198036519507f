"""`isoflop logs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.commands import FOLDER
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.launch.slurm.logs import AttemptLog
    from isoflop.launch.store import RunFolder


@click.command(short_help="Show what a run's attempts and jobs wrote.")
@click.argument("folder", type=FOLDER)
@click.argument("run", required=False)
@click.option("--attempt", type=int, help="This attempt.  [default: the newest]")
@click.option("--follow", is_flag=True, help="Go on until the attempt is over.")
def logs(folder: Path, run: str | None, attempt: int | None, follow: bool) -> None:
    """Show what RUN of the plan in FOLDER wrote: its attempts, errors and its job's output.

    RUN is a run id or its first digits; or FOLDER is the run's own folder, STUDY/runs/ID, and RUN
    is left out.
    """
    from isoflop.launch.slurm.logs import attempt_logs, choose
    from isoflop.launch.slurm.sent import sent_tasks
    from isoflop.launch.store import RunFolder
    from isoflop.plan.artefact import read_plan
    from isoflop.plan.select import find_run

    study, wanted = _study_and_run(folder, run)
    run_id = find_run(read_plan(study), wanted)[0].run_id
    run_folder = RunFolder(study, run_id)
    tasks = [task for task in sent_tasks(study) if run_id in task.run_ids]
    found = attempt_logs(study, run_folder, tasks)
    # A job that died before the run began has output, and the run no attempt.
    begun = choose(found, attempt) if found or attempt is not None or not tasks else None
    outputs = tasks[-1].logs(study) if begun is None else list(begun.outputs)
    for line in _lines(found, begun, outputs):
        click.echo(line)
    if follow:
        _follow(run_folder, outputs)


def _study_and_run(folder: Path, run: str | None) -> tuple[Path, str]:
    if run is not None:
        return folder, run
    if folder.absolute().parent.name != "runs":
        raise UserError("run", None, "given after the study's folder", "give its first digits")
    return folder.absolute().parent.parent, folder.absolute().name


def _lines(
    found: list[AttemptLog], chosen: AttemptLog | None, outputs: list[Path]
) -> Iterator[str]:
    for log in found:
        mark = "=>" if log is chosen else "  "
        yield f"{mark} attempt {log.attempt.number}: {_describe(log)}"
    if chosen is not None and chosen.traceback is not None:
        yield from _file(chosen.traceback)
    for path in outputs:
        yield from _file(path)


def _file(path: Path) -> Iterator[str]:
    yield f"--- {path}"
    yield from path.read_text(errors="replace").splitlines()


def _describe(log: AttemptLog) -> str:
    from datetime import UTC, datetime

    start = datetime.fromtimestamp(log.attempt.start_s, UTC)
    parts = [f"began {start:%Y-%m-%d %H:%M:%S} UTC"]
    if log.job_id is not None:
        where = f" on {log.node}" if log.node else ""
        again = f", start {log.restarts + 1}" if log.restarts else ""
        parts.append(f"job {log.job_id}{where}{again}")
    if log.attempt.step_range is not None:
        parts.append("steps {} to {}".format(*log.attempt.step_range))
    parts.append(log.attempt.exit_reason or "no end recorded (at work, or killed)")
    return "; ".join(parts)


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
