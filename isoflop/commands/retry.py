"""`isoflop retry`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.commands import FOLDER
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.launch.slurm.profile import ClusterProfile

_KINDS = ("oom", "node", "time", "rank", "code", "lost", "all")
SOME_REJECTED = 1


@click.command(short_help="Send failed runs again, with what should help.")
@click.argument("folder", type=FOLDER)
@click.option(
    "--failed", "kind", type=click.Choice(_KINDS), required=True, help="Which of the failed runs."
)
@click.option("--cluster", help="A cluster profile, or `local`.  [default: as last submitted]")
@click.option("--yes", is_flag=True, help="Do not ask.")
def retry(folder: Path, kind: str, cluster: str | None, yes: bool) -> None:
    """Send the failed or lost runs of a kind in FOLDER again.

    Out of memory (oom): with the memory plan's next option, which is a smaller micro-batch, then
    checkpointing of activations, then more devices. Bad nodes (node) are left out from now on. Runs
    that were parked after too many failures get a new count. What is decided is kept in
    FOLDER/.launch/options.json and holds for later submissions, too.
    """
    from isoflop.launch.slurm import records
    from isoflop.launch.slurm.retry import plan_retry
    from isoflop.launch.slurm.scheduler import SchedulerError
    from isoflop.launch.slurm.states import study_truth
    from isoflop.launch.slurm.submit import submit, submit_lock
    from isoflop.plan.artefact import read_plan
    from isoflop.render.submit import report_lines

    truth = study_truth(folder, read_plan(folder))
    if truth.unreachable is not None:
        raise SchedulerError("squeue", truth.unreachable)
    profile = _profile(folder, cluster)
    planned = plan_retry(folder, truth, kind, max(1, profile.gpus_per_node))
    if not planned.options:
        click.echo(f"nothing to retry: no run failed by this ({kind})")
        return
    for line in planned.lines:
        click.echo(line)
    if planned.excluded_nodes:
        click.echo(f"without nodes {', '.join(planned.excluded_nodes)}")
    if not yes:
        _confirm()
    with submit_lock(folder):
        records.write_options(folder, {**records.read_options(folder), **planned.options})
    report = submit(folder, profile, only=planned.run_ids)
    for line in report_lines(report, folder):
        click.echo(line)
    sys.exit(SOME_REJECTED if report.rejected else 0)


def _profile(folder: Path, cluster: str | None) -> ClusterProfile:
    from isoflop.launch.slurm.profile import load_profile, profile_from_mapping
    from isoflop.launch.slurm.records import read_submissions

    if cluster is not None:
        return load_profile(cluster)
    submissions = read_submissions(folder)
    if not submissions:
        raise UserError(
            "--cluster",
            None,
            "given for runs that were never submitted",
            "name a profile, or `local`",
        )
    return profile_from_mapping(submissions[-1].profile)


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise UserError("--yes", None, "given where nobody can be asked", "add it")
    if not click.confirm("Send them?", default=False):
        click.echo("nothing was sent")
        sys.exit(0)
