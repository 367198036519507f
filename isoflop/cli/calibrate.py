"""`isoflop calibrate`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.cli.options import FOLDER

if TYPE_CHECKING:
    from isoflop.plan.estimate.hardware import MeasuredStep
    from isoflop.plan.planner import Plan
    from isoflop.spec import RunSpec


@click.command()
@click.argument("folder", required=False, type=FOLDER)
@click.option("--steps", type=int, default=10, show_default=True, help="Timed steps per shape.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where to measure.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: FOLDER/calibration.json]",
)
def calibrate(folder: Path | None, steps: int, device: str, out: Path | None) -> None:
    """Measure the optimizer step of every distinct shape of the plan in FOLDER.

    Each shape alone, one thread, a few steps; without FOLDER the built-in micro study's. A machine
    that does nothing else gives steadier times. Estimates then use what was measured, and say so:
    isoflop plan STUDY.toml --calibration FILE.
    """
    from isoflop.plan.estimate.hardware import CALIBRATION_FILE, write_calibration

    planned = _planned(folder)
    path = out or (folder or Path()) / CALIBRATION_FILE
    # torch is only imported once the plan has been read.
    from isoflop.train.calibrate import calibrate as measure

    measured = measure(
        [run.family_spec for run in planned.unique_runs],
        steps=steps,
        device=device,
        on_begin=_show_head,
        on_measured=_show,
    )
    write_calibration(path, measured)
    click.echo(f"{len(measured.entries)} shapes {measured.describe()}; written to {path}")
    click.echo(f"used by: isoflop plan STUDY.toml --calibration {shlex.quote(str(path))}")


def _planned(folder: Path | None) -> Plan:
    from isoflop.plan.artefact import read_plan
    from isoflop.plan.planner import make_plan
    from isoflop.resources import builtin
    from isoflop.study.file import load_study

    if folder is not None:
        return read_plan(folder, with_code=True)
    return make_plan(load_study(builtin("experiments", "quickstart.toml")))


def _show_head(num_shapes: int) -> None:
    click.echo(f"{num_shapes} shapes, one after the other")
    click.echo(f"{'family':10s} {'width':>6s} {'layers':>6s} {'batch':>12s} {'ms a step':>10s}")


def _show(spec: RunSpec, entry: MeasuredStep) -> None:
    batch = f"{spec.batch_size} × {spec.seq_len}"
    click.echo(
        f"{spec.family:10s} {spec.d_model:6d} {spec.n_layers:6d} {batch:>12s} "
        f"{1000 * entry.step_s:10.1f}"
    )
