"""The command line: the group of all verbs; the verbs are in isoflop/commands."""

from __future__ import annotations

from typing import Any

import click

from isoflop import __version__
from isoflop.commands.calibrate import calibrate
from isoflop.commands.cancel import cancel
from isoflop.commands.data import data
from isoflop.commands.diff import diff
from isoflop.commands.extend import extend
from isoflop.commands.fit import fit
from isoflop.commands.flops import flops
from isoflop.commands.interpret import interpret
from isoflop.commands.logs import logs
from isoflop.commands.plan import plan
from isoflop.commands.quickstart import quickstart
from isoflop.commands.refine import refine
from isoflop.commands.report import report
from isoflop.commands.retry import retry
from isoflop.commands.run import run
from isoflop.commands.show import show
from isoflop.commands.status import status
from isoflop.commands.submit import submit
from isoflop.errors import UserError

USER_MISTAKE = 2


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


_VERBS = (
    plan,
    show,
    diff,
    extend,
    run,
    submit,
    status,
    logs,
    cancel,
    retry,
    fit,
    refine,
    report,
    interpret,
    quickstart,
    flops,
    calibrate,
    data,
)
for _verb in _VERBS:
    main.add_command(_verb)
