"""Block sizes and warps of the Triton kernels: one table by architecture, no measuring at run time.

The figures are chosen so that every kernel compiles without spilling (`aot.py` checks it) and
loads 16 bytes at a time; they are not measured on a GPU. An architecture that has no entry takes
that of DEFAULT.
"""

# D width, K experts chosen per channel, J choices worked on at a time, N sub-keys per half, M ranks
# kept per half, or pairs of a token's channel and a group; BK, BD, BJ, BN and BM are the powers of
# two that blocks of them take

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import NoReturn

import torch

from isoflop_kernels.precision import autocast_disabled

DEFAULT = "sm_90"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Sizes of one kernel's blocks, those it has, and the warps that work on them."""

    BK: int = 0
    BD: int = 0
    BJ: int = 0
    BN: int = 0
    BM: int = 0
    num_warps: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Tiles are elements held by one program, of which one warp works on `per_warp`."""

    dot_tile: int
    # At least this wide a slice; wider where few rows would leave lanes without 16 bytes each.
    combine_width: int
    combine_tile: int
    expert_tile: int
    # Fewer than `per_warp`: a program holds a tile of x, one of dy, and two of sums. Four warps, so
    # that few wait for one another at a dot product, and more programs run beside each other.
    expert_per_warp: int
    # Wider rows are cut into slices of this width, and their dot product has a kernel of its own.
    expert_width: int
    expert_slice: int
    # Pairs and widths of v2's blocks, whose products have sums for `product_per_warp` elements.
    group_dot_pairs: int
    group_dot_slice: int
    # The tables' pairs are as many as a matrix of weights has room for.
    group_table_pairs: int
    group_table_weights: int
    group_table_slice: int
    product_per_warp: int
    # Tensor cores of Hopper take the work of four warps at a time.
    product_warps: int
    per_warp: int
    max_warps: int


_NVIDIA = Architecture(
    dot_tile=8192,
    combine_width=64,
    combine_tile=512,
    expert_tile=1024,
    expert_per_warp=256,
    expert_width=1024,
    expert_slice=256,
    group_dot_pairs=128,
    group_dot_slice=64,
    group_table_pairs=64,
    group_table_weights=4096,
    group_table_slice=128,
    product_per_warp=1024,
    product_warps=4,
    per_warp=1024,
    max_warps=8,
)
# A wave of AMD has 64 lanes, twice those of a warp.
_AMD = dataclasses.replace(
    _NVIDIA,
    expert_tile=2048,
    expert_per_warp=512,
    group_dot_pairs=64,
    product_per_warp=2048,
    per_warp=2048,
    max_warps=4,
)

TABLE = {
    "sm_80": _NVIDIA,
    "sm_90": _NVIDIA,
    "sm_100": _NVIDIA,
    "gfx942": _AMD,
    "gfx90a": _AMD,
}


# Names of the open `assuming` blocks.
_assumed = [DEFAULT]


def architecture_of(device: torch.device) -> str:
    """Name in TABLE of a device's architecture; the CPU, under the interpreter, has DEFAULT's."""
    if device.type == "meta":
        return _assumed[-1]
    return _architecture_of_gpu(device) if device.type == "cuda" else DEFAULT


@contextlib.contextmanager
def assuming(arch: str) -> Iterator[None]:
    """Have tensors without a device, on meta, launch what they would on an architecture."""
    _assumed.append(arch)
    try:
        yield
    finally:
        _assumed.pop()


@functools.cache
def _architecture_of_gpu(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        name = properties.gcnArchName.split(":")[0]
        return name if name in TABLE else "gfx942"
    name = f"sm_{properties.major}{properties.minor}"
    return name if name in TABLE else DEFAULT


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def dot(arch: str, width: int, num_chosen: int) -> Launch:
    """Launch of `dot_kernel`: all K rows at a time, as much of D as the tile holds."""
    chip, BK = TABLE[arch], power_of_two(num_chosen)
    BD = min(power_of_two(width), max(16, chip.dot_tile // BK))
    return Launch(BK=BK, BD=BD, num_warps=_warps(chip, BK * BD, 2 * chip.per_warp))


def combine(arch: str, width: int, num_chosen: int) -> Launch:
    """Launch of `combine_kernel`."""
    chip, BK = TABLE[arch], power_of_two(num_chosen)
    BD = min(power_of_two(width), max(chip.combine_width, chip.combine_tile // BK))
    BD = min(BD, max(16, chip.dot_tile // BK))
    return Launch(BK=BK, BD=BD, num_warps=_warps(chip, BK * BD, chip.per_warp))


def expert(arch: str, width: int, *, gather: bool) -> Launch:
    """Launch of `expert_kernel`; `gather` when it takes the dot product, over all of D, itself."""
    chip = TABLE[arch]
    BD = power_of_two(width)
    if not gather:
        BD = min(BD, chip.expert_slice)
    BJ = max(1, min(32, chip.expert_tile // BD))
    return Launch(BD=BD, BJ=BJ, num_warps=_warps(chip, BJ * BD, chip.expert_per_warp))


def reduce(arch: str, width: int) -> Launch:
    """Launch of `reduce_kernel`."""
    chip = TABLE[arch]
    BD = min(power_of_two(width), chip.expert_slice)
    return Launch(BD=BD, num_warps=_warps(chip, BD, chip.per_warp))


def pairs(arch: str, num_keys: int, num_chosen: int) -> Launch:
    """Launch of `pairs_kernel`; its numbers have 64 bits, so a warp takes half as many."""
    chip = TABLE[arch]
    BN, BM = power_of_two(num_keys), power_of_two(min(num_chosen + 1, num_keys))
    return Launch(BN=BN, BM=BM, num_warps=_warps(chip, max(BN, BM * BM), chip.per_warp // 4))


def group_dot(arch: str, width: int, num_keys: int, num_chosen: int) -> Launch:
    """Launch of `group_dot_kernel`; products take at least 16 of everything."""
    chip = TABLE[arch]
    BM, BN = chip.group_dot_pairs, power_of_two(max(16, num_keys))
    BD = min(power_of_two(max(16, width)), chip.group_dot_slice)
    return Launch(
        BM=BM, BN=BN, BK=power_of_two(num_chosen), BD=BD, num_warps=_product_warps(chip, BM * BN)
    )


def group_table(arch: str, width: int, num_keys: int) -> Launch:
    """Launch of `group_table_kernel`."""
    chip, BN = TABLE[arch], power_of_two(max(16, num_keys))
    BM = min(chip.group_table_pairs, chip.group_table_weights // BN)
    BD = min(power_of_two(max(16, width)), chip.group_table_slice)
    return Launch(BM=BM, BN=BN, BD=BD, num_warps=_product_warps(chip, BN * BD))


def group_reduce(arch: str, group_size: int) -> Launch:
    """Launch of `reduce_kernel` for groups, which are many rows in one."""
    chip = TABLE[arch]
    BD = min(power_of_two(group_size), 2 * chip.per_warp)
    return Launch(BD=BD, num_warps=_warps(chip, BD, chip.per_warp // 2))


def gathers_whole_rows(arch: str, width: int) -> bool:
    """Return whether `expert_kernel` can hold a whole row, and so needs no `dot_kernel` before."""
    return width <= TABLE[arch].expert_width


def chunk_size(num_choices: int, num_rows: int) -> int:
    """Return the choices of one program of `expert_kernel`: about four times the mean per row.

    Few rows are split then, and a popular one delays no program for long. The bounds keep programs
    worth starting and their number large when the rows are few.
    """
    return min(1024, max(64, power_of_two(4 * num_choices // num_rows or 1)))


def group_chunk_size(num_choices: int, num_groups: int) -> int:
    """Return the pairs of one program of `group_table_kernel`: four times the choices per group.

    Partial sums then take less room than two float32 tables, or than 512 groups of both; where
    groups are few, chunks are small enough to keep all of a GPU busy.
    """
    return max(256, power_of_two(-(-4 * num_choices // max(num_groups, 1024))))


@contextlib.contextmanager
def launching(device: torch.device) -> Iterator[None]:
    """Yield context for launches: on the tensors' own GPU, which need not be the current one."""
    own = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with own, autocast_disabled(device):
        yield


def refuse_cpu() -> NoReturn:
    """Say why compiled kernels cannot take tensors on CPU."""
    raise ValueError(
        "implementation 'triton' got tensors on cpu: must be on a GPU, or set TRITON_INTERPRET=1 "
        "before the first call to run the kernels in Triton's interpreter"
    )


def _product_warps(chip: Architecture, num_elements: int) -> int:
    return max(chip.product_warps, _warps(chip, num_elements, chip.product_per_warp))


def _warps(chip: Architecture, num_elements: int, per_warp: int) -> int:
    return max(1, min(chip.max_warps, num_elements // per_warp))
