"""The compute type of a run: parameters are always float32."""

from __future__ import annotations

import torch


def compute_type(precision: str, device: torch.device) -> torch.autocast:
    """A context in which the model computes in ``precision``: `fp32`, or `bf16` by autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
