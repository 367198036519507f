"""Which version of the Triton passes a call takes: v1, row by row, or v2, group by group.

The rule sees types and sizes, never values, so nothing waits for the device. It predicts the time
of the passes in which the versions differ, dot products and table gradients, as the larger of what
their bytes and their products take on the machine below, and takes the smaller; the weighted sums
for y and dx are the same in both. Values matter through popularity alone: v1 splits popular rows
and v2 popular groups, so a skewed choice costs neither more than an even one, as long as the
number of groups that a token's channel chooses in is about that assumed. At worst, K of them, v2
gathers K ** (1/3) times as much as predicted.

Machine and thresholds are predictions, not measured on a GPU. ISOFLOP_KERNELS_TRITON=v1 or v2
overrides the prediction, but not what v2 can do at all.
"""

# T tokens, D width, C channels, K experts chosen per channel, E experts per table

from __future__ import annotations

import dataclasses
import math
import os

import torch
from torch import Tensor

from isoflop_kernels import triton_config

VARIABLE = "ISOFLOP_KERNELS_TRITON"
VERSIONS = ("v1", "v2")
# An H100 with bytes per second of memory, and of the second-level cache as far as it holds what is
# read, whose figure is an assumption; half of the peak of half-precision products.
MEMORY = 3.0e12
CACHE = 5.5e12
CACHE_BYTES = 25e6
PRODUCTS = 395e12
# Bytes per choice that torch's operators move to sort, mark and number choices: v2 groups them in
# the forward and in the backward pass, v1 sorts them in the backward pass. A test counts them.
GROUPING_BYTES = 615
SORTING_BYTES = 66
# Rows of a group and choices of a pair that a block holds in registers.
MOST_KEYS = 128
MOST_CHOSEN = 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a call's prediction depends on."""

    num_tokens: int
    width: int
    num_channels: int
    num_chosen: int
    num_tables: int
    num_experts: int
    element_bytes: int = 2


def version(x_TD: Tensor, idx_TCK: Tensor, w_in: Tensor, w_out: Tensor) -> str:
    """Return the version that a call takes, forward and backward.

    v2 needs one element type throughout, E the square of at most 128, and K of at most 16; calls
    without take v1 whatever the environment says. By default, float32 takes v1 too:
    tensor cores would round its elements.

    Raises:
        ValueError: ISOFLOP_KERNELS_TRITON is set, but to no version.
    """
    asked = os.environ.get(VARIABLE)
    if asked and asked not in VERSIONS:
        raise ValueError(f"{VARIABLE} = {asked!r} is unknown: must be one of {', '.join(VERSIONS)}")
    num_tables, num_experts, width = w_in.shape
    num_tokens, num_channels, num_chosen = idx_TCK.shape
    if not (x_TD.dtype == w_in.dtype == w_out.dtype and groupable(num_experts, num_chosen)):
        return "v1"
    if asked:
        return asked
    if x_TD.dtype == torch.float32:
        return "v1"
    return faster(
        Sizes(
            num_tokens=num_tokens,
            width=width,
            num_channels=num_channels,
            num_chosen=num_chosen,
            num_tables=num_tables,
            num_experts=num_experts,
        )
    )


def groupable(num_experts: int, num_chosen: int) -> bool:
    """Return whether experts come in groups that v2's blocks hold."""
    num_keys = math.isqrt(num_experts)
    return num_keys**2 == num_experts and num_keys <= MOST_KEYS and num_chosen <= MOST_CHOSEN


def faster(sizes: Sizes) -> str:
    """Return the version predicted to take less time; v1 when equal."""
    return "v2" if seconds_v2(sizes) < seconds_v1(sizes) else "v1"


def seconds_v1(sizes: Sizes) -> float:
    """Return the seconds of v1: a sort, and three rows per choice.

    One is of w_in, read channel by channel; the others are those of x and dy.
    """
    row = sizes.width * sizes.element_bytes
    num_choices = sizes.num_tokens * sizes.num_channels * sizes.num_chosen
    tables = _per_byte(sizes.num_experts * row)
    tokens = _per_byte(sizes.num_tokens * row)
    return num_choices * (row * (tables + 2 * tokens) + SORTING_BYTES / MEMORY)


def seconds_v2(sizes: Sizes) -> float:
    """Return the seconds of v2: four rows per pair, those of the tables by slice, four products.

    On average K ** (2/3) of a channel's groups are chosen in, counted for normal similarities and
    K of 1 to 32. Products are counted as padded: every group's last block and its rows.
    """
    row = sizes.width * sizes.element_bytes
    num_keys = math.isqrt(sizes.num_experts)
    num_groups = sizes.num_tables * num_keys
    num_channels = sizes.num_tokens * sizes.num_channels
    num_pairs = num_channels * min(num_keys, sizes.num_chosen ** (2 / 3))
    dot = triton_config.group_dot(triton_config.DEFAULT, sizes.width, num_keys, sizes.num_chosen)
    table = triton_config.group_table(triton_config.DEFAULT, sizes.width, num_keys)
    dot_pairs = num_pairs + num_groups * dot.BM / 2
    table_pairs = num_pairs + num_groups * table.BM / 2
    products = 4 * (dot_pairs + table_pairs) * dot.BN * sizes.width
    tokens = _per_byte(sizes.num_tokens * row)
    slices = _per_byte(sizes.num_tokens * table.BD * sizes.element_bytes)
    gathers = 2 * num_pairs * row * (tokens + slices)
    rows = 2 * dot_pairs / dot.BM * num_keys * row / CACHE
    grouping = GROUPING_BYTES * num_channels * sizes.num_chosen / MEMORY
    return max(products / PRODUCTS, gathers + rows) + grouping


def _per_byte(working_set: float) -> float:
    """Return seconds per byte read from a working set that the cache holds, or does not."""
    return 1 / (CACHE if working_set <= CACHE_BYTES else MEMORY)
