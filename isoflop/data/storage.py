"""Prepared folders: manifests that notice any change, folders that appear whole or not at all.

A folder is ``<data_dir>/<slug of the source>-<data_id>``. It is found by its manifest: there
is no list that could be out of date, and looking for one source reads the manifests of that
source only. Standard library only: planning looks here.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isoflop.disk import fault_of, naming
from isoflop.errors import UserError
from isoflop.files import cache_folder, fsync_path, read_json, sha256_json, write_json_atomic

MANIFEST = "manifest.json"
TOKENS_SCHEMA = "isoflop-tokens/1"
"""Prepared corpora: one row per document in the manifest."""
STREAM_SCHEMA = "isoflop-tokens/2"
"""Other prepared sources: the documents are in a parquet table beside the shards."""
PREPARED_SCHEMAS = (TOKENS_SCHEMA, STREAM_SCHEMA)
DELETE_IT = "delete the folder and prepare again"
"""What helps where a prepared folder is not as it was written."""
_SEAL = "manifest_sha256"
_DATA_ID = "[0-9a-f]" * 16
_MAX_SLUG = 48


def default_data_dir() -> Path:
    """Return ``$ISOFLOP_DATA_DIR``, else ``isoflop/data`` in the XDG cache folder."""
    if chosen := os.environ.get("ISOFLOP_DATA_DIR"):
        return Path(chosen)
    return cache_folder() / "data"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` with the sha256 of its own content in ``manifest_sha256``."""
    write_json_atomic(folder / MANIFEST, {**manifest, _SEAL: sha256_json(manifest)})


def _digest(manifest: dict[str, Any]) -> str | None:
    """Return the sha256 of a manifest's content; None: it has numbers that none of ours has."""
    try:
        return sha256_json(manifest)
    except TypeError:
        return None


def read_manifest(folder: Path, schema: str | tuple[str, ...], do: str) -> dict[str, Any]:
    """Return the manifest of ``folder``, without its seal.

    Args:
        folder: a corpus or a prepared data set.
        schema: name and version that the manifest must carry, or several that it may carry.
        do: what the user should do about an unusable folder.

    Raises:
        UserError: the manifest is missing, is no JSON, was changed, or is of another schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError("data folder", str(folder), f"a folder with a {MANIFEST}", do)
    manifest = read_json(path, "data manifest")
    seal = manifest.pop(_SEAL, None) if isinstance(manifest, dict) else None
    if seal is None or seal != _digest(manifest):
        raise UserError("data manifest", str(path), "as it was written (its sha256 differs)", do)
    schemas = (schema,) if isinstance(schema, str) else schema
    if manifest["schema"] not in schemas:
        allowed = f"{' or '.join(map(repr, schemas))} for this version"
        raise UserError(f"{path}: schema", manifest["schema"], allowed, do)
    return manifest


def publish_folder(target: Path, fill: Callable[[Path], object]) -> bool:
    """Make ``target`` from what ``fill`` writes into a temporary folder beside it.

    Any number of processes may publish the same target at once: the first rename wins and the
    others discard their work. A process that is killed leaves only a hidden ``.tmp-`` folder.

    Returns:
        True if this call made the folder, False if it was there first.

    Raises:
        UserError: the folder that should hold ``target`` cannot be written.
    """
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}-{secrets.token_hex(4)}")
    make_folder(target.parent)
    with writing_to(target.parent):
        temporary.mkdir()
    try:
        fill(temporary)
        return rename_unless_there(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        UserError: that is not possible.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn an error of what writes to ``folder`` into one of the user.

    Raises:
        UserError: it is no folder, or another's.
    """
    try:
        with naming(folder):
            yield
    except OSError as error:
        if fault_of(error) is not None:
            raise
        allowed = f"a folder that can be written to ({error.strerror})"
        do = "make room, or set ISOFLOP_DATA_DIR to another"
        raise UserError("data folder", str(folder), allowed, do) from None


def rename_unless_there(temporary: Path, target: Path) -> bool:
    """Make ``temporary`` the folder ``target``; False if another process was first."""
    try:
        temporary.rename(target)
    except OSError:
        # Renaming onto a folder with files fails with one of several errno; whatever it was, a
        # target that is there now was completed by another process.
        if target.is_dir():
            return False
        raise
    fsync_path(target.parent)
    return True


def split_source(source: str) -> tuple[str, str]:
    """Return a source and the data id, or its beginning, that ``@`` names after it ("" if none)."""
    matched = re.fullmatch(r"(.+)@([0-9a-f]{4,16})", source)
    return (matched[1], matched[2]) if matched else (source, "")


def folder_name(source: str, data_id: str) -> str:
    """Return the name of the folder in which a source's tokens lie."""
    return f"{_slug(source)}-{data_id}"


def find_prepared(
    source: str, tokenizer: str, tokenizer_hash: str | None, data_dir: Path
) -> tuple[Path, dict[str, Any]] | None:
    """Return the one prepared folder of a source and tokenizer, and its manifest; None without one.

    Args:
        source: as in a study file; ``NAME@DATA_ID`` chooses among several.
        tokenizer: its name.
        tokenizer_hash: None for a tokenizer that is trained on its corpus: its name identifies it.
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
    """Return the folder that was prepared from texts of the same origin with the same options.

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
    """Return the source as part of a file name; a digest replaces the end of a long one."""
    slug = re.sub(r"[^a-z0-9._]+", "-", source.lower()).strip("-.")
    if len(slug) <= _MAX_SLUG:
        return slug
    # Two long paths that begin alike may hold the same text, and so have the same data id.
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    return f"{slug[: _MAX_SLUG - 9]}-{digest}"
