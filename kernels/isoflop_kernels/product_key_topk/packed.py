"""Fast exact selection: value and position packed into one integer, then k rounds of maximum.

A float32 and a position fit one int64 whose order is "larger value first, then lower position".
Such keys are all different, so a maximum over them has no ties to resolve, and k vectorised
maxima are cheaper than sorting the short rows of a product-key router or than `torch.topk`.

Of the N * N pair sums only those of pairs (a, b) with (a + 1)(b + 1) <= k, counted by rank within
each half, are formed: any other pair has k pairs above it whose ranks are both as good or better.
Float addition is monotone, so their sums are as large or larger. They also come first on ties, as
equal halves are ranked by position, except when rounding makes sums equal whose halves are not.
Every row in which the best pair left out reaches the k-th sum is therefore redone over all pairs,
if rounding can have made it so. Half precision ties often, but different numbers of p bits are at
least 2**-p of the larger one apart, and rounding a sum to float32's 24 bits bridges 2**-23 of the
sum at most. So a pair that rounding made equal to a better one has a half below 2**(p - 23) of the
k-th sum, and one of the two is among the ranks kept, since all from there to rank k reach that sum:
the smallest number of these ranks is compared, with a bit to spare.

NaN, of either sign, comes before all numbers, so that it reaches the scores and ends the run. A sum
of opposite infinities is NaN as well, against all monotony: rows that chose from +inf are redone.
"""

# T tokens, C channels, N sub-keys per half, K chosen, R rows selected from (T * C or any),
# M ranks kept per half, P pairs of ranks

from __future__ import annotations

import math

import torch
from torch import Tensor

from isoflop_kernels.product_key_topk import reference

# Bits of a position among the sub-keys of a half; two of them and a float32 fill an int64.
POSITION_BITS = 16
MAX_POSITION = 2**POSITION_BITS - 1
# Keys worked on at a time: on CPU they stay in a core's cache, elsewhere they bound the memory.
CHUNK_KEYS_CPU = 2**18
CHUNK_KEYS = 2**26
# By type, 2**(p - 22): numbers below this part of a sum may be lost in it.
LOST = {torch.bfloat16: 2.0**-14, torch.float16: 2.0**-11}
_TAKEN = torch.iinfo(torch.int64).min
_INFINITE = 0x7F800000


@torch.library.custom_op(
    "isoflop_kernels::topk_indices", mutates_args=(), schema="(Tensor values, int k) -> Tensor"
)
def topk_indices(values: Tensor, k: int) -> Tensor:
    """Return what `reference.topk_indices` does; float64 and rows too long to pack are sorted."""
    num_values = values.shape[-1]
    if values.dtype == torch.float64 or num_values > MAX_POSITION + 1:
        return reference.topk_indices(values, k).contiguous()
    rows_RN = values.reshape(-1, num_values)
    chunks = [
        (MAX_POSITION - (_best_keys(_float32(chunk_RN), k) & MAX_POSITION)).t()
        for chunk_RN in rows_RN.split(_rows_per_chunk(values, num_values))
    ]
    return torch.cat(chunks).view(*values.shape[:-1], k)


@topk_indices.register_fake
def _(values: Tensor, k: int) -> Tensor:
    return values.new_empty((*values.shape[:-1], k), dtype=torch.int64)


@torch.library.custom_op(
    "isoflop_kernels::product_key_pairs",
    mutates_args=(),
    schema="(Tensor sim, int k) -> Tensor",
)
def product_key_pairs(sim_T2CN: Tensor, k: int) -> Tensor:
    """Return the sub-keys that `reference.product_key_pairs` does, int64 [T, 2, C, K]."""
    if sim_T2CN.dtype == torch.float64:
        return reference.product_key_pairs(sim_T2CN, k)
    num_channels, num_keys = sim_T2CN.shape[2:]
    tokens_per_chunk = _rows_per_chunk(sim_T2CN, 2 * num_channels * num_keys)
    return torch.cat([_best_pairs(chunk, k) for chunk in sim_T2CN.split(tokens_per_chunk)])


@product_key_pairs.register_fake
def _(sim_T2CN: Tensor, k: int) -> Tensor:
    return sim_T2CN.new_empty((*sim_T2CN.shape[:3], k), dtype=torch.int64)


def _best_pairs(sim_T2CN: Tensor, k: int) -> Tensor:
    num_tokens, _, num_channels, num_keys = sim_T2CN.shape
    num_ranks, num_rows = min(k + 1, num_keys), num_tokens * num_channels
    inside, edge = rank_pairs(k, num_ranks)
    half_2TCN = _float32(sim_T2CN.transpose(0, 1))
    key_M2R = _best_keys(half_2TCN.view(-1, num_keys), num_ranks).view(num_ranks, 2, num_rows)
    infinite_R = ((key_M2R >> 32) == _INFINITE).flatten(0, 1).any(0)
    value_M2R = _value(key_M2R)
    sum_PR = _ordered_bits(_pair_sums(value_M2R, inside + edge))
    first_PR, second_PR = _of_pairs(key_M2R.bitwise_and_(MAX_POSITION), inside)
    place_PR = first_PR.bitwise_left_shift_(POSITION_BITS).bitwise_or_(second_PR)
    best = _largest(place_PR.bitwise_or_(sum_PR[: len(inside)]), k)
    key_TCK = torch.stack(best, dim=1).view(num_tokens, num_channels, k)
    pair_T2CK = torch.stack([key_TCK >> POSITION_BITS, key_TCK], dim=1)
    pair_T2CK.bitwise_and_(MAX_POSITION).neg_().add_(MAX_POSITION)
    if edge:
        reached_R = (sum_PR[len(inside) :].amax(0) >> 32) >= (best[-1] >> 32)
        if sim_T2CN.dtype in LOST:
            least_R = _value(best[-1]).abs_().mul_(LOST[sim_T2CN.dtype])
            # Not "less than", so that NaN is redone.
            safe_R = value_M2R.abs_().flatten(0, 1).amin(0) >= least_R
            reached_R.logical_and_(safe_R.logical_not_())
        reached_TC = reached_R.logical_or_(infinite_R).view(num_tokens, num_channels)
        _redo(pair_T2CK, sim_T2CN, *reached_TC.nonzero(as_tuple=True))
    return pair_T2CK


def rank_pairs(k: int, num_ranks: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return pairs of ranks that can be among the k best, and the best of those that cannot.

    Every pair left out, of any rank, is dominated by a pair of the second list, which is empty
    only when k covers both halves completely.
    """
    inside = [(a, b) for a in range(k) for b in range(k // (a + 1))]
    outside = [(a, k // (a + 1)) for a in range(k)] + [(k, 0)]
    fitting = [(a, b) for a, b in outside if a < num_ranks and b < num_ranks]
    edge = [
        p for p in fitting if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in fitting)
    ]
    return inside, edge


def _of_pairs(ranked_M2R: Tensor, pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return what each half holds at the pairs' ranks, [P, R] each."""
    rank_2P = torch.tensor(pairs, device=ranked_M2R.device).t()
    first_MR, second_MR = ranked_M2R.unbind(1)
    return first_MR.index_select(0, rank_2P[0]), second_MR.index_select(0, rank_2P[1])


def _pair_sums(value_M2R: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    first_PR, second_PR = _of_pairs(value_M2R, pairs)
    return _with_one_nan(first_PR.add_(second_PR))


def _redo(pair_T2CK: Tensor, sim_T2CN: Tensor, token_R: Tensor, channel_R: Tensor) -> None:
    """Replace the pairs of the listed tokens and channels by the best of all N * N, in place."""
    if token_R.numel() == 0:
        return
    sim_R2N = _float32(sim_T2CN[token_R, :, channel_R])
    sum_RNN = sim_R2N[:, 0].unsqueeze(2) + sim_R2N[:, 1].unsqueeze(1)
    flat_RK = topk_indices(sum_RNN.flatten(1), pair_T2CK.shape[3])
    num_keys = sim_T2CN.shape[3]
    pair_R2K = torch.stack([flat_RK // num_keys, flat_RK % num_keys], dim=1)
    pair_T2CK[token_R, :, channel_R] = pair_R2K


def _best_keys(rows_RN: Tensor, k: int) -> Tensor:
    """Return keys of the k best of each float32 row, best first, [K, R]."""
    num_rows, num_values = rows_RN.shape
    place = torch.arange(MAX_POSITION, MAX_POSITION - num_values, -1, device=rows_RN.device)
    key_RN = _ordered_bits(rows_RN).bitwise_or_(place)
    flat, start_R = key_RN.view(-1), torch.arange(num_rows, device=rows_RN.device) * num_values
    best = [key_RN.amax(1)]
    while len(best) < k:
        position_R = MAX_POSITION - (best[-1] & MAX_POSITION)
        flat.scatter_(0, start_R + position_R, _TAKEN)
        best.append(key_RN.amax(1))
    return torch.stack(best)


def _largest(key_PR: Tensor, k: int) -> list[Tensor]:
    """Return the k largest of each column, largest first; the keys of a column all differ."""
    best = [key_PR.amax(0)]
    while len(best) < k:
        key_PR = torch.where(key_PR < best[-1], key_PR, _TAKEN)
        best.append(key_PR.amax(0))
    return best


def _float32(values: Tensor) -> Tensor:
    """Return a contiguous float32 copy in which -0.0 is 0.0, since the two compare equal."""
    copy = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    return _with_one_nan(torch.add(values, 0.0, out=copy))


def _with_one_nan(values: Tensor) -> Tensor:
    """Make all NaN the same one, without a sign, whose bits are above those of all numbers."""
    return values.nan_to_num_(math.nan, math.inf, -math.inf)


def _ordered_bits(values: Tensor) -> Tensor:
    """Return an int64 with the order of the float32 in its upper half and zeros in its lower."""
    bits = values.view(torch.int32)
    flip = (bits >> 31).bitwise_and_(0x7FFFFFFF)
    return flip.bitwise_xor_(bits).to(torch.int64).bitwise_left_shift_(32)


def _value(key: Tensor) -> Tensor:
    """Return the float32 of a key: the inverse of `_ordered_bits`."""
    bits = (key >> 32).to(torch.int32)
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits).view(torch.float32)


def _rows_per_chunk(values: Tensor, keys_per_row: int) -> int:
    chunk = CHUNK_KEYS_CPU if values.device.type == "cpu" else CHUNK_KEYS
    return max(1, chunk // keys_per_row)
