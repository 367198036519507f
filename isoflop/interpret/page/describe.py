"""Tokens, excerpts around them and experts as text, each distinct one kept once.

Letters: T recorded tokens, L layers, C channels, E experts a channel chooses from, N described
experts, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.tokenizers import PAD_ID, Tokenizer
from isoflop.interpret.geometry.patterns import Ints
from isoflop.interpret.linear import layers_of
from isoflop.interpret.load import LoadedRun
from isoflop.interpret.page.measures import ExpertKeys, Found, direct_writes
from isoflop.interpret.recording import RecordedTokens

StrongRows = list[tuple[int, int, float, int]]
"""(channel, place of the expert in the page's list, share, -1 where it points
against the expert's w_out and else 1), largest share first."""
LEFT_CHARACTERS = 32
RIGHT_CHARACTERS = 20
_CUT = "\ufffd"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a page holds, so that a browser opens it whatever was recorded."""

    documents: int = 8
    """Documents shown: the first recorded ones."""
    tokens_per_document: int = 300
    """Tokens from a document's beginning on."""
    strongest: int = 5
    """Experts shown of each token and layer."""
    experts: int = 1500
    """Experts described: those with the largest shares, all shown tokens together."""
    contexts: int = 6
    """Contexts of each described expert."""
    writes: int = 8
    """Tokens that an expert raises, and as many that it lowers."""
    neighbours: int = 5
    """Neighbours in each of a token's two lists."""
    neighbour_tokens: int = 10_000
    """Tokens among which neighbours are looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Distinct values, each kept once and named by its place."""

    items: list[Any] = field(default_factory=list)
    _places: dict[Any, int] = field(default_factory=dict)

    def place(self, item: Any) -> int:
        """Return where ``item`` is, which is added if it is new."""
        if item not in self._places:
            self._places[item] = len(self.items)
            self.items.append(item)
        return self._places[item]


class Describer:
    """Makes the tokens and experts of a page; their texts go to ``labels`` and ``excerpts``."""

    def __init__(self, loaded: LoadedRun, tokens: RecordedTokens, keys: ExpertKeys) -> None:
        self.labels = Pool()
        self.excerpts = Pool()
        self._loaded = loaded
        self._tokens = tokens
        self._keys = keys
        self._text = TokenText(loaded.tokenizer)
        self._document_names = document_names(loaded, int(tokens.document_T.max()) + 1)

    def token(
        self,
        row: int,
        strongest: Sequence[StrongRows],
        predictions: Sequence[tuple[int, float]],
        neighbours: Found,
        others: Found,
    ) -> dict[str, Any]:
        """Return a shown token: what was read and what came next, and what is known of it."""
        tokens = self._tokens
        position = int(tokens.position_T[row])
        read = self._text.label_of_input(int(tokens.input_T[row]), position)
        return {
            "position": position,
            "input": self.labels.place(read),
            "target": self._label(int(tokens.target_T[row])),
            "loss": round(float(tokens.loss_T[row]), 4),
            "predictions": [[self._label(token), round(p, 4)] for token, p in predictions],
            "strongest": strongest,
            "neighbours": self._found(neighbours),
            "others": self._found(others),
        }

    def experts(
        self,
        shown: Sequence[int],
        described: Sequence[int],
        contexts: Mapping[int, list[int]],
        counts_LCE: Ints,
        limits: Limits,
    ) -> list[dict[str, Any]]:
        """Return the experts of keys ``shown``; of the ``described`` what they write and where."""
        scale_D = self._loaded.model.output_norm.scale
        writes = direct_writes(
            self._w_out(described), scale_D, self._loaded.model.embedding, limits.writes
        )
        details = {
            key: {
                "raises": self._written(one.raises),
                "lowers": self._written(one.lowers),
                "contexts": self._contexts(contexts.get(key, ()), limits.contexts),
            }
            for key, one in zip(described, writes, strict=True)
        }
        return [self._expert(key, counts_LCE, details.get(key)) for key in shown]

    def _expert(self, key: int, counts_LCE: Ints, detail: dict[str, Any] | None) -> dict[str, Any]:
        layer, table, expert = self._keys.name(key)
        counts_CE = counts_LCE[layer]
        uses = counts_CE[:, expert].sum() if self._keys.shared else counts_CE[table, expert]
        return {
            "layer": layer,
            "table": table,
            "expert": expert,
            "uses": int(uses),
            "detail": detail,
        }

    def _w_out(self, described: Sequence[int]) -> Tensor:
        """Return the output weights of experts [N, D]."""
        layers = layers_of(self._loaded.model)
        names = map(self._keys.name, described)
        return torch.stack([layers[layer].w_out[table, expert] for layer, table, expert in names])

    def _written(self, tokens: Iterable[tuple[int, float]]) -> list[list[float]]:
        return [[self._label(token), round(z, 1)] for token, z in tokens]

    def _contexts(self, rows: Iterable[int], num: int) -> list[int]:
        """Return places of the first ``num`` distinct excerpts."""
        places: dict[int, None] = {}
        for row in rows:
            places[self._excerpt(row)] = None
            if len(places) == num:
                break
        return list(places)

    def _found(self, found: Found) -> list[list[float]]:
        return [[round(cosine, 4), self._excerpt(row)] for cosine, row in found]

    def _excerpt(self, row: int) -> int:
        name = self._document_names[self._tokens.document_T[row]]
        return self.excerpts.place((*excerpt(self._text, self._tokens, row), name))

    def _label(self, token: int) -> int:
        return self.labels.place(self._text.label(token))


def document_names(loaded: LoadedRun, num: int) -> list[str]:
    """Return the source's names of the first held-out documents; without one, their numbers."""
    if loaded.data is None:
        return [f"document {number}" for number in range(num)]
    return loaded.data.document_names("heldout", 0, num)


class TokenText:
    """Token ids as text, each id decoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._labels: dict[int, str] = {}

    def label(self, token: int) -> str:
        """Return the text of one token; its number in angle brackets where it has none alone."""
        if token not in self._labels:
            self._labels[token] = self._decode(token)
        return self._labels[token]

    def _decode(self, token: int) -> str:
        spec = self._tokenizer.spec
        special = {spec.begin_id: "⟨begin⟩", spec.end_of_text_id: "⟨end⟩", PAD_ID: "⟨pad⟩"}
        if token in special:
            return special[token]
        text = self._tokenizer.decode(np.array([token]))
        # Of white space the page marks these; others, such as a form feed, would not be seen.
        is_text = text and _CUT not in text and (text.isprintable() or not text.strip(" \n\t"))
        return text if is_text else f"⟨{token}⟩"

    def label_of_input(self, token: int, position: int) -> str:
        """Return :meth:`label`; only position 0 has the begin token, which may end texts too."""
        spec = self._tokenizer.spec
        begins = position == 0 and token == spec.begin_id
        return "⟨begin⟩" if begins else self.label(token)

    def join(self, tokens: NDArray[np.int32]) -> str:
        """Return the text of successive tokens, special ones left out, cut characters too."""
        spec = self._tokenizer.spec
        kept = tokens[tokens != spec.begin_id] if tokens.size else tokens
        return self._tokenizer.decode(kept).strip(_CUT)


def excerpt(text: TokenText, tokens: RecordedTokens, row: int) -> tuple[str, str, str]:
    """Return what stands before a recorded token in its window, the token, and what comes after.

    At most :data:`LEFT_CHARACTERS` and :data:`RIGHT_CHARACTERS` of text around it.
    """
    first, end = tokens.window_rows(row)
    # A token has at least one byte and a character at most four.
    left = tokens.input_T[max(first, row - 4 * LEFT_CHARACTERS) : row]
    right = tokens.target_T[row : min(end, row + 4 * RIGHT_CHARACTERS)]
    token = text.label_of_input(int(tokens.input_T[row]), int(tokens.position_T[row]))
    return text.join(left)[-LEFT_CHARACTERS:], token, text.join(right)[:RIGHT_CHARACTERS]
