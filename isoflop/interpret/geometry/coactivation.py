"""Which experts of a channel are chosen together more often than their frequencies make likely.

Letters: P patterns, E experts of a channel, K chosen per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from isoflop.arrays import Floats
from isoflop.interpret.geometry.patterns import Patterns, as_chosen
from isoflop.tables import Schema

COACTIVATION = Schema(
    table="coactivation",
    columns=(
        ("layer", "int64"),
        ("channel", "int64"),
        ("expert", "int64"),
        ("other_expert", "int64"),
        ("count", "int64"),
        ("share", "float64"),
        ("lift", "float64"),
    ),
)


def pair_counts(gates_PE: csr_array) -> csr_array:
    """Return in how many tokens experts i and j were both chosen [E, E]; nothing where i = j."""
    chosen_PE = as_chosen(gates_PE)
    count_EE = csr_array(chosen_PE.T @ chosen_PE)
    count_EE = csr_array(count_EE - diags_array(count_EE.diagonal()))
    count_EE.eliminate_zeros()
    return count_EE


def row_shares(count_EE: csr_array) -> csr_array:
    """Return each row divided by its sum: of the company of an expert, the share of each other."""
    return csr_array(_over_rows(_company(count_EE)) @ count_EE)


def lifts(count_EE: csr_array) -> csr_array:
    """Return counts over what is expected if frequencies alone decided an expert's company.

    Expected are r_i r_j / sum(r) with r the row sums (the configuration model). The product of two
    frequencies would be no baseline: a token has exactly K experts of a channel, each once, so that
    even independent choices meet less often than that, by (K - 1) / K.
    """
    total_E = _company(count_EE)
    scale = _over_rows(total_E)
    return csr_array(scale @ count_EE @ scale) * float(total_E.sum())


def _company(count_EE: csr_array) -> Floats:
    """Return how often each expert met another [E]."""
    return np.asarray(count_EE.sum(axis=1), dtype=np.float64).ravel()


def _over_rows(total_E: Floats) -> Any:
    """Return a diagonal matrix that divides rows by their totals; those of nothing become zero."""
    return diags_array(np.divide(1.0, total_E, out=np.zeros(len(total_E)), where=total_E > 0))


def coactivation_rows(
    patterns: Patterns, *, num_pairs: int, min_count: int
) -> list[dict[str, Any]]:
    """Return, of each channel, the ``num_pairs`` pairs of highest lift among those that met often.

    Each pair once, ``expert`` < ``other_expert``; ``share`` is of the company of ``expert``.
    """
    shape = patterns.shape
    return [
        {"layer": layer, "channel": channel, **row}
        for layer in range(shape.num_layers)
        for channel in range(shape.num_channels)
        for row in _top_pairs(patterns.channel(layer, channel), num_pairs, min_count)
    ]


def _top_pairs(gates_PE: csr_array, num_pairs: int, min_count: int) -> list[dict[str, Any]]:
    count_EE = pair_counts(gates_PE)
    first, second, count = _above_diagonal(count_EE)
    share_of = row_shares(count_EE)[first, second]
    lift_of = lifts(count_EE)[first, second]
    # Rounded, so that pairs alike stand in the order of their numbers.
    order = np.lexsort((second, first, -count, -lift_of.round(12)))
    order = order[count[order] >= min_count][:num_pairs]
    return [
        {
            "expert": int(first[n]),
            "other_expert": int(second[n]),
            "count": int(count[n]),
            "share": float(share_of[n]),
            "lift": float(lift_of[n]),
        }
        for n in order
    ]


def _above_diagonal(count_EE: csr_array) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    pairs = count_EE.tocoo()
    first, second = pairs.coords
    upper = first < second
    return first[upper], second[upper], pairs.data[upper]
