"""The ledger behind a row of plan.parquet or runs.parquet, so that any convention can be applied.

get_convention("causal")(stored_ledger(row)) * row["n_tokens"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isoflop.accounting.ledger import COMPONENT_NAMES, Component, Ledger


def stored_ledger(row: Mapping[str, Any]) -> Ledger:
    """Return the ledger of a planned or finished run.

    Parameters are stored for the whole model only: they are entered under `norms`, which has no
    FLOPs, so the totals are right and the components' own parameters are not to be read.

    Args:
        row: columns `flops_*` (exact: below 2^53), n_params, n_active, n_nonembed, n_layers,
            n_heads and seq_len.
    """
    components = tuple(
        Component(
            name=name,
            flops_per_token=int(row.get(f"flops_{name}", 0)),
            num_params=row["n_params"] if name == "norms" else 0,
            num_active_params=row["n_active"] if name == "norms" else 0,
        )
        for name in COMPONENT_NAMES
    )
    return Ledger(
        components=components,
        num_embedding_params=row["n_params"] - row["n_nonembed"],
        n_layers=row["n_layers"],
        n_heads=row["n_heads"],
        seq_len=row["seq_len"],
    )
