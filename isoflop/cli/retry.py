"""`isoflop retry`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.cli.options import FOLDER, selected, selection
from isoflop.cli.prompts import confirm
from isoflop.cli.submit import SOME_DAMAGED, show_dry_run, show_report
from isoflop.cli.tables import print_damaged
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.launch.slurm.profile import ClusterProfile
    from isoflop.launch.slurm.retry import Retry

_KINDS = ("oom", "node", "time", "rank", "code", "disk", "requeue", "lost", "all")


@click.command()
@click.argument("folder", type=FOLDER)
@selection
@click.option(
    "--failed", "kind", type=click.Choice(_KINDS), required=True, help="Which of the failed runs."
)
@click.option(
    "--cluster", metavar="PROFILE", help="As of `isoflop submit`.  [default: as last submitted]"
)
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def retry(
    folder: Path,
    runs: tuple[str, ...],
    archs: str | None,
    budgets: str | None,
    kind: str,
    cluster: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Send the failed or lost runs of a kind in FOLDER again, or those of them among RUNS.

    RUNS are run ids or their first digits.

    \b
    oom      out of memory: with the memory plan's next option, which is a smaller
             micro-batch, then checkpointing of activations, then more devices
    node     a bad node, which is left out from now on
    time     the time limit, without time to save
    rank     lost contact with another rank
    code     any other error
    disk     a file system that was full, read-only or did not answer; plain
             submit sends it, too
    requeue  saved and stopped, and the scheduler did not take it back into the
             queue; plain submit sends it, too
    lost     gone without a result

    `isoflop status` says which runs are of which kind. Runs that were parked after too many
    failures get a new count. What is decided is kept in FOLDER/.launch/options.json and holds for
    later submissions, too; the rest is as it was typed at the last `isoflop submit`. The profile
    that is used is shown first: its modules and setup lines run on the cluster in your name.
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with this character
    from isoflop.launch.slurm import records
    from isoflop.launch.slurm.retry import failed_runs, plan_retry
    from isoflop.launch.slurm.scheduler import SchedulerError
    from isoflop.launch.slurm.submit import prepare, submit
    from isoflop.launch.status import study_status
    from isoflop.plan.artefact import read_plan

    plan = read_plan(folder, with_code=True)
    wanted = selected(plan, runs, archs, budgets)
    status = study_status(folder, plan)
    if status.unreachable is not None:
        raise SchedulerError("squeue", status.unreachable)
    code = SOME_DAMAGED if print_damaged(status.damaged_of(wanted)) else 0
    failed = Counter(str(state.kind) for state in failed_runs(status, wanted))
    if not failed or (kind != "all" and kind not in failed):
        click.echo(_nothing(kind, failed, wanted))
        sys.exit(code)
    profile, options = _as_last_submitted(folder, cluster)
    planned = plan_retry(folder, status, kind, max(1, profile.gpus_per_node), wanted)
    _show(planned, options)
    for line in profile_lines(profile):
        click.echo(line)
    if dry_run:
        show_dry_run(
            prepare(folder, profile, options=options, only=planned.run_ids, decided=planned.options)
        )
        sys.exit(code)
    if not yes:
        confirm("Send them?", "nothing was sent")
    with records.submit_lock(folder):
        records.write_options(folder, {**records.read_options(folder), **planned.options})
    report = submit(folder, profile, options=options, only=planned.run_ids)
    sys.exit(max(code, show_report(report, folder)))


def _show(planned: Retry, options: Mapping[str, Any]) -> None:
    from isoflop.launch.slurm.retry import entries_text

    for line in planned.lines:
        click.echo(line)
    if planned.excluded_nodes:
        click.echo(f"without nodes {', '.join(planned.excluded_nodes)}")
    if options:
        click.echo(f"with {entries_text(options)}, as last submitted")


def profile_lines(profile: ClusterProfile) -> list[str]:
    """Return a profile, for people: what runs with the jobs, and what sbatch is given besides."""
    asked = {key: getattr(profile, key) for key in ("partition", "account", "qos")}
    named = [f"{key} {value}" for key, value in asked.items() if value is not None]
    lines = [f"profile {', '.join([profile.name, *named])}"]
    if profile.venv is not None:
        lines.append(f"  python of {profile.venv}")
    lines += [f"  module load {module}" for module in profile.modules]
    lines += [f"  setup: {text}" for text in profile.setup]
    lines += [
        f"  sbatch --{name}" + ("" if value is True else f"={value}")
        for name, value in profile.sbatch.items()
    ]
    # What is to be read before it runs stands on one line each, whatever characters it has.
    return [line if line.isprintable() else repr(line) for line in lines]


def _nothing(kind: str, failed: Counter[str], wanted: set[str] | None) -> str:
    if not failed:
        which = "no run" if wanted is None else "none of these runs"
        return f"nothing to retry: {which} has failed or is lost"
    others = ", ".join(f"{number} of {other}" for other, number in failed.items())
    return f"nothing to retry: no run failed by {kind}, but {others}"


def _as_last_submitted(
    folder: Path, cluster: str | None
) -> tuple[ClusterProfile, Mapping[str, Any]]:
    """Return the profile, unless another is named, and what was typed besides it."""
    from isoflop.launch.slurm.profile import load_profile, profile_from_mapping
    from isoflop.launch.slurm.records import read_submissions

    submissions = read_submissions(folder)
    if not submissions and cluster is None:
        raise UserError(
            "--cluster",
            None,
            "given for runs that were never submitted",
            "name a profile, or `local`",
        )
    options: Mapping[str, Any] = submissions[-1].options if submissions else {}
    if cluster is not None:
        return load_profile(cluster), options
    return profile_from_mapping(submissions[-1].profile), options
