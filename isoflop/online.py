"""Servers of others that may not answer: the Hugging Face hub, by way of `datasets`, and any."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from isoflop.disk import fault_of
from isoflop.errors import UserError

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
PROBE_S = 3.0
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")
_PORTS = {"http": 80, "https": 443}


def answers(url: str) -> bool:
    """Return whether a server can be reached at all; behind a proxy its library has to find out."""
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    address = urlsplit(url)
    port = address.port or _PORTS.get(address.scheme, 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PROBE_S).close()
    except OSError:
        return False
    return True


def hub_answers() -> bool:
    """Return whether the Hugging Face hub can be reached."""
    return answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


def import_datasets() -> Any:
    """Return the package `datasets`, which asks nothing of a hub that cannot be reached.

    Raises:
        UserError: it is missing.
    """
    if OFFLINE_VARIABLE not in os.environ and not hub_answers():
        # Otherwise each question takes five retries, 24 seconds.
        os.environ[OFFLINE_VARIABLE] = "1"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        do = "run `pip install 'isoflop[data]'`"
        raise UserError("package", "datasets", "installed", do) from None
    datasets.disable_progress_bars()
    return datasets


@contextmanager
def plain_hub_errors(name: str, config: str | None, *, offline: str, do: str) -> Iterator[None]:
    """Turn what `datasets` raises of a data set into a line.

    Args:
        name: of the data set.
        config: its configuration; None: none was named.
        offline: what to do where the hub cannot be reached.
        do: what to do where the data set cannot be read.

    Raises:
        UserError: the line.
    """
    try:
        yield
    except UserError:
        raise
    except ConnectionError:
        raise UserError("data set", name, "reachable", offline) from None
    # No such data set, configuration or split; a file that is not what its name says.
    except (OSError, ValueError, RuntimeError) as error:
        if fault_of(error) is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        place = "data set" if config is None else f"data set, configuration {config}"
        raise UserError(place, name, f"readable ({reason})", do) from None
