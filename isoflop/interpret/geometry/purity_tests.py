"""Do gates form clusters of meaning? Purities of gates and controls, and a verdict.

A verdict is asked of each layer and label:

- ``beyond token identity``: the gates are purer than every control, where the token cannot be the
  reason: among other tokens than the query's (there the cosine of input embeddings is a control
  too, for whatever depends on the token alone), or among the same token in other contexts.
- ``explained by token identity``: the gates are purer than chance only as the token alone is.
- ``no more than chance``: they are not even that.

The residual stream is shown beside them: gates are a function of it, so it is no null hypothesis.
Intervals are each at 95 %, not corrected for the number of layers and labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.interpret.geometry.patterns import (
    Activations,
    Ints,
    Matrix,
    TokenRows,
    layer_spaces,
    one_hot,
)
from isoflop.interpret.geometry.purity import POOLS, Bootstrap, Estimate, chance, neighbours_by_pool
from isoflop.tables import Schema

BEYOND = "beyond token identity"
EXPLAINED = "explained by token identity"
CHANCE = "no more than chance"

PURITY = Schema(
    table="purity",
    columns=(
        ("layer", "int64"),
        ("label", "string"),
        ("pool", "string"),
        ("space", "string"),
        ("purity", "float64"),
        ("ci_lo", "float64"),
        ("ci_hi", "float64"),
        ("gates_above", "float64"),
        ("gates_above_lo", "float64"),
        ("gates_above_hi", "float64"),
        ("num_tokens", "int64"),
        ("num_documents", "int64"),
        ("num_neighbours", "int64"),
    ),
)
VERDICTS = Schema(
    table="verdicts",
    columns=(
        ("layer", "int64"),
        ("label", "string"),
        ("verdict", "string"),
        ("detail", "string"),
    ),
)

# What gates must be purer than, in each pool.
_CONTROLS = {
    "any": ("chance", "shuffled"),
    "different_token": ("chance", "shuffled", "untrained", "embedding"),
    "same_token": ("chance", "shuffled", "untrained"),
}
# Pools in which neighbours can share a label; of the input token there is but one.
_POOLS_OF = {"input_token": ("any",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How purities are measured."""

    num_neighbours: int = 10
    num_draws: int = 1000
    seed: int = 0


def purity_rows(
    seen: Activations,
    blank: Activations,
    labels: Mapping[str, Ints],
    embedding_VD: NDArray[np.floating[Any]],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Return rows of every layer, label, pool and space.

    Args:
        seen: the trained model on the sample.
        blank: the same model before training.
        labels: by name, one for each pattern.
        embedding_VD: the trained model's input embedding.
        settings: how to measure.
    """
    tokens = seen.patterns.tokens
    boot = Bootstrap(tokens.document_P, num_draws=settings.num_draws, seed=settings.seed)
    of_token: dict[str, Matrix] = {
        "token": one_hot(tokens.input_P),
        "embedding": embedding_VD[tokens.input_P],
    }
    fixed = _neighbours(of_token, tokens, settings)
    layers: list[int | None] = [*range(seen.patterns.shape.num_layers), None]
    rows = []
    for layer in layers:
        spaces = layer_spaces(seen, blank, layer, settings.seed)
        near = _neighbours(spaces, tokens, settings) | fixed
        for label, pool in _asked(labels):
            by_space = {
                space: boot.purity(found[pool], labels[label]) for space, found in near.items()
            }
            by_space["chance"] = boot.mean(chance(tokens, labels[label], pool))
            place = {"layer": layer, "label": label, "pool": pool}
            shared = {
                "num_documents": boot.num_documents,
                "num_neighbours": settings.num_neighbours,
            }
            rows += [place | shared | row for row in _figures(by_space)]
    return rows


def _asked(labels: Mapping[str, Ints]) -> Iterator[tuple[str, str]]:
    for label in labels:
        for pool in _POOLS_OF.get(label, POOLS):
            yield label, pool


def _neighbours(
    spaces: Mapping[str, Matrix], tokens: TokenRows, settings: Settings
) -> dict[str, dict[str, Ints]]:
    """Return the neighbours by space and pool."""
    return {
        space: neighbours_by_pool(
            matrix, tokens, num_neighbours=settings.num_neighbours, seed=settings.seed
        )
        for space, matrix in spaces.items()
    }


def _figures(by_space: Mapping[str, Estimate]) -> Iterator[dict[str, Any]]:
    for space, estimate in by_space.items():
        purity = estimate.interval
        above = by_space["gates"].minus(estimate)
        is_control = space != "gates"
        yield {
            "space": space,
            "purity": purity.value,
            "ci_lo": purity.lo,
            "ci_hi": purity.hi,
            "gates_above": above.value if is_control else None,
            "gates_above_lo": above.lo if is_control else None,
            "gates_above_hi": above.hi if is_control else None,
            "num_tokens": estimate.num_tokens,
        }


def verdict_rows(purities: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a verdict on each layer and label but the input token, from :func:`purity_rows`."""
    asked = dict.fromkeys((row["layer"], row["label"]) for row in purities)
    rows = []
    for layer, label in asked:
        if label == "input_token":
            continue
        mine = [row for row in purities if (row["layer"], row["label"]) == (layer, label)]
        above = {(row["pool"], row["space"]): row["gates_above_lo"] for row in mine}
        verdict, detail = _verdict(above)
        rows.append({"layer": layer, "label": label, "verdict": verdict, "detail": detail})
    return rows


def _verdict(above: Mapping[tuple[str, str], float | None]) -> tuple[str, str]:
    """Return a verdict from the lower ends of gates minus control, by pool and control."""
    missed = {
        pool: [space for space in spaces if not _is_above(above[pool, space])]
        for pool, spaces in _CONTROLS.items()
    }
    beyond = [pool for pool in ("different_token", "same_token") if not missed[pool]]
    if beyond:
        return BEYOND, f"purer than every control among: {', '.join(beyond)}"
    detail = "; ".join(
        f"among {pool} not above {', '.join(spaces)}" for pool, spaces in missed.items() if spaces
    )
    return (CHANCE if missed["any"] else EXPLAINED), detail


def _is_above(lower: float | None) -> bool:
    return lower is not None and lower > 0.0
