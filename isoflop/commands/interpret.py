"""`isoflop interpret`: reads the experts of a trained run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from isoflop.commands import FOLDER
from isoflop.errors import UserError, shown

# Whole numbers from 0 or from 1 on; click says so to who gives another.
_FROM_0, _FROM_1 = click.IntRange(min=0), click.IntRange(min=1)

_Command = Callable[..., Any]


def _of_run(command: _Command) -> _Command:
    """Return the arguments that every verb has."""
    for add in (
        click.option(
            "--out",
            type=FOLDER,
            help="Folder for what is written.  [default: the run's interpret/]",
        ),
        click.argument("run"),
        click.argument("folder", type=FOLDER),
    ):
        command = add(command)
    return command


_RECORDING = click.option(
    "--recording",
    type=FOLDER,
    help="Folder with the recording.  [default: the run's interpret/]",
)


_SEED = click.option(
    "--seed", type=_FROM_0, default=0, show_default=True, help="Of what is drawn at random."
)


@click.group(short_help="Read the experts of a trained run: record, geometry, interventions.")
def interpret() -> None:
    """Read the experts of a trained run.

    FOLDER is a study's, RUN a run id of its plan or the first digits of one. The run's weights must
    have been kept: set keep_weights = "best" or "all" in the study. Start with `record`; geometry,
    usage and page read what it wrote.
    """


@interpret.command(short_help="Write down which experts are chosen on held-out text.")
@_of_run
@click.option("--layers", metavar="0,1", help="Only the gates of these, from 0.  [default: all]")
@click.option("--max-tokens", type=int, help="Stop after so many.  [default: at the end]")
@click.option("--top", default=5, show_default=True, help="Predictions to keep of each token.")
def record(
    folder: Path, run: str, out: Path | None, layers: str | None, max_tokens: int | None, top: int
) -> None:
    """Write gates.parquet and tokens.parquet of a run's held-out text.

    Of each token: the chosen experts and their scores by layer and channel, the loss, and the most
    probable predictions. The loss is that of the evaluation.
    """
    from isoflop.interpret.load import open_run
    from isoflop.interpret.record import record as write_recording
    from isoflop.render.data import Bar
    from isoflop.render.tables import console

    subject = open_run(folder, run)
    with Bar(console(stderr=True)) as bar:
        found = write_recording(
            subject,
            out or subject.out,
            layers=None if layers is None else _numbers("--layers", layers),
            max_tokens=max_tokens,
            num_top=top,
            on_progress=lambda done, total: bar.show_amount("recording", done, total, " tokens"),
        )
    click.echo(f"recorded {found.num_tokens:,} tokens, loss {found.loss:.4f}: {out or subject.out}")


@interpret.command(short_help="Check that layers are linear; what experts add to a logit.")
@_of_run
@click.option(
    "--window", default=0, show_default=True, help="Which window of the held-out text, from 0."
)
@click.option(
    "--position", type=int, help="Of the token in the window, from 0.  [default: the last]"
)
@click.option("--token", type=int, help="Id of the token whose logit.  [default: the next one]")
@click.option("--top", type=_FROM_1, default=20, show_default=True, help="Parts to show.")
def linear(
    folder: Path,
    run: str,
    out: Path | None,
    window: int,
    position: int | None,
    token: int | None,
    top: int,
) -> None:
    """Check that layers are linear while their gates are held, and take a logit apart.

    Written is what the embedding, attention and each chosen expert add to one token's logit: along
    the direct path, which adds up to the logit, and by its gradient.
    """
    from isoflop.interpret.load import open_run
    from isoflop.interpret.window import look_at
    from isoflop.render.interpret import (
        ATTRIBUTION_NOTE,
        LINEARITY_NOTE,
        attribution_table,
        linearity_table,
        logit_line,
    )
    from isoflop.render.tables import console

    subject = open_run(folder, run)
    found = look_at(subject, out or subject.out, window=window, position=position, token=token)
    screen = console()
    screen.print(linearity_table(found.checks))
    click.echo(f"{LINEARITY_NOTE}\n\n{logit_line(found)}")
    screen.print(attribution_table(found.rows, top))
    click.echo(ATTRIBUTION_NOTE)
    _echo(found.files)


@interpret.command(short_help="What gates have in common; against controls, with intervals.")
@_of_run
@_RECORDING
@click.option("--sample", type=_FROM_1, default=3000, show_default=True, help="Tokens to compare.")
@click.option(
    "--embedding",
    default="auto",
    show_default=True,
    metavar="auto|umap|pca",
    help="Of the map; auto: umap where umap-learn is installed.",
)
@_SEED
def geometry(
    folder: Path,
    run: str,
    out: Path | None,
    recording: Path | None,
    sample: int,
    embedding: str,
    seed: int,
) -> None:
    """Compare the gates of recorded tokens.

    Nearest neighbours and their purity against controls, co-activation, CKA to the input
    embeddings, a map in two dimensions.
    """
    from isoflop.interpret.geometry.analyse import Options, analyse
    from isoflop.interpret.geometry.clusters import Settings
    from isoflop.interpret.load import open_run
    from isoflop.render.data import Bar
    from isoflop.render.interpret import VERDICT_NOTE, verdict_table
    from isoflop.render.tables import console

    subject = open_run(folder, run)
    options = Options(max_tokens=sample, method=embedding, settings=Settings(seed=seed))
    with Bar(console(stderr=True)) as bar:
        found = analyse(
            subject,
            recording or subject.out,
            out or subject.out,
            options,
            on_progress=lambda what: bar.show(what, 0, None, ""),
        )
    click.echo(f"{found.num_tokens:,} tokens of {found.num_documents:,} documents")
    console().print(verdict_table(found.verdicts))
    click.echo(VERDICT_NOTE)
    _echo(found.files)


@interpret.command(short_help="Patch the gates of one fact's noun into another's prompt.")
@_of_run
@click.option(
    "--facts",
    default="planted",
    show_default=True,
    metavar="planted|mined|paper",
    help="Planted in synthetic text, mined from the training text, or the paper's eight.",
)
@click.option(
    "--min-count",
    type=_FROM_1,
    default=10,
    show_default=True,
    help="Sentences that state a mined fact, at least.",
)
@click.option("--untrained", is_flag=True, help="Of the model before its first step: a control.")
@_SEED
def intervene(
    folder: Path,
    run: str,
    out: Path | None,
    facts: str,
    min_count: int,
    untrained: bool,
    seed: int,
) -> None:
    """Give the prompt "The NOUN was" the gates of another noun.

    How much of the answer follows them, by layer and cumulatively, against controls, with intervals
    over nouns.
    """
    from isoflop.interpret.facts import facts_of
    from isoflop.interpret.load import open_run
    from isoflop.interpret.load import untrained as before_training
    from isoflop.interpret.recall import write_recall
    from isoflop.render.interpret import effects_note, effects_table
    from isoflop.render.tables import console

    trained = open_run(folder, run)
    subject = before_training(trained) if untrained else trained
    out = (out or subject.out) / ("untrained" if untrained else "")
    found = write_recall(subject, facts_of(facts, subject, min_count=min_count), out, seed=seed)
    console().print(effects_table(found.rows))
    click.echo(effects_note(found.rows))
    _echo(found.files)


@interpret.command(short_help="How evenly the experts are used.")
@_of_run
@_RECORDING
def usage(folder: Path, run: str, out: Path | None, recording: Path | None) -> None:
    """Count the recorded choices by layer and channel.

    Used and dead experts, entropy, coefficient of variation; in the figure also over training.
    """
    from isoflop.interpret.load import open_run
    from isoflop.interpret.usage import write_usage
    from isoflop.render.interpret import USAGE_NOTE, usage_table
    from isoflop.render.tables import console

    subject = open_run(folder, run)
    found = write_usage(subject, recording or subject.out, out or subject.out)
    console().print(usage_table(found.rows))
    click.echo(USAGE_NOTE)
    _echo(found.files)


@interpret.command(short_help="One HTML page to read a recorded run in.")
@_of_run
@_RECORDING
@click.option(
    "--documents", type=_FROM_1, default=8, show_default=True, help="To show, the first ones."
)
def page(folder: Path, run: str, out: Path | None, recording: Path | None, documents: int) -> None:
    """Make a page of documents whose tokens can be opened.

    A token shows its strongest experts, an expert its top contexts and what it writes. The page
    opens from disk and needs no network.
    """
    from isoflop.interpret.load import open_run
    from isoflop.interpret.page import PAGE_FILE, Limits, write_page

    subject = open_run(folder, run)
    path = (out or subject.out) / PAGE_FILE
    write_page(subject, recording or subject.out, path, Limits(documents=documents))
    _echo([path])


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(name, shown(text), "whole numbers such as 0,1", "correct it") from None


def _echo(paths: Any) -> None:
    for path in paths:
        click.echo(str(path))
