"""FLOPs and parameters, counted once: components, the ledger of a model, named conventions."""

from isoflop.accounting.conventions import (
    CONVENTIONS,
    causal,
    chinchilla,
    get_convention,
    paper,
    paper_head,
    six_n,
    six_n_total,
)
from isoflop.accounting.ledger import (
    COMPONENT_NAMES,
    Component,
    Ledger,
    arithmetic_intensity,
    bytes_gathered_per_token,
    dense_component,
    model_ledger,
    stored_ledger,
)

__all__ = [
    "COMPONENT_NAMES",
    "CONVENTIONS",
    "Component",
    "Ledger",
    "arithmetic_intensity",
    "bytes_gathered_per_token",
    "causal",
    "chinchilla",
    "dense_component",
    "get_convention",
    "model_ledger",
    "paper",
    "paper_head",
    "six_n",
    "six_n_total",
    "stored_ledger",
]
