"""Makes token shards of a source: documents, each with its end-of-text, concatenated.

A prepared folder holds ``train-*.bin`` and ``heldout-*.bin`` (little-endian uint16 or uint32) and
a ``manifest.json``; it depends on texts, tokenizer and options alone, so two preparations are
equal byte for byte. Corpora are small and are written in one go; every other source goes through
blocks (:mod:`isoflop.data.pipeline`), in several processes, and can be killed and taken up again.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from isoflop.data.catalog import check_source, known_spec, not_prepared
from isoflop.data.corpus import CORPORA
from isoflop.data.corpus_tokens import prepare_corpus
from isoflop.data.hub import DATASETS, HubDataset, hub_source
from isoflop.data.local_files import describe_files, find_files, read_documents, split_files
from isoflop.data.sources import HELDOUT, TRAIN, Meter, OnProgress, Part, PrepareOptions, Source
from isoflop.data.storage import (
    default_data_dir,
    find_prepared,
    folder_name,
    split_source,
    writing_to,
)
from isoflop.data.stream_tokens import prepare_stream
from isoflop.data.synthetic import synthetic_source
from isoflop.data.windows import open_data
from isoflop.errors import UserError

UNKNOWN_LICENCE = "not stated; see where the data come from"
DEFAULT_COLUMN = "text"


def prepare(
    source: str,
    tokenizer: str,
    data_dir: Path | None = None,
    *,
    options: PrepareOptions | None = None,
    on_progress: OnProgress = None,
) -> Path:
    """Return the folder of a source's tokens, made if it is not there, verified if it is.

    Any number of processes may prepare the same data at once. The folder is
    ``<data_dir>/<source>-<data_id>``.

    Args:
        source: see :data:`isoflop.data.catalog.SOURCES` and ``SOURCE_PATTERNS``.
        tokenizer: see :func:`isoflop.data.tokenizers.get_tokenizer`.
        data_dir: :func:`isoflop.data.storage.default_data_dir` if None.
        options: how the source is read; None takes what is prepared, whatever the options were,
            and prepares nothing but corpora.
        on_progress: called now and then with the progress.

    Raises:
        UserError: source or tokenizer cannot be prepared, texts are missing, damaged or refused,
            or the folder is there but does not verify (it is never replaced).
    """
    data_dir = data_dir or default_data_dir()
    name, _ = split_source(source)
    check_source(name)
    # Refuses an unknown tokenizer before anything is read.
    spec = known_spec(tokenizer)
    if name in CORPORA:
        given = options or PrepareOptions()
        with writing_to(data_dir):
            return prepare_corpus(name, tokenizer, data_dir, given, on_progress)
    if options is None:
        tokenizer_hash = None if spec is None else spec.hash
        found = find_prepared(source, tokenizer, tokenizer_hash, data_dir)
        if found is None:
            raise not_prepared(source, tokenizer)
        open_data(found[0])
        return found[0]
    opened = open_source(name, options, on_progress)
    with writing_to(data_dir):
        return prepare_stream(opened, tokenizer, data_dir, options, on_progress)


def prepared_for_plan(
    source: str, tokenizer: str, data_id: str, data_dir: Path | None = None
) -> Path:
    """Return the verified folder of the very tokens that a plan was made for.

    What else was prepared of the same source meanwhile does not matter; a corpus is prepared if it
    is not there.

    Args:
        source: as the study names it.
        tokenizer: as the study names it.
        data_id: of the plan's runs.
        data_dir: :func:`isoflop.data.storage.default_data_dir` if None.

    Raises:
        UserError: it is not there, though perhaps other tokens of the source are, or does not
            verify.
    """
    data_dir = data_dir or default_data_dir()
    folder = data_dir / folder_name(split_source(source)[0], data_id)
    if not folder.is_dir():
        folder = prepare(source, tokenizer, data_dir)
    found = open_data(folder).identity.data_id
    if found != data_id:
        do = "prepare the texts of that time again, or plan with these into a new folder"
        raise UserError(f"data id of {source}", found, f"{data_id}, which was planned with", do)
    return folder


def open_source(name: str, options: PrepareOptions, on_progress: OnProgress = None) -> Source:
    """Return the documents of a source that is no corpus of this package.

    Nothing is downloaded yet; local files are found and hashed.

    Raises:
        UserError: no such source, no such files, or an option that does not belong to it.
    """
    check_source(name)
    meter = Meter("hash", None, on_progress)
    kind, _, rest = name.partition(":")
    if name in DATASETS:
        dataset = DATASETS[name]
    elif kind == "hf":
        _refuse(name, options, "from_glob")
        dataset = HubDataset(name=name, hub_name=rest, licence=UNKNOWN_LICENCE)
    elif kind == "files":
        _refuse(name, options, "from_glob", "config", "split")
        column = options.column or DEFAULT_COLUMN
        return _files_source(name, rest, options.heldout_split, column, UNKNOWN_LICENCE, meter)
    else:
        _refuse(name, options, "from_glob", "config", "split", "heldout_split", "column")
        return synthetic_source(name, endless=options.tokens is not None)
    column = options.column or dataset.column
    heldout_split = options.heldout_split or dataset.heldout_split
    if options.from_glob is not None:
        _refuse(name, options, "config", "split")
        pattern, licence = options.from_glob, dataset.licence
        return _files_source(name, pattern, heldout_split, column, licence, meter, optional=True)
    return hub_source(
        dataclasses.replace(
            dataset,
            config=options.config or dataset.config,
            train_split=options.split or dataset.train_split,
            heldout_split=heldout_split,
            column=column,
        )
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
    """Return local files; ``optional``: without files of the held-out split, split by hash."""
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
                read=functools.partial(read_documents, chosen, column),
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
