"""What a page shows, within its limits, as plain values.

Letters: L layers, C channels, E experts a channel chooses from, T tokens, S strongest experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.interpret.linear import layers_of
from isoflop.interpret.load import LoadedRun, shape_of
from isoflop.interpret.page.describe import Describer, Limits, StrongRows, document_names
from isoflop.interpret.page.measures import (
    ExpertKeys,
    Neighbours,
    Strongest,
    find_contexts,
    find_neighbours,
    strongest_experts,
)
from isoflop.interpret.recording import (
    RecordedTokens,
    read_gates,
    read_predictions,
    read_tokens,
    recording_of,
)
from isoflop.interpret.usage import count_choices, usage_rows

# Equal excerpts are shown once, so more have to be found than are shown.
EXTRA_CONTEXTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """All that a page shows."""

    data: dict[str, Any]
    """The JSON that the page's script reads."""
    usage: list[dict[str, Any]]
    """Rows of isoflop.interpret.usage for the recorded layers."""
    num_recorded_documents: int
    num_shown_experts: int
    num_described_experts: int
    num_searched: int
    """Tokens among which neighbours were looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """Recorded tokens [first, end) of a document."""

    document: int
    first: int
    end: int


def gather(loaded: LoadedRun, recording: Path, limits: Limits) -> Content:
    """Return what a page shows of a recording.

    Raises:
        UserError: the family's experts are no single neurons; the recording is damaged or is that
            of another run.
    """
    layers_of(loaded.model)
    meta = recording_of(loaded, recording)
    keys = ExpertKeys(shape=shape_of(loaded), shared=meta.shared)
    tokens = read_tokens(recording)
    shown = _shown_documents(tokens, limits)
    strongest = [
        strongest_experts(loaded.model, tokens.input_T[first:end], meta.layers, limits.strongest)
        for first, end in _windows(tokens, shown)
    ]
    weight = _weights(strongest, keys)
    described = sorted(weight, key=lambda key: (-weight[key], key))[: limits.experts]
    contexts = find_contexts(
        read_gates(recording, tokens), keys, np.array(described), EXTRA_CONTEXTS * limits.contexts
    )
    neighbours = _neighbours(recording, tokens, shown, keys, limits)
    describer = Describer(loaded, tokens, keys)
    counts_LCE = count_choices(recording, keys.shape)
    experts = describer.experts(sorted(weight), described, contexts, counts_LCE, limits)
    rows = _token_rows(recording, shown, _by_token(strongest, keys, sorted(weight)), neighbours)
    return Content(
        data={
            "documents": _documents(loaded, shown),
            "tokens": [describer.token(*row) for row in rows],
            "experts": experts,
            "layers": list(meta.layers),
            "shared": keys.shared,
            "numRecorded": len(tokens),
            # Filled by all of the above.
            "labels": describer.labels.items,
            "excerpts": describer.excerpts.items,
        },
        usage=usage_rows(counts_LCE, meta.layers, num_tokens=meta.num_tokens, shared=meta.shared),
        num_recorded_documents=len(np.unique(tokens.document_T)),
        num_shown_experts=len(weight),
        num_described_experts=len(described),
        num_searched=neighbours.num_searched,
    )


def _shown_documents(tokens: RecordedTokens, limits: Limits) -> list[_Shown]:
    """Return the beginnings of the first documents."""
    documents, firsts, counts = np.unique(tokens.document_T, return_index=True, return_counts=True)
    rows = zip(documents.tolist(), firsts.tolist(), counts.tolist(), strict=True)
    return [
        _Shown(document=document, first=first, end=first + min(count, limits.tokens_per_document))
        for document, first, count in list(rows)[: limits.documents]
    ]


def _windows(tokens: RecordedTokens, shown: Sequence[_Shown]) -> Iterator[tuple[int, int]]:
    """Yield ranges of the shown tokens of each window, in order."""
    for one in shown:
        first = one.first
        while first < one.end:
            end = min(one.end, tokens.window_rows(first)[1])
            yield first, end
            first = end


def _weights(strongest: Sequence[Sequence[Strongest]], keys: ExpertKeys) -> dict[int, float]:
    """Return the sum of its shares for each expert that is anywhere among the strongest."""
    weight: dict[int, float] = {}
    for layers in strongest:
        for found in layers:
            key_TS = keys.of(found.layer, found.channel_TS, found.expert_TS)
            for key, share in zip(key_TS.ravel().tolist(), found.share_TS.ravel(), strict=True):
                weight[key] = weight.get(key, 0.0) + float(share)
    return weight


def _by_token(
    strongest: Sequence[Sequence[Strongest]], keys: ExpertKeys, shown_keys: Sequence[int]
) -> Iterator[list[StrongRows]]:
    """Yield, for each shown token, the rows of each layer."""
    place = {key: index for index, key in enumerate(shown_keys)}
    for layers in strongest:
        by_layer = [_rows(one, keys, place) for one in layers]
        yield from (list(rows) for rows in zip(*by_layer, strict=True))


def _rows(found: Strongest, keys: ExpertKeys, place: Mapping[int, int]) -> list[StrongRows]:
    """Return the rows of a layer for each token."""
    key_TS = keys.of(found.layer, found.channel_TS, found.expert_TS)
    columns = (found.channel_TS, key_TS, found.share_TS, found.is_negative_TS)
    return [
        [
            (channel, place[key], round(share, 4), -1 if negative else 1)
            for channel, key, share, negative in zip(*token, strict=True)
        ]
        for token in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _neighbours(
    recording: Path,
    tokens: RecordedTokens,
    shown: Sequence[_Shown],
    keys: ExpertKeys,
    limits: Limits,
) -> Neighbours:
    return find_neighbours(
        recording,
        tokens,
        np.concatenate([np.arange(one.first, one.end) for one in shown]),
        keys.shape,
        num_neighbours=limits.neighbours,
        max_tokens=limits.neighbour_tokens,
    )


def _token_rows(
    recording: Path,
    shown: Sequence[_Shown],
    strongest: Iterable[list[StrongRows]],
    neighbours: Neighbours,
) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of Describer.token for each shown token."""
    rows = [row for one in shown for row in range(one.first, one.end)]
    predictions = read_predictions(recording, rows)
    return zip(
        rows,
        strongest,
        predictions,
        neighbours.any_token,
        neighbours.other_token,
        strict=True,
    )


def _documents(loaded: LoadedRun, shown: Sequence[_Shown]) -> list[dict[str, Any]]:
    """Return the name and range of the page's tokens of each document."""
    names = document_names(loaded, shown[-1].document + 1)
    found, first = [], 0
    for one in shown:
        end = first + one.end - one.first
        found.append({"name": names[one.document], "first": first, "end": end})
        first = end
    return found
