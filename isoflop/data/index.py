"""Finds prepared folders by what their manifests say; there is no list that could be out of date.

A folder is ``<data_dir>/<slug of the source>-<data_id>``, so that looking for one source reads
the manifests of that source only. Standard library only: planning looks here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.data.storage import DELETE_IT, MANIFEST, PREPARED_SCHEMAS, read_manifest
from isoflop.errors import UserError

_DATA_ID = "[0-9a-f]" * 16
_MAX_SLUG = 48


def split_source(source: str) -> tuple[str, str]:
    """Return a source and the data id, or its beginning, that ``@`` names after it ("" if none)."""
    matched = re.fullmatch(r"(.+)@([0-9a-f]{4,16})", source)
    return (matched[1], matched[2]) if matched else (source, "")


def folder_name(source: str, data_id: str) -> str:
    """Name of the folder in which a source's tokens lie."""
    return f"{_slug(source)}-{data_id}"


def find_prepared(
    source: str, tokenizer: str, tokenizer_hash: str | None, data_dir: Path
) -> tuple[Path, dict[str, Any]] | None:
    """The one prepared folder of a source and tokenizer with its manifest; None if there is none.

    Args:
        source: as in a study file; ``NAME@DATA_ID`` chooses among several.
        tokenizer: its name.
        tokenizer_hash: None for a tokenizer that is trained on its corpus: its name says which.
        data_dir: where to look.

    Raises:
        UserError: there are several, or a manifest is damaged.
    """
    name, wanted = split_source(source)
    found = [
        (folder, manifest)
        for folder, manifest in _read_folders(data_dir, folder_name(name, _DATA_ID))
        if _is_of(manifest, name, tokenizer, tokenizer_hash)
        and manifest["data_id"].startswith(wanted)
    ]
    if len(found) > 1:
        listed = ", ".join(
            f"{name}@{manifest['data_id']} ({manifest['splits']['train']['num_tokens']:,} tokens)"
            for _, manifest in found
        )
        raise UserError("data source", source, f"one of {listed}", "name it so")
    return found[0] if found else None


def find_same(
    request: Mapping[str, Any], tokenizer: str, tokenizer_hash: str | None, data_dir: Path
) -> Path | None:
    """The folder that was prepared from the same texts, as far as their origin says, and options.

    Args:
        request: has ``source``, ``origin`` and ``options`` as in a manifest.
        tokenizer: as for :func:`find_prepared`.
        tokenizer_hash: as for :func:`find_prepared`.
        data_dir: where to look.
    """
    for folder, manifest in _read_folders(data_dir, folder_name(request["source"], _DATA_ID)):
        if (
            _is_of(manifest, request["source"], tokenizer, tokenizer_hash)
            and manifest["corpus"]["origin"] == request["origin"]
            and manifest.get("options") == request["options"]
        ):
            return folder
    return None


def _is_of(
    manifest: Mapping[str, Any], source: str, tokenizer: str, tokenizer_hash: str | None
) -> bool:
    if manifest["source"] != source:
        return False
    if tokenizer_hash is None:
        return manifest["tokenizer"] == tokenizer
    return manifest["tokenizer_hash"] == tokenizer_hash


def _read_folders(data_dir: Path, pattern: str) -> list[tuple[Path, dict[str, Any]]]:
    folders = sorted(folder for folder in data_dir.glob(pattern) if (folder / MANIFEST).is_file())
    return [(folder, read_manifest(folder, PREPARED_SCHEMAS, DELETE_IT)) for folder in folders]


def _slug(source: str) -> str:
    """The source as part of a file name; what is cut off of a long one counts as a digest."""
    slug = re.sub(r"[^a-z0-9._]+", "-", source.lower()).strip("-.")
    if len(slug) <= _MAX_SLUG:
        return slug
    # Two long paths that begin alike may hold the same text, and so have the same data id.
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    return f"{slug[: _MAX_SLUG - 9]}-{digest}"
