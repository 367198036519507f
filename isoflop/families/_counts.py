"""Parameter counts derived from a family's ledger, so that nothing is counted twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isoflop.accounting import Component

Ledger = Callable[[Any, int, int], tuple[Component, ...]]
Count = Callable[[Any, int], int]


def parameter_counts(ledger: Ledger) -> tuple[Count, Count]:
    """Return a family's ``num_params`` and ``num_active_params`` (config, d_model) of one layer."""

    def num_params(config: Any, d_model: int) -> int:
        """Return parameters of one layer."""
        return sum(c.num_params for c in ledger(config, d_model, 1))

    def num_active_params(config: Any, d_model: int) -> int:
        """Return parameters of one layer that a token uses."""
        return sum(c.num_active_params for c in ledger(config, d_model, 1))

    return num_params, num_active_params
