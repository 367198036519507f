"""The command line: the group of all verbs. Each verb is a module of this package.

Only the module of the verb that was typed is imported, so that help comes at once.
"""

from __future__ import annotations

import contextlib
import keyword
import os
import sys
from importlib import import_module
from typing import Any

import click

from isoflop import __version__, disk
from isoflop.cli.tables import escaped_output
from isoflop.environ import OWN_SAFE_PATH, environment_with
from isoflop.errors import UserError

USER_MISTAKE = 2

# What the list of verbs says of each, in the order of the pipeline.
_VERBS = {
    "plan": "Plan matched-budget runs, for review.",
    "show": "Show a plan, or one run of it whole.",
    "diff": "Say what changed between two plans.",
    "extend": "Add budgets, seeds or sizes to a plan.",
    "run": "Train the runs that have no result yet.",
    "submit": "Send the runs that have no result yet to a cluster.",
    "status": "Say what is done, running, waiting, failed, lost, missing.",
    "logs": "Show what a run's attempts and jobs wrote.",
    "cancel": "End runs at work and take others out of the queue.",
    "retry": "Send failed runs again, with what should help.",
    "clean": "Remove what nothing needs any more: code, checkpoints.",
    "import": "Take a table of runs that somebody else wrote.",
    "fit": "Fit optima and laws with intervals, compare, check and plot.",
    "gate": "Judge one run or a few against a study's frontier: pass or fail.",
    "refine": "Propose runs that would sharpen the results.",
    "predict": "Predict a larger budget, with prediction intervals; plan it.",
    "report": "Fit, and report it as Markdown, HTML and LaTeX, with figures.",
    "export": "Write the tables for others, with a card on every column.",
    "interpret": "Read the experts of a trained run: record, geometry, interventions.",
    "quickstart": "Plan, run and fit the built-in micro study.",
    "flops": "Show a model's FLOP ledger, or check a study's.",
    "calibrate": "Measure step times here, for estimates.",
    "data": "Text to train on: prepare, look at, check, export.",
}


class _Verbs(click.Group):
    """The verbs; what went wrong in one of them outside of it is printed in one line.

    A user's mistake, a path that may not be used among them, has exit code 2, a file system that is
    full, read-only or does not answer 3. Whatever else is raised is a fault of ours, and keeps its
    traceback.
    """

    def invoke(self, ctx: click.Context) -> Any:
        # Processes that are started meanwhile take no modules from the current folder: Python would
        # look there first of all, and it may be one that somebody else made.
        safe_path = {"PYTHONSAFEPATH": os.environ.get("PYTHONSAFEPATH") or OWN_SAFE_PATH}
        with environment_with(safe_path), escaped_output():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                # Else a full disk behind `> file` would be noticed when nobody can say it any more.
                sys.stdout.flush()
        except UserError as error:
            _tell(str(error))
            ctx.exit(USER_MISTAKE)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            fault, mistake = disk.fault_of(error), disk.mistake_of(error)
            if fault is None and mistake is None:
                raise
            if fault is not None and fault.path is None:
                _discard_output()
            _tell(fault.line if fault is not None else str(mistake))
            ctx.exit(disk.UNWRITABLE if fault is not None else USER_MISTAKE)

    def list_commands(self, ctx: click.Context) -> list[str]:
        # The order of the pipeline reads better than the alphabet.
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        # No module of Python can be called import.
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        verb: click.Command = getattr(import_module(f"isoflop.cli.{name}"), name)
        return verb

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


def _discard_output() -> None:
    """Let Python's own flush at the end not fail once more."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _tell(message: str) -> None:
    click.echo(f"isoflop: {' '.join(message.split())}", err=True)


@click.group(
    cls=_Verbs,
    # By these names click suggests what a mistyped verb may mean.
    commands={name: click.Command(name) for name in _VERBS},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="isoflop")
def main() -> None:
    """Is my architecture better at equal compute, by how much, and how sure are we?

    A study (TOML) becomes a plan of matched-budget runs, the runs become results, the results
    become isoFLOP profiles and compute-optimal frontiers. Start with: isoflop quickstart
    """
