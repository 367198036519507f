"""Sparse gather operators for tiny experts: differentiable, deterministic on CPU, torch only.

Two operators and a helper, usable without the rest of the project:

* `gathered_linear`: every token meets C * K experts, each one input row and one output row.
* `product_key_topk`: the k best pairs of sub-keys, lowest expert index first on ties.
* `stable_topk`: top-k along the last axis with the same rule on ties.

`use_implementation` and the environment variable `ISOFLOP_KERNELS` choose the implementation.
"""

from __future__ import annotations

from isoflop_kernels.dispatch import implementation, use_implementation
from isoflop_kernels.gathered_linear import gathered_linear
from isoflop_kernels.product_key_topk import product_key_topk, stable_topk

__all__ = [
    "gathered_linear",
    "implementation",
    "product_key_topk",
    "stable_topk",
    "use_implementation",
]
