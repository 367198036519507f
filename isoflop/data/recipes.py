"""Published data sets that are known by name, and how each is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A published data set and how it is read."""

    name: str
    hub_name: str
    """Where it is published, as a plain name."""
    config: str | None = None
    train_split: str = "train"
    heldout_split: str | None
    """None: documents are held out by their hash."""
    column: str = "text"
    licence: str
    num_train_documents: int | None
    row_tokens: int | None = None
    """Tokens of a document where a published study cut or padded each to a row of so many."""
    about: str
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

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                name="slimpajama-627b",
                hub_name="cerebras/SlimPajama-627B",
                heldout_split="validation",
                licence=_SLIMPAJAMA_LICENCE,
                num_train_documents=590_394_625,
                about="cleaned web, code, books, papers; 627 billion tokens",
            ),
            Recipe(
                name="slimpajama-6b",
                hub_name="DKYoon/SlimPajama-6B",
                heldout_split="validation",
                licence=_SLIMPAJAMA_LICENCE,
                num_train_documents=None,
                about="a random 1% of SlimPajama-627B",
            ),
            Recipe(
                name="tinystories",
                hub_name="roneneldan/TinyStories",
                heldout_split="validation",
                licence="CDLA-Sharing-1.0",
                num_train_documents=2_119_719,
                # The sgatlin paper's; texts that are prepared are packed, without padding.
                row_tokens=1024,
                about="short made-up stories in simple English, 2.1 million",
            ),
            Recipe(
                name="fineweb-edu",
                hub_name="HuggingFaceFW/fineweb-edu",
                config="sample-10BT",
                heldout_split=None,
                licence="ODC-By-1.0; Common Crawl terms of use",
                num_train_documents=None,
                about="educational web pages; the sample of 10 billion tokens",
            ),
        )
    }
)
