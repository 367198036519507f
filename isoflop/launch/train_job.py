"""Any run of a plan in one process: trained by isoflop, or by a command of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.launch.callbacks import Reporter
from isoflop.launch.job import Job, JobResult
from isoflop.launch.run_folder import Watch
from isoflop.launch.trunks import prune_forks

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData
    from isoflop.launch.command.environment import Surroundings


def open_data_of(job: Job) -> TokenData:
    """Return the data of a job, whose shards are verified."""
    from isoflop.data.windows import open_data

    return open_data(Path(job.data_folder))


def train_job(
    job: Job,
    *,
    on_step: Callable[[int, int, float], None] = lambda *_: None,
    should_stop: Callable[[], str | None] = lambda: None,
    watch: Watch | None = None,
    data_of: Callable[[Job], TokenData] = open_data_of,
    surroundings: Surroundings | None = None,
    goes_on: bool = True,
) -> JobResult:
    """Execute a run from the claim to its record, by whatever trains it; remove forks it needed.

    Args:
        job: which run, and how. Several ranks are started here, on this machine.
        on_step: called a few times a second with the completed steps, the run's number of steps
            and the loss.
        should_stop: called often; a reason (a signal's name) stops the run once it has saved.
        watch: of the run's holder where that cannot be seen; see RunFolder.claim.
        data_of: opens the data of a run that isoflop trains.
        surroundings: what a command of the user's own inherits.
        goes_on: whether to start such a command again that asks for it.
    """
    if job.trainer is not None:
        result = _execute_command(job, on_step, should_stop, watch, surroundings, goes_on)
    elif job.placement.num_ranks > 1:
        from isoflop.launch.ranks import run_ranks

        ranks = job.placement.num_ranks
        result = run_ranks(job, ranks, on_step=on_step, should_stop=should_stop, watch=watch)
    else:
        from isoflop.launch.execute import execute

        report = Reporter(on_step)
        result = execute(job, data_of(job), on_step=report, should_stop=should_stop, watch=watch)
    prune_forks_after(job, result)
    return result


def prune_forks_after(job: Job, result: JobResult) -> None:
    """Remove the forks that nobody needs any more since a run has its result."""
    if job.trunk is not None and result.status in ("done", "diverged"):
        prune_forks(Path(job.study_folder), job.run_id, job.trunk)


def _execute_command(
    job: Job,
    on_step: Callable[[int, int, float], None],
    should_stop: Callable[[], str | None],
    watch: Watch | None,
    surroundings: Surroundings | None,
    goes_on: bool,
) -> JobResult:
    from isoflop.launch.command.wrapper import execute_command

    while True:
        result = execute_command(
            job,
            on_step=on_step,
            should_stop=should_stop,
            watch=watch,
            surroundings=surroundings,
        )
        if not (goes_on and result.asks_for_more and should_stop() is None):
            return result
