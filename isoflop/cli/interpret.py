"""`isoflop interpret`: reads the experts of a trained run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.cli.options import FOLDER
from isoflop.cli.progress import Bar
from isoflop.cli.tables import console, new_table
from isoflop.errors import UserError, shown

if TYPE_CHECKING:
    from rich.table import Table

    from isoflop.interpret.attribution import LogitAttribution
    from isoflop.interpret.linear import Linearity


# Whole numbers from 0 or from 1 on; click refuses others.
_FROM_0, _FROM_1 = click.IntRange(min=0), click.IntRange(min=1)

_Command = Callable[..., Any]

LINEARITY_NOTE = (
    "Largest errors of a layer's outputs y, relative to their size: against its\n"
    "matrix W times its inputs x, and against the sum of what its experts add."
)
ATTRIBUTION_NOTE = (
    "direct: what a part adds to the logit past all later layers; in all, the logit.\n"
    "gradient: what it adds to first order, with what later layers make of it."
)
VERDICT_NOTE = (
    "Do tokens with like gates share the label? Beyond token identity: more than\n"
    "every control, among other tokens or in other contexts (purity.parquet)."
)
USAGE_NOTE = (
    "used: share of experts that were chosen; dead: number of those that never were.\n"
    "entropy: of the choices, over that of even use. cv: deviation over mean."
)
_SHOWN_BEFORE = 50


def _of_run(command: _Command) -> _Command:
    """Add the arguments that every verb has."""
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


@click.group()
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
    from isoflop.interpret.recorder import record as write_recording

    loaded = open_run(folder, run)
    with Bar(console(stderr=True)) as bar:
        found = write_recording(
            loaded,
            out or loaded.out,
            layers=None if layers is None else _numbers("--layers", layers),
            max_tokens=max_tokens,
            num_top=top,
            on_progress=lambda done, total: bar.show_amount("recording", done, total, " tokens"),
        )
    click.echo(f"recorded {found.num_tokens:,} tokens, loss {found.loss:.4f}: {out or loaded.out}")


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
    from isoflop.interpret.attribution import attribute_logit
    from isoflop.interpret.load import open_run

    loaded = open_run(folder, run)
    found = attribute_logit(
        loaded, out or loaded.out, window=window, position=position, token=token
    )
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
    from isoflop.interpret.geometry.purity_tests import Settings
    from isoflop.interpret.load import open_run

    loaded = open_run(folder, run)
    options = Options(max_tokens=sample, method=embedding, settings=Settings(seed=seed))
    with Bar(console(stderr=True)) as bar:
        found = analyse(
            loaded,
            recording or loaded.out,
            out or loaded.out,
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
    from isoflop.interpret.activation_patching import write_patching
    from isoflop.interpret.facts import facts_of
    from isoflop.interpret.load import open_run
    from isoflop.interpret.load import untrained as before_training

    trained = open_run(folder, run)
    loaded = before_training(trained) if untrained else trained
    out = (out or loaded.out) / ("untrained" if untrained else "")
    found = write_patching(loaded, facts_of(facts, loaded, min_count=min_count), out, seed=seed)
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

    loaded = open_run(folder, run)
    found = write_usage(loaded, recording or loaded.out, out or loaded.out)
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

    loaded = open_run(folder, run)
    path = (out or loaded.out) / PAGE_FILE
    write_page(loaded, recording or loaded.out, path, Limits(documents=documents))
    _echo([path])


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(name, shown(text), "whole numbers such as 0,1", "correct it") from None


def _echo(paths: Any) -> None:
    for path in paths:
        click.echo(str(path))


def linearity_table(checks: Sequence[Linearity]) -> Table:
    """Return how far each layer is from its matrix and from the sum of its experts."""
    table = new_table(("layer", ">"), ("tokens", ">"), ("y - Wx", ">"), ("y - sum", ">"))
    for check in checks:
        matrix = "not linear" if check.matrix_error is None else f"{check.matrix_error:.1e}"
        table.add_row(str(check.layer), str(check.num_tokens), matrix, f"{check.sum_error:.1e}")
    return table


def logit_line(found: LogitAttribution) -> str:
    """Return which logit is taken apart."""
    before = found.before[-_SHOWN_BEFORE:]
    return (
        f"after {before!r}, position {found.position}:\n"
        f"logit {found.logit:.4f} of token {found.token}, {found.text!r}"
    )


def attribution_table(rows: Sequence[Mapping[str, Any]], num_shown: int) -> Table:
    """Return the parts with the largest direct shares of a logit."""
    names = ("part", "layer", "channel", "expert", "score", "direct", "gradient")
    table = new_table(*((name, "<" if name == "part" else ">") for name in names))
    for row in sorted(rows, key=lambda row: -abs(row["direct"]))[:num_shown]:
        table.add_row(*(_cell(row[name]) for name in names))
    return table


def verdict_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what gates have in common with their neighbours, by layer and label."""
    table = new_table(("layer", ">"), ("label", "<"), ("verdict", "<"))
    for row in rows:
        layer = "all" if row["layer"] is None else str(row["layer"])
        table.add_row(layer, row["label"], row["verdict"])
    return table


def effects_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the effect of each patch and control with its interval; excluded pairs have none."""
    table = new_table(
        ("layer", "<"),
        ("control", "<"),
        ("NIE (interval)", ">"),
        ("above control", ">"),
        ("cf %", ">"),
    )
    for row in rows:
        share = f"{100 * row['answers_cf']:.1f}"
        measures = (_with_interval(row, "nie"), _with_interval(row, "gap"))
        table.add_row(row["layers"], row["control"], *measures, share)
    return table


def effects_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the columns of :func:`effects_table` are, and of how many pairs."""
    first = rows[0]
    excluded = max(row["n_excluded"] for row in rows)
    return (
        f"{first['n_pairs']} pairs of {first['n_nouns']} nouns, {excluded} without an NIE; "
        f"{100 * first['confidence']:.0f} % intervals over nouns.\n"
        "NIE: how far the answer moves to the other noun's, from 0 to 1. Merely\n"
        "destroying it reaches about 0.5: read by how much the NIE is above each control.\n"
        "cf %: pairs that then give the counterfactual answer, before all other tokens.\n"
        "The last layer's gates at a noun reach no later token: alone they do nothing."
    )


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    if row[f"{name}_lo"] is None:
        return f"{row[name]:.3f}"
    return f"{row[name]:.3f} ({row[f'{name}_lo']:.3f} to {row[f'{name}_hi']:.3f})"


def usage_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return how evenly each table of experts is used."""
    heads = {
        "layer": "layer",
        "channel": "channel",
        "num_experts": "experts",
        "fraction_used": "used",
        "num_dead": "dead",
        "entropy": "entropy",
        "cv": "cv",
    }
    table = new_table(*((head, ">") for head in heads.values()))
    for row in rows:
        cells = {name: _cell(row[name]) for name in heads}
        table.add_row(*({**cells, "channel": "all"} if row["channel"] is None else cells).values())
    return table


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
