"""`isoflop run`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from isoflop.cli.options import FOLDER, selected_in, selection
from isoflop.cli.progress import Watcher
from isoflop.cli.tables import console, counted
from isoflop.launch.command_options import placement_options

SOME_RUNS_FAILED = 1
INTERRUPTED = 128 + signal.SIGINT


@click.command()
@click.argument("folder", type=FOLDER)
@selection
@click.option(
    "--workers", type=int, metavar="N", help="Runs at a time.  [default: one per core or GPU]"
)
@placement_options
def run(
    folder: Path,
    runs: tuple[str, ...],
    archs: str | None,
    budgets: str | None,
    workers: int | None,
    device: str | None,
    **options: Any,
) -> None:
    """Train every run of the plan in FOLDER that has no result yet, or those of them among RUNS.

    RUNS are run ids or their first digits.

    Of runs that share a trunk the longest is trained first; others begin from states that it saves.
    Interrupted or killed, the same command goes on from the newest checkpoints, to the same
    numbers; a finished run is never trained twice. Exit code 1 when some runs failed or diverged, 3
    when the file system is full, read-only or does not answer.
    The options take the place of entries in the study's [placement] table, which have the same
    names, with _ for -.
    """
    only = selected_in(folder, runs, archs, budgets)
    code = run_folder(folder, workers, device, only=only, **options)
    if code == 0 and only is not None:
        click.echo("these runs are complete")
    elif code == 0:
        click.echo(f"all runs are complete: `isoflop fit {folder}` makes tables and plots of them")
    sys.exit(code)


def run_folder(
    folder: Path,
    workers: int | None,
    device: str | None,
    *,
    only: Collection[str] | None = None,
    **options: Any,
) -> int:
    """Run a study's folder with live progress; return the exit code.

    Args:
        folder: the study's folder.
        workers: runs at a time; None: as the study or the machine says.
        device: cpu, cuda, or None: as the study says.
        only: ids of the runs to train; None: all.
        options: further entries of a [placement] table.
    """
    from isoflop.disk import UNWRITABLE, line_of_reason
    from isoflop.launch.local import open_session, run_session, shared_by
    from isoflop.launch.run_folder import LEASE_TIMEOUT_S
    from isoflop.spec import shown_id

    out = console()
    given = {"workers": workers, "device": device, **options}
    session = open_session(folder, options=given, only=only)
    out.print(
        f"{len(session.jobs)} runs to train, {session.num_done_before} complete already; "
        f"{session.num_workers} at a time"
    )
    if session.watches:
        out.print(
            f"{len(session.watches)} of them may be at work on another machine, in another "
            f"container or have ended with the last boot: they come last, each once its heartbeat "
            f"has stood still for {LEASE_TIMEOUT_S:g} s",
            soft_wrap=True,
        )
    interrupts = Interrupts()
    # A polite kill and SLURM's warning end like Ctrl-C: workers save at their next step and record
    # why.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.signal(number, interrupts.on_signal) for number in numbers}
    try:
        with Watcher(session, out) as watcher:

            def on_stop(num_saving: int) -> bool:
                if (line := interrupts.line(num_saving)) is not None:
                    watcher.stop(line)
                return interrupts.in_a_hurry

            summary = run_session(session, watcher.on_event, on_stop)
    except KeyboardInterrupt:
        out.print(f"interrupted; `isoflop run {folder}` goes on from here", soft_wrap=True)
        return INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for error in session.damaged.values():
        out.print(f"damaged: {error}", soft_wrap=True)
    if summary.disk_reason is not None:
        click.echo(f"isoflop: {line_of_reason(summary.disk_reason, folder)}", err=True)
        return UNWRITABLE
    for run_id, result in summary.failed.items():
        out.print(f"{result.status}: {shown_id(run_id)}: {result.reason}", soft_wrap=True)
    if (told := shared_by(session, summary)) is not None:
        out.print(str(told), soft_wrap=True)
    if not summary.failed:
        return SOME_RUNS_FAILED if session.damaged else 0
    again = f"`isoflop logs {folder} RUN` shows more; the same command tries failed runs again"
    out.print(again, soft_wrap=True)
    return SOME_RUNS_FAILED


class Interrupts:
    """Signals that stop the runs: after the first they save, the third ends them at once."""

    def __init__(self) -> None:
        self._num_signals = 0
        self._num_said = 0

    def on_signal(self, *_: object) -> None:
        """Count a signal; the first interrupts what the process is doing."""
        self._num_signals += 1
        if self._num_signals == 1:
            raise KeyboardInterrupt

    @property
    def in_a_hurry(self) -> bool:
        """Whether runs are to end without saving."""
        return self._num_signals > 2

    def line(self, num_saving: int) -> str | None:
        """Return what to say of the newest signal; None: it was said."""
        if self._num_said == self._num_signals:
            return None
        self._num_said = self._num_signals
        runs = counted(num_saving, "run")
        if self.in_a_hurry:
            return f"ending {runs} at once"
        if self._num_signals > 1:
            again = "once more ends them at once, and they go on from their last checkpoints"
            return f"still saving {runs}; {again}"
        return f"stopping, saving {runs}" if num_saving else "stopping"
