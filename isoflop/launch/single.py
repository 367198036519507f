"""One run of a plan in this very process, as a cluster's job starts it.

It waits for no other: it goes on from its own checkpoint, or else begins at the latest state that a
longer run of its trunk left, or at its first step.

    python -m isoflop.launch.single STUDY_FOLDER RUN [--checkpoint-every 60] ...

RUN is a run id or an unambiguous beginning of one. USR2, TERM and INT stop it at the next step
boundary, after a checkpoint. Exit codes: 0 done (also if it was before), 1 failed or diverged,
2 a mistake in what was given, 74 a file system that cannot be used (full, read-only), 75 stopped,
held by another process or, of a command of one's own, to be continued: start it again to go on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from isoflop.disk import fault_of
from isoflop.errors import UserError
from isoflop.launch.callbacks import StopFlag
from isoflop.launch.command_options import placement_options
from isoflop.launch.execute import execute
from isoflop.launch.job import DISK_FAILED, JobResult
from isoflop.launch.run_folder import RunFolder
from isoflop.plan.edit import find_run

MISTAKE = 2


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("run")
@placement_options
def main(folder: Path, run: str, **options: Any) -> None:
    """Train one RUN of the plan in FOLDER."""
    # Before anything slow: a signal that comes early must not be lost.
    should_stop = StopFlag()
    try:
        sys.exit(train_one(folder, run, options, should_stop))
    except UserError as error:
        click.echo(f"isoflop: {error}", err=True)
        sys.exit(MISTAKE)
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        click.echo(f"isoflop: {fault.line}", err=True)
        sys.exit(DISK_FAILED)


def train_one(folder: Path, run: str, options: dict[str, Any], should_stop: StopFlag) -> int:
    """Train a run, print in one line how it ended, and return the exit code.

    Raises:
        UserError: no such run, a damaged plan or data set, an option's value that is not allowed.
    """
    from isoflop.launch.local import begin, open_session
    from isoflop.launch.train_job import open_data_of, prune_forks_after, train_job
    from isoflop.launch.weights import prune_weights
    from isoflop.plan.artefact import read_plan

    run_id = find_run(read_plan(folder), run)[0].run_id
    session = open_session(folder, options=options, only=[run_id])
    for error in session.damaged.values():
        raise error
    begin(folder, session.plan, (job.run_id for job in session.jobs))
    result = None
    for job in session.jobs:
        watch = session.watches.get(run_id)
        if job.trainer is None:
            # In this process alone, whatever layout others would take.
            result = execute(job, open_data_of(job), should_stop=should_stop, watch=watch)
            prune_forks_after(job, result)
        else:
            result = train_job(job, should_stop=should_stop, watch=watch, goes_on=False)
    prune_weights(folder, session.plan)
    if result is None:
        finished = RunFolder(folder, run_id).result()
        assert finished is not None
        result = JobResult(status=finished.status, reason=finished.status_reason)
    click.echo(result.status if result.reason is None else f"{result.status}: {result.reason}")
    return result.exit_code


if __name__ == "__main__":
    main()
