"""Token shards of any other source: block by block, in several processes, restartable."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.data import pipeline
from isoflop.data.catalog import known_spec, make_data_id
from isoflop.data.corpus_tokens import tokenizer_entries
from isoflop.data.shards import (
    Sorting,
    describe_splits,
    few_digests,
    heldout_digests,
    sort_documents,
    write_facts,
    write_shards,
)
from isoflop.data.sources import TRAIN, Meter, OnProgress, PrepareOptions, Source
from isoflop.data.storage import (
    STREAM_SCHEMA,
    find_same,
    folder_name,
    make_folder,
    rename_unless_there,
    write_manifest,
)
from isoflop.data.windows import open_data
from isoflop.errors import UserError
from isoflop.files import sha256_json

if TYPE_CHECKING:
    from isoflop.data.tokenizers import Tokenizer


def prepare_stream(
    source: Source, name: str, data_dir: Path, options: PrepareOptions, on_progress: OnProgress
) -> Path:
    """Return the folder of a source's tokens; what is there, or half done, is not done again.

    Raises:
        UserError: as :func:`isoflop.data.prepare.prepare`.
    """
    spec = known_spec(name)
    tokenizer_hash = None if spec is None else spec.hash
    request = {
        "source": source.name,
        "origin": dict(source.origin),
        "options": options.content(),
        "tokenizer": tokenizer_hash or name,
    }
    # Blocks are the same under either rule for bad documents, so that a refused preparation can go
    # on with the other.
    in_work = {key: value for key, value in options.content().items() if key != "on_bad_document"}
    key = sha256_json({**request, "options": in_work, "blocks": pipeline.BLOCK_RULE})[:16]
    work = data_dir / f".work-{key}"
    make_folder(data_dir)
    with _alone(work.with_suffix(".lock")):
        target = find_same(request, name, tokenizer_hash, data_dir)
        if target is None:
            target = _work(source, name, data_dir, work, options, on_progress)
    open_data(target)
    return target


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time prepare the same data; the others wait."""
    while True:
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it before has deleted it: another file of that name may be locked by now.
            if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                continue
            try:
                yield
            finally:
                lock.unlink()
            return


def _work(
    source: Source,
    name: str,
    data_dir: Path,
    work: Path,
    options: PrepareOptions,
    on_progress: OnProgress,
) -> Path:
    """Tokenise, assemble and publish; what is in ``work`` already is not done again."""
    from isoflop.data.tokenizers import get_tokenizer

    Meter("tokenizer", None, on_progress).add(0, 0, 0)
    tokenizer = get_tokenizer(name, sample=training_texts(source, options), data_dir=data_dir)
    tokenising = pipeline.Tokenising(
        tokenizer=tokenizer, folder=work, on_bad_document=options.on_bad_document
    )
    work.mkdir(exist_ok=True)
    try:
        parts = pipeline.take_parts(source.parts, tokenising, options, on_progress)
    finally:
        # Where nothing was tokenised, nothing is left behind.
        with suppress(OSError):
            work.rmdir()
    out = work / "out"
    out.mkdir(exist_ok=True)
    # Temporary files of a killed run.
    for leftover in out.glob(".*"):
        leftover.unlink()
    try:
        sorting = sort_documents(work, out, parts, options)
    except UserError:
        # Taken up again, it would come to the same.
        shutil.rmtree(work)
        raise
    shards = write_shards(work, out, sorting, tokenizer.dtype, options.workers, on_progress)
    data_id = make_data_id(sorting.corpus_sha256, tokenizer.spec.hash, sorting.rule)
    manifest = _stream_manifest(source, options, tokenizer, sorting, shards, data_id, out)
    write_manifest(out, manifest)
    target = data_dir / folder_name(source.name, data_id)
    rename_unless_there(out, target)
    shutil.rmtree(work)
    return target


def _stream_manifest(
    source: Source,
    options: PrepareOptions,
    tokenizer: Tokenizer,
    sorting: Sorting,
    shards: dict[str, list[dict[str, Any]]],
    data_id: str,
    out: Path,
) -> dict[str, Any]:
    num_documents = sum(split.num_documents for split in sorting.splits.values())
    return {
        "schema": STREAM_SCHEMA,
        "data_id": data_id,
        "source": source.name,
        "corpus": {
            "name": source.name,
            "licence": source.licence,
            "origin": dict(source.origin),
            "corpus_sha256": sorting.corpus_sha256,
        },
        "options": options.content(),
        **tokenizer_entries(tokenizer, out),
        "split_rule": sorting.rule,
        "dropped": {
            "bad_documents": sorting.num_bad,
            "empty_documents": sorting.num_empty,
            "heldout_copies": sorting.num_heldout_copies,
        },
        "num_train_duplicates": sorting.num_train_duplicates,
        "splits": describe_splits(out, sorting, shards),
        "extra_files": write_facts(out, source, num_documents),
    }


def training_texts(source: Source, options: PrepareOptions) -> Iterator[bytes]:
    """Yield good training documents in order, for a tokenizer; read only as far as asked."""
    part = source.parts[-1]
    is_heldout: Callable[[bytes], bool] = pipeline.is_hash_heldout
    if part.split is None and options.tokens is None:
        digests = few_digests(hashlib.sha256(text).digest() for text in _good_texts(source))
        if digests is not None:
            is_heldout = heldout_digests(digests).__contains__
    for text in _good_texts(source):
        if part.split == TRAIN or not is_heldout(hashlib.sha256(text).digest()):
            yield text


def _good_texts(source: Source) -> Iterator[bytes]:
    for document in source.parts[-1].read():
        try:
            pipeline.decode_text(document.text, "document")
        except UserError:
            # Refused or dropped, and counted, when it is tokenised.
            continue
        if document.text:
            yield document.text
