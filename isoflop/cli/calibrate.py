"""`isoflop calibrate`."""

from __future__ import annotations

import contextlib
import datetime
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.cli.options import FOLDER, whole_numbers
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.launch.command.calibrate import CommandCalibration, Rung
    from isoflop.plan.estimate.hardware import Calibration, MeasuredStep
    from isoflop.plan.estimate.measured import MeasuredCommand
    from isoflop.plan.planner import Plan
    from isoflop.spec import RunSpec

SOME_FAILED = 1


@click.command()
@click.argument("folder", required=False, type=FOLDER)
@click.option("--steps", type=int, default=10, show_default=True, help="Timed steps per shape.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Where to measure.  [default: cpu; of a trainer of one's own the study's]",
)
@click.option(
    "--micro-batch",
    type=int,
    metavar="N",
    help="Sequences at a time.  [default: all; on a GPU as many as an estimate's placement takes]",
)
@click.option(
    "--rungs",
    metavar="1,3",
    help="Sizes of a trainer of one's own.  [default: the smallest and the largest of each arch]",
)
@click.option(
    "--timeout",
    type=float,
    default=600.0,
    show_default=True,
    help="Seconds for each run of its command.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: FOLDER/calibration.json]",
)
@click.pass_context
def calibrate(
    context: click.Context,
    folder: Path | None,
    steps: int,
    device: str | None,
    micro_batch: int | None,
    rungs: str | None,
    timeout: float,
    out: Path | None,
) -> None:
    """Measure the optimizer step of every distinct shape of the plan in FOLDER.

    Each shape alone, one thread, a few steps; without FOLDER the built-in micro study's. A machine
    that does nothing else gives steadier times. The file is written as each shape is done, so that
    a run that is cut keeps what it has. Estimates then use what was measured, scale those of other
    shapes by it, and say so: isoflop plan STUDY.toml --calibration FILE.

    The command of a trainer of one's own is run two to five times at each rung, with different
    numbers of steps, so that start-up and steps are told apart; its memory is watched meanwhile.
    """
    from isoflop.plan.estimate.hardware import CALIBRATION_FILE, write_calibration

    planned = _planned(folder)
    path = out or (folder or Path()) / CALIBRATION_FILE
    commands: tuple[MeasuredCommand, ...] = ()
    found, failed = None, 0
    if planned.study.trainer is None and rungs is not None:
        raise UserError("--rungs", rungs, "left out without a [trainer]", "leave it out")
    if planned.study.trainer is not None and folder is not None:
        sizes = whole_numbers("--rungs", rungs) or ()
        found, failed = _measure_commands(planned, folder, steps, sizes, timeout, device)
        commands = found.commands
        if commands:
            write_calibration(path, found)
    has_shapes = _has_shapes(planned)
    if has_shapes:

        def keep(so_far: Calibration) -> None:
            write_calibration(path, replace(so_far, commands=commands))

        measured, without = _measure_shapes(planned, steps, device or "cpu", micro_batch, keep)
        found, failed = replace(measured, commands=commands), failed + without
    assert found is not None
    if not found.entries and not found.commands:
        click.echo(f"nothing was measured, and {path} not written", err=True)
        context.exit(SOME_FAILED)
    parts = [f"{len(found.entries)} shapes"] if has_shapes else []
    parts += [f"{len(commands)} rungs"] if planned.study.trainer is not None and folder else []
    click.echo(f"{' and '.join(parts)} {found.describe()}; written to {path}")
    click.echo(f"used by: isoflop plan STUDY.toml --calibration {shlex.quote(str(path))}")
    if failed:
        click.echo(f"without {failed} that could not be measured", err=True)
        context.exit(SOME_FAILED)


def _planned(folder: Path | None) -> Plan:
    from isoflop.plan.artefact import read_plan
    from isoflop.plan.planner import make_plan
    from isoflop.resources import builtin
    from isoflop.study.file import load_study

    if folder is not None:
        return read_plan(folder, with_code=True)
    return make_plan(load_study(builtin("experiments", "quickstart.toml")))


def _has_shapes(planned: Plan) -> bool:
    study = planned.study
    return not all(study.has_trainer(arch) for arch in study.archs)


def _measure_shapes(
    planned: Plan,
    steps: int,
    device: str,
    micro_batch: int | None,
    keep: Callable[[Calibration], None],
) -> tuple[Calibration, int]:
    """Return what was measured, kept as it goes, and how many shapes could not be."""
    # torch is only imported once the plan has been read.
    from isoflop.spec import RunSpec
    from isoflop.train.calibrate import calibrate as measure

    failed = []

    def done(spec: RunSpec, so_far: Calibration) -> None:
        keep(so_far)
        _show(spec, so_far.entries[-1])

    def not_held(spec: RunSpec, why: str) -> None:
        failed.append(spec)
        click.echo(f"{spec.family} of width {spec.d_model} is not measured: {why}", err=True)

    found = measure(
        [run.family_spec for run in planned.unique_runs if isinstance(run.spec, RunSpec)],
        steps=steps,
        device=device,
        micro_batch=micro_batch,
        on_begin=_show_head,
        on_measured=done,
        on_failed=not_held,
    )
    return found, len(failed)


def _show_head(num_shapes: int) -> None:
    click.echo(f"{num_shapes} shapes, one after the other")
    columns = f"{'batch':>12s} {'at a time':>9s} {'ms a step':>10s}"
    click.echo(f"{'family':10s} {'width':>6s} {'layers':>6s} {columns}")


def _show(spec: RunSpec, entry: MeasuredStep) -> None:
    batch = f"{spec.batch_size} × {spec.seq_len}"
    click.echo(
        f"{spec.family:10s} {spec.d_model:6d} {spec.n_layers:6d} {batch:>12s} "
        f"{entry.micro_batch or spec.batch_size:9d} {1000 * entry.step_s:10.1f}"
    )


def _measure_commands(
    planned: Plan,
    folder: Path,
    steps: int,
    sizes: Sequence[int],
    timeout_s: float,
    device: str | None,
) -> tuple[Calibration, int]:
    """Return what was measured of the study's own command, and how many rungs could not be."""
    from isoflop.launch.command.calibrate import CommandCalibration, machine_name, rungs_of
    from isoflop.plan.estimate.hardware import Calibration

    rungs = rungs_of(planned, sizes)
    calibration = CommandCalibration(
        planned, folder, steps=steps, timeout_s=timeout_s, device=device
    )
    click.echo(f"{len(rungs)} rungs, one after the other, each in runs of different steps")
    columns = f"{'start-up s':>10s} {'ms a step':>10s} {'memory':>9s}"
    click.echo(f"{'arch':16s} {'size':>4s} {'steps':>16s} {columns}")
    with _ended_by_term():
        commands = [found for rung in rungs if (found := _measured(calibration, rung)) is not None]
    return Calibration(
        kind="cuda" if calibration.placement.device.startswith("cuda") else "cpu",
        machine=machine_name(calibration.placement),
        torch=None,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        num_threads=calibration.placement.num_threads,
        entries=(),
        commands=tuple(commands),
    ), len(rungs) - len(commands)


@contextlib.contextmanager
def _ended_by_term() -> Iterator[None]:
    """Let SIGTERM end this process as an interrupt does: with the command, and its folder gone."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measured(calibration: CommandCalibration, rung: Rung) -> MeasuredCommand | None:
    from isoflop.plan.estimate.memory import format_bytes

    try:
        found = calibration.measure(rung)
    except UserError as error:
        click.echo(f"isoflop: {error}", err=True)
        return None
    steps = ", ".join(f"{run.steps:,}" for run in found.runs)
    memory = "-" if found.peak_mem_bytes is None else format_bytes(found.peak_mem_bytes)
    click.echo(
        f"{found.arch:16s} {rung.run.size:4d} {steps:>16s} {found.start_s:10.3g} "
        f"{1000 * found.step_s:10.3g} {memory:>9s}"
    )
    if found.step_s == 0:
        click.echo(
            "  more steps took no longer: start-up scatters by more than they take; more --steps, "
            "a machine that does nothing else, or isoflop.trainer.report tells them apart"
        )
    return found
