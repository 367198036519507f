"""Sorting of choices for the Triton kernels, on the device and without asking it anything.

v1 sorts choices by table row, table by table. v2 sorts them by group: the choices that share a
channel's table and a first sub-key, whose experts are N contiguous rows. Counts that only the
device knows are replaced by upper bounds, so that grids have idle programs at their end and nothing
waits.
"""

# T tokens, C channels, K experts chosen per channel, M = C * K, N choices in all = T * M,
# E experts per table, R owners of sorted items (table rows or groups), G groups,
# P pairs of a group and a token's channel that chose in it, S chunks of an owner's items

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Chunks:
    """Sorted items cut into chunks of `size`, none with items of two owners.

    Owner r has the items start[r] to start[r + 1] and the chunks first[r] to first[r + 1]; an owner
    of several has as many slots from slot[r] on. `owner_S` is R past the last chunk.
    """

    start_R1: Tensor
    first_R1: Tensor
    slot_R: Tensor
    owner_S: Tensor
    size: int
    num_slots: int


def cut(start_R1: Tensor, size: int, most_items: int, *, at_least: int = 1) -> Chunks:
    """Cut each owner's items, at most `most_items` in all, into `at_least` as many chunks (0 or 1).

    An owner of nothing needs a chunk where its zeros have to be written.
    """
    needed_R = (start_R1.diff() + (size - 1)).div(size, rounding_mode="floor").clamp_(min=at_least)
    first_R1 = torch.zeros_like(start_R1)
    torch.cumsum(needed_R, 0, dtype=torch.int32, out=first_R1[1:])
    slots_R = torch.where(needed_R > 1, needed_R, 0)
    slot_R = (slots_R.cumsum(0) - slots_R).int()
    # Rounding up adds less than one chunk per owner, and an owner of nothing has one at most.
    most_chunks = most_items // size + needed_R.shape[0]
    chunk_S = torch.arange(most_chunks, dtype=torch.int32, device=start_R1.device)
    owner_S = torch.searchsorted(first_R1[1:], chunk_S, right=True, out_int32=True)
    # An owner that is split has more than `size` items, so its chunks are at most twice as many as
    # its items would fill.
    return Chunks(start_R1, first_R1, slot_R, owner_S, size, 2 * most_items // size)


def sort_by_row(idx_TCK: Tensor, num_tables: int, num_experts: int) -> tuple[Tensor, Tensor]:
    """Sort choices by table row; return them and where each row's choices start, [R + 1].

    Each table is sorted by itself, so that keys are expert numbers, of 16 bits where these do:
    torch's sort on GPUs reads and writes a key and its number of 8 bytes once for every 8 bits of
    the type, 42 bytes per choice for these and 100 for rows of all tables, which need int32. A
    choice is numbered within its table: t * (C * K / tables) and its place among token t's.
    """
    num_tokens, num_channels, num_chosen = idx_TCK.shape
    per_token = num_channels * num_chosen // num_tables
    small = num_experts <= 2**15
    key = idx_TCK.new_empty(
        (num_tables, num_tokens, per_token), dtype=torch.int16 if small else torch.int32
    )
    key.copy_(idx_TCK.view(num_tokens, num_tables, per_token).transpose(0, 1))
    key, order = torch.sort(key.flatten(1), dim=1, stable=True)
    boundary = torch.arange(num_experts, dtype=key.dtype, device=key.device)
    start = torch.searchsorted(key, boundary.expand(num_tables, -1).contiguous(), out_int32=True)
    first = torch.arange(num_tables + 1, dtype=torch.int32, device=key.device) * order.shape[1]
    start += first[:-1, None]
    return order.view(-1), torch.cat([start.view(-1), first[-1:]])


@dataclasses.dataclass(frozen=True, slots=True)
class Groups:
    """Choices sorted by group, those that a token's channel made in one group side by side.

    Pair p has the sorted choices first[p] to first[p + 1], group g the pairs start[g] to
    start[g + 1]. There are N places for pairs; those past the last pair hold nothing of use. A
    column is an expert's place in its group, its second sub-key.
    """

    order_N: Tensor
    column_N: Tensor
    first_P1: Tensor
    token_P: Tensor
    start_G1: Tensor
    num_keys: int


def by_group(idx_TCK: Tensor, num_tables: int, num_experts: int) -> Groups:
    """Sort choices by group, then by falling size of their pair, then by token; E is a square."""
    num_choices, num_chosen = idx_TCK.numel(), idx_TCK.shape[2]
    num_keys = math.isqrt(num_experts)
    num_groups = num_tables * num_keys
    key_N = _key(idx_TCK.int(), num_tables, num_keys).reshape(-1)
    if num_groups * num_chosen < 2**15:
        key_N = key_N.to(torch.int16)
    sorted_N, order_N = torch.sort(key_N, stable=True)
    # Fewer than 2**31 choices: what follows moves half as much.
    order_N = order_N.int()
    pair_N = order_N.div(num_chosen, rounding_mode="floor")
    starts_N = torch.ones_like(sorted_N, dtype=torch.bool)
    starts_N[1:] = (sorted_N.diff() != 0) | (pair_N.diff() != 0)
    seen_N1 = torch.zeros(num_choices + 1, dtype=torch.int32, device=idx_TCK.device)
    torch.cumsum(starts_N, 0, dtype=torch.int32, out=seen_N1[1:])
    first_P1 = _positions(starts_N, seen_N1[1:])
    boundary_G1 = torch.arange(num_groups + 1, device=key_N.device) * num_chosen
    choice_G1 = torch.searchsorted(sorted_N, boundary_G1.to(key_N.dtype), out_int32=True)
    head_P = order_N.index_select(0, first_P1[:-1].clamp(max=num_choices - 1))
    return Groups(
        order_N,
        idx_TCK.reshape(-1).index_select(0, order_N).remainder(num_keys).int(),
        first_P1,
        head_P.div(idx_TCK.shape[1] * num_chosen, rounding_mode="floor").int(),
        seen_N1.index_select(0, choice_G1),
        num_keys,
    )


def _key(idx_TCK: Tensor, num_tables: int, num_keys: int) -> Tensor:
    """Return each choice's sorting key, K * group + K - size of its pair.

    With pairs of like size together, a block of them takes as many steps as its pairs have choices.
    """
    num_channels, num_chosen = idx_TCK.shape[1:]
    group_TCK = idx_TCK.div(num_keys, rounding_mode="floor")
    if num_tables > 1:
        first_C = torch.arange(num_channels, dtype=torch.int32, device=idx_TCK.device) * num_keys
        group_TCK += first_C[:, None]
    key_TCK = (group_TCK + 1) * num_chosen
    same_TCKK = group_TCK[..., None] == group_TCK[..., None, :]
    return key_TCK.sub_(same_TCKK.sum(3, dtype=torch.int32))


def _positions(starts_N: Tensor, ordinal_N: Tensor) -> Tensor:
    """Return the places of the true entries, then N, as N + 1 numbers; `ordinal_N` counts them.

    Like `nonzero`, but it need not wait to learn how many there are: the others go to the last
    place, which is only of use, and then has N, when there are none.
    """
    num_choices = starts_N.shape[0]
    place_N = torch.where(starts_N, ordinal_N - 1, num_choices).long()
    position_N = torch.arange(num_choices, dtype=torch.int32, device=starts_N.device)
    found = torch.full_like(position_N[:1], num_choices).repeat(num_choices + 1)
    return found.scatter_(0, place_N, position_N)
