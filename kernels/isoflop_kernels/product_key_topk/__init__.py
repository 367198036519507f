"""Selection of experts: product keys, and plain top-k with a stated order on ties."""

from __future__ import annotations

from isoflop_kernels.product_key_topk.op import product_key_topk, stable_topk

__all__ = ["product_key_topk", "stable_topk"]
