"""`isoflop submit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.commands import FOLDER
from isoflop.commands.asking import confirm
from isoflop.errors import UserError
from isoflop.launch.command_options import placement_options

if TYPE_CHECKING:
    from isoflop.launch.slurm.prepare import Prepared
    from isoflop.launch.slurm.profile import ClusterProfile
    from isoflop.launch.slurm.submit import SubmitReport

SOME_REJECTED = 1
NOTHING_SENT = 2


@click.command(short_help="Send the runs that have no result yet to a cluster.")
@click.argument("folder", type=FOLDER)
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
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before sending.")
@placement_options
def submit(
    folder: Path,
    cluster: str,
    runs_per_task: int | None,
    dry_run: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Send every run of the plan in FOLDER that has no result and no job yet.

    It returns at once; `isoflop status` tells what becomes of the runs. Typed again, or from two
    shells, it sends nothing twice. slurm/README.md tells how to write a profile. Exit code 1 when
    the scheduler rejected some of the jobs, 2 when nothing could be sent. Options from --device on
    take the place of entries in the study's [placement] table.
    """
    from isoflop.launch.slurm.prepare import prepare
    from isoflop.launch.slurm.submit import send

    profile = _profile(cluster, runs_per_task, options)
    prepared = prepare(folder, profile, options=options)
    if dry_run:
        _show_dry_run(prepared)
        return
    _show_totals(prepared)
    if not prepared.runs:
        return
    if not yes:
        confirm("Send them?", "nothing was sent", "add it, or look with --dry-run first")
    sys.exit(show_report(send(prepared), prepared.folder))


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


def _show_dry_run(prepared: Prepared) -> None:
    from isoflop.launch.slurm.prepare import dry_run_texts

    for number, text in enumerate(dry_run_texts(prepared)):
        click.echo(f"# array {number}\n{text}")
    _show_totals(prepared)
    click.echo("nothing was sent")


def _show_totals(prepared: Prepared) -> None:
    from isoflop.launch.slurm.prepare import arrays_of
    from isoflop.render.submit import array_table, total_lines
    from isoflop.render.tables import console

    out = console()
    arrays = arrays_of(prepared)
    if arrays and not prepared.profile.is_local:
        out.print(array_table(arrays, prepared.profile))
    for line in total_lines(prepared):
        out.print(line, markup=False, soft_wrap=True)


def show_report(report: SubmitReport, folder: Path) -> int:
    """Say what became of a submission; returns the exit code."""
    from isoflop.render.submit import report_lines
    from isoflop.render.tables import console

    out = console(stderr=bool(report.rejected))
    for line in report_lines(report, folder):
        out.print(line, markup=False, soft_wrap=True)
    if not report.rejected:
        return 0
    return SOME_REJECTED if report.job_ids else NOTHING_SENT
