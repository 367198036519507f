"""Makes token shards of a source: documents, each with its end-of-text, concatenated.

A prepared folder holds ``train-*.bin`` and ``heldout-*.bin`` (little-endian uint16 or uint32) and
a ``manifest.json``; it depends on texts, tokenizer and options alone, so two preparations are
equal byte for byte. Corpora are small and are written in one go; every other source goes through
blocks (:mod:`isoflop.data.pipeline`), in several processes, and can be killed and taken up again.
"""

from __future__ import annotations

from pathlib import Path

from isoflop.data.catalog import CORPORA, check_source, known_spec, not_prepared
from isoflop.data.corpus_tokens import prepare_corpus
from isoflop.data.index import find_prepared, folder_name, split_source
from isoflop.data.options import OnProgress, PrepareOptions
from isoflop.data.sources import open_source
from isoflop.data.storage import default_data_dir, writing_to
from isoflop.data.stream_tokens import prepare_stream
from isoflop.data.windows import open_data
from isoflop.errors import UserError


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
        on_progress: told now and then how far it is.

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

    Whatever else was prepared of the same source meanwhile; a corpus is prepared if it is not
    there.

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
