"""Opens a source by its name in a study file: recipes, ``hf:``, ``files:`` and ``synthetic:``."""

from __future__ import annotations

from isoflop.data.catalog import check_source
from isoflop.data.documents import HELDOUT, TRAIN, Part, Source
from isoflop.data.hub import hub_source
from isoflop.data.local_files import describe_files, find_files, read_documents, split_files
from isoflop.data.options import Meter, OnProgress, PrepareOptions
from isoflop.data.recipes import RECIPES, Recipe
from isoflop.data.synthetic import synthetic_source
from isoflop.errors import UserError

UNKNOWN_LICENCE = "not stated; see where the data come from"
DEFAULT_COLUMN = "text"


def open_source(name: str, options: PrepareOptions, on_progress: OnProgress = None) -> Source:
    """Return the documents of a source that is no corpus of this package.

    Nothing is downloaded yet; local files are found and hashed.

    Raises:
        UserError: no such source, no such files, or an option that does not belong to it.
    """
    check_source(name)
    meter = Meter("hash", None, on_progress)
    if name in RECIPES:
        return _open_recipe(RECIPES[name], options, meter)
    kind, _, rest = name.partition(":")
    if kind == "hf":
        _refuse(name, options, "from_glob")
        return hub_source(
            name,
            hub_name=rest,
            config=options.config,
            split=options.split or TRAIN,
            heldout_split=options.heldout_split,
            column=options.column or DEFAULT_COLUMN,
            licence=UNKNOWN_LICENCE,
        )
    if kind == "files":
        _refuse(name, options, "from_glob", "config", "split")
        column = options.column or DEFAULT_COLUMN
        return _files_source(name, rest, options.heldout_split, column, UNKNOWN_LICENCE, meter)
    _refuse(name, options, "from_glob", "config", "split", "heldout_split", "column")
    return synthetic_source(name, endless=options.tokens is not None)


def _open_recipe(recipe: Recipe, options: PrepareOptions, meter: Meter) -> Source:
    column = options.column or recipe.column
    heldout_split = options.heldout_split or recipe.heldout_split
    if options.from_glob is not None:
        _refuse(recipe.name, options, "config", "split")
        return _files_source(
            recipe.name,
            options.from_glob,
            heldout_split,
            column,
            recipe.licence,
            meter,
            optional=True,
        )
    return hub_source(
        recipe.name,
        hub_name=recipe.hub_name,
        config=options.config or recipe.config,
        split=options.split or recipe.train_split,
        heldout_split=heldout_split,
        column=column,
        licence=recipe.licence,
    )


def _files_source(
    name: str,
    pattern: str,
    heldout_split: str | None,
    column: str,
    licence: str,
    meter: Meter,
    *,
    optional: bool = False,
) -> Source:
    """Local files; ``optional``: a copy without files of the held-out split is split by hash."""
    files = find_files(pattern)
    train, heldout = split_files(pattern, files, heldout_split) if heldout_split else (files, [])
    if heldout_split and not heldout and not optional:
        allowed = "part of the name of some file or folder"
        raise UserError("--heldout-split", heldout_split, allowed, f"look at {pattern}")
    if not train:
        allowed = f"files of more than the split {heldout_split!r}"
        raise UserError("files", pattern, allowed, "check the pattern")
    sides = {TRAIN: train} if not heldout else {HELDOUT: heldout, TRAIN: train}
    return Source(
        name=name,
        licence=licence,
        origin={
            "column": column,
            **{side: describe_files(chosen, meter) for side, chosen in sides.items()},
        },
        parts=tuple(
            Part(
                split=side if heldout else None,
                read=lambda chosen=chosen: read_documents(chosen, column),  # type: ignore[misc]
            )
            for side, chosen in sides.items()
        ),
    )


def _refuse(name: str, options: PrepareOptions, *fields: str) -> None:
    for field in fields:
        value = getattr(options, field)
        if value is not None:
            flag = "--from" if field == "from_glob" else "--" + field.replace("_", "-")
            raise UserError(flag, value, f"left out for {name}", "remove it")
