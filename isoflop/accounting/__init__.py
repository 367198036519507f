"""FLOPs and parameters, counted once: components, the ledger of a model, named conventions."""

from isoflop.accounting.conventions import CONVENTIONS, get_convention, paper, paper_head
from isoflop.accounting.ledger import COMPONENT_NAMES, Component, Ledger, model_ledger

__all__ = [
    "COMPONENT_NAMES",
    "CONVENTIONS",
    "Component",
    "Ledger",
    "get_convention",
    "model_ledger",
    "paper",
    "paper_head",
]
