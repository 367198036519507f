"""Check of the expert numbers, the one check of the operator that reads values."""

from __future__ import annotations

import torch
from torch import Tensor


def check_range(idx_TCK: Tensor, num_experts: int) -> None:
    """Refuse expert numbers outside 0 .. num_experts - 1; on an accelerator this waits for it.

    Raises:
        ValueError: with the smallest and largest expert number given.
    """
    if idx_TCK.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(idx_TCK))
    if low < 0 or high >= num_experts:
        raise ValueError(
            f"idx_TCK has values {low} to {high}: must be within 0 to {num_experts - 1}"
        )
