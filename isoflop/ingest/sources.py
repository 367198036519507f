"""Where a table comes from, as it is typed: a file or files, a tracker, a data set."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from isoflop.errors import UserError
from isoflop.ingest.files import RawTable, read_files
from isoflop.ingest.run_cache import Note, silent

FILE_KINDS = ("csv", "tsv", "parquet", "json", "jsonl")
"""Kinds of files, which are told by what is in them; the word is for people."""
KINDS = (*FILE_KINDS, "wandb", "tensorboard", "hf")
"""Words before a colon, or before the source on the command line."""

_PREFIX = re.compile(r"([A-Za-z_-]+):(.*)", re.DOTALL)


def read_source(text: str, *, refresh: bool = False, note: Note = silent) -> RawTable:
    """Return the table that a source names.

    Args:
        text: a path or a pattern of files, ``csv:PATH`` (or tsv, parquet, json, jsonl),
            ``wandb:ENTITY/PROJECT``, ``wandb:FOLDER``, ``tensorboard:FOLDER``, or
            ``hf:NAME_OR_FOLDER``.
        refresh: read again what is in the cache of trackers' runs.
        note: is called with how many of a tracker's runs were read, and of how many.

    Raises:
        UserError: no such kind, nothing there, or a package is missing.
    """
    kind, rest = split_kind(text)
    if not rest:
        raise UserError("source", text, "a path or a name", "name what to read behind the colon")
    if kind in FILE_KINDS or kind is None:
        _check_no_folder(rest)
        return read_files(rest)
    if kind == "hf":
        from isoflop.ingest.hub import read_hub

        return read_hub(rest)
    if kind == "tensorboard":
        from isoflop.ingest.tensorboard import read_tensorboard

        return read_tensorboard(rest, refresh=refresh, note=note)
    from isoflop.ingest.wandb import read_wandb

    return read_wandb(rest, refresh=refresh, note=note)


def split_kind(text: str) -> tuple[str | None, str]:
    """Return the kind of a source and what follows it; None: a path or a pattern of files.

    Raises:
        UserError: the word before the colon is no kind.
    """
    match = _PREFIX.fullmatch(text)
    if match is None or Path(text).exists():
        return None, text
    kind = match[1].lower()
    if kind in ("http", "https"):
        raise UserError("source", text, "on this machine", "download it first")
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, n=1)
        do = f"write {near[0]}:{match[2]}" if near else "check the path"
        allowed = f"an existing file, or begin with one of {', '.join(KINDS)} and a colon"
        raise UserError("source", text, allowed, do)
    return kind, match[2]


def _check_no_folder(text: str) -> None:
    """Refuse a folder of a tracker's runs, and say how it is read.

    Raises:
        UserError: it is one.
    """
    folder = Path(text).expanduser()
    if not folder.is_dir():
        return
    patterns = {"wandb": "**/*.wandb", "tensorboard": "**/*tfevents*"}
    for kind, pattern in patterns.items():
        if next(folder.glob(pattern), None) is not None:
            raise UserError("source", text, "a file", f"write {kind}:{text} for the runs in it")
