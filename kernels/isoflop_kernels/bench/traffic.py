"""How many bytes each kernel moves, as a model: no cache keeps a row for the next choice.

kernels/README.md derives the figures. Two minima stand beside them:

* `gathered_bytes`: every choice's row once per product that needs it, two forward and three
  backward. Nothing that works choice by choice can load less, from whichever cache it comes.
* `least_bytes`: every argument read once and every result written once. Nothing can do with less
  traffic to memory; the roofline is drawn from it.

The sort of the choices by expert is not counted.
"""

# T tokens, D width, C channels, K experts chosen per channel, M = C * K, choices = T * M,
# b bytes of an element of tokens and tables

from __future__ import annotations

import dataclasses

from isoflop_kernels import triton_config
from isoflop_kernels.bench.cases import Shape

GATHERS = {"forward": 2, "backward": 3, "both": 5}
# Arithmetic is float32, and so are h, z and their gradients; experts are numbered with int32.
WIDE = 4
INDEX = 4
LONG = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """Bytes of one kernel; `gathered` is the part of `reads` that no other order would spare."""

    name: str
    reads: int
    writes: int
    gathered: int = 0

    @property
    def moved(self) -> int:
        """Reads and writes."""
        return self.reads + self.writes


def gathered_bytes(shape: Shape, b: int, mode: str) -> int:
    """Return the chosen rows, once per product that needs them."""
    return GATHERS[mode] * shape.num_choices * shape.D * b


def least_bytes(shape: Shape, b: int, mode: str) -> int:
    """Return arguments once and results once; of the tables at most the rows that can be chosen."""
    chosen = 2 * min(shape.table_size, shape.num_choices * shape.D) * b
    choices, tokens = shape.num_choices * (INDEX + b), shape.T * shape.D * b
    forward = 2 * tokens + choices + chosen
    gradients = tokens + shape.num_choices * b + 2 * shape.table_size * b
    backward = 2 * tokens + choices + chosen + gradients
    return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


def least_mlp_bytes(shape: Shape, b: int, mode: str) -> int:
    """Return the same for the dense layer of equal FLOPs."""
    tokens, weights = shape.T * shape.D * b, 2 * shape.D * shape.C * shape.K * b
    forward, backward = 2 * tokens + weights, 3 * tokens + 2 * weights
    return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


def least_selection_bytes(shape: Shape, b: int, num_values: int, mode: str) -> int:
    """Return the bytes of a selection's values, scores and numbers."""
    values, chosen = shape.T * shape.C * num_values * b, shape.num_choices
    forward, backward = values + chosen * (INDEX + b), values + chosen * (INDEX + b)
    return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


def kernels(contender: str, shape: Shape, b: int, mode: str) -> list[Kernel] | None:
    """Return an implementation's kernels in the order they run; None where none are modelled."""
    model = _MODELS.get(contender)
    if model is None:
        return None
    forward, backward = model(shape, b)
    return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


def moved_bytes(contender: str, shape: Shape, b: int, mode: str) -> int | None:
    """Return bytes of all kernels together."""
    found = kernels(contender, shape, b, mode)
    return None if found is None else sum(kernel.moved for kernel in found)


def _triton_v1(shape: Shape, b: int) -> tuple[list[Kernel], list[Kernel]]:
    arch = triton_config.DEFAULT
    n, rows = shape.num_choices, shape.num_choices * shape.D * b
    tokens, table = shape.T * shape.D * b, shape.table_size * b
    whole = triton_config.gathers_whole_rows(arch, shape.D)
    slices = -(-shape.D // triton_config.combine(arch, shape.D, shape.K).BD)
    expert_slices = -(-shape.D // triton_config.expert(arch, shape.D, gather=whole).BD)

    def dot(name: str, score: int, results: int) -> Kernel:
        reads = rows + n * (INDEX + score) + shape.C * tokens
        return Kernel(name, reads, n * WIDE * results, rows)

    def combine(name: str) -> Kernel:
        return Kernel(name, rows + n * (INDEX + WIDE) * slices, tokens, rows)

    # Position in the sorted order, h and score of a choice; then dz, unless it is taken here.
    numbers = n * (LONG + WIDE + b + (0 if whole else WIDE)) * expert_slices
    expert = Kernel(
        "dh, dscore, dw_in, dw_out",
        2 * rows + numbers + (table if whole else 0),
        n * (WIDE + b) + 2 * table,
        2 * rows,
    )
    wide_rows = [] if whole else [dot("dz", 0, 1)]
    return [dot("h, z", b, 2), combine("y")], [*wide_rows, expert, combine("dx")]


def _bag(shape: Shape, b: int) -> tuple[list[Kernel], list[Kernel]]:
    """Return six passes in float32; half precision is widened before and rounded after them."""
    n, rows = shape.num_choices, shape.num_choices * shape.D * WIDE
    needed = n * shape.D * b
    tokens, table = shape.T * shape.D, shape.table_size
    h = Kernel("h, z", rows + n * (INDEX + 2 * WIDE) + tokens * WIDE, 2 * n * WIDE, needed)
    y, dx = (Kernel(name, rows + n * (INDEX + WIDE), tokens * WIDE, needed) for name in ("y", "dx"))
    dz = Kernel(
        "dz, dh, dscore", rows + n * (INDEX + 3 * WIDE) + tokens * WIDE, 3 * n * WIDE, needed
    )
    sums = [
        Kernel(name, rows + n * (INDEX + WIDE), table * WIDE, needed)
        for name in ("dw_in", "dw_out")
    ]
    forward, backward = [h, y], [dz, dx, *sums]
    if b < WIDE:
        used, grads = 2 * table + tokens, 2 * table + tokens
        forward = [_convert("to float32", used, b, WIDE), *forward]
        forward.append(_convert("y rounded", tokens, WIDE, b))
        backward = [_convert("to float32", used + tokens, b, WIDE), *backward]
        backward.append(_convert("gradients rounded", grads, WIDE, b))
    return forward, backward


def _reference(shape: Shape, b: int) -> tuple[list[Kernel], list[Kernel]]:
    """Return the passes of the reference: gathered rows are written, read again and scattered.

    Half precision is widened before and rounded after, as in the bag.
    """
    n, rows = shape.num_choices, 2 * shape.num_choices * shape.D * WIDE
    needed = 2 * shape.num_choices * shape.D * b
    tokens, tables = shape.T * shape.D * WIDE, 2 * shape.table_size
    forward = [
        Kernel("gather", rows + 2 * n * LONG, rows, needed),
        Kernel("products", rows + tokens + 3 * n * WIDE, 2 * n * WIDE + tokens),
    ]
    backward = [
        Kernel("gradients of rows", rows + 2 * tokens + 4 * n * WIDE, rows + tokens),
        Kernel("scatter", 2 * rows + 2 * n * LONG, rows + tables * WIDE, needed * 3 // 2),
    ]
    if b < WIDE:
        forward.insert(0, _convert("to float32", tables, b, WIDE))
        backward.append(_convert("gradients rounded", tables, WIDE, b))
    return forward, backward


def _triton_v2(shape: Shape, b: int) -> tuple[list[Kernel], list[Kernel]]:
    """Return the passes of v2: a token's channel gathers one row for each of its groups."""
    arch, n = triton_config.DEFAULT, shape.num_choices
    num_groups, table = shape.C * shape.N, shape.table_size * b
    num_pairs = round(shape.T * shape.C * min(shape.N, shape.K ** (2 / 3)))
    dot = triton_config.group_dot(arch, shape.D, shape.N, shape.K)
    launch = triton_config.group_table(arch, shape.D, shape.N)
    rows, pairs = num_pairs * shape.D * b, 2 * INDEX * num_pairs
    # Rows of a group are read again for every block of its pairs, the last of them half empty.
    blocks = (num_pairs / dot.BM + num_groups / 2) / num_groups
    weights = int(table * max(1, blocks))
    numbers = n * (2 * INDEX + b) + pairs
    slices = -(-shape.D // launch.BD)
    tables = [
        Kernel(name, rows + (n * (INDEX + WIDE) + pairs) * slices, table, rows)
        for name in ("dw_in", "dw_out")
    ]
    dz = Kernel("dz, dh, dscore, z", rows + weights + numbers + n * WIDE, n * (2 * WIDE + b), rows)
    forward, backward = _triton_v1(shape, b)
    y, dx = forward[-1], backward[-1]
    return [Kernel("h, z", rows + weights + numbers, 2 * n * WIDE, rows), y], [dz, *tables, dx]


def _mlp(shape: Shape, b: int) -> tuple[list[Kernel], list[Kernel]]:
    tokens, hidden = shape.T * shape.D * b, shape.num_choices * b
    weight = shape.D * shape.C * shape.K * b
    forward = [
        Kernel("first", tokens + weight, hidden),
        Kernel("gelu", hidden, hidden),
        Kernel("second", hidden + weight, tokens),
    ]
    backward = [
        Kernel("hidden", tokens + weight, hidden),
        Kernel("gelu", 2 * hidden, hidden),
        Kernel("w_out", hidden + tokens, weight),
        Kernel("x", hidden + weight, tokens),
        Kernel("w_in", hidden + tokens, weight),
    ]
    return forward, backward


def _convert(name: str, count: int, before: int, after: int) -> Kernel:
    return Kernel(name, count * before, count * after)


_MODELS = {
    "reference": _reference,
    "bag": _bag,
    "cpp": _bag,
    "triton-v1": _triton_v1,
    "triton-v2": _triton_v2,
    "mlp": _mlp,
}
