"""Gathered linear experts: dot with a gathered row, gate, weighted sum of gathered rows."""

from __future__ import annotations

from isoflop_kernels.gathered_linear.op import gathered_linear

__all__ = ["gathered_linear"]
