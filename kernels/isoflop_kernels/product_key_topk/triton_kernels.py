"""The Triton kernel of product-key selection; `triton_op.py` launches it.

A float32 and a position fit one int64 whose order is "larger value first, then lower position", as
in `packed.py`; keys all differ, so every maximum is unique. The argument there holds here too: of
the pairs of ranks only those with (a + 1)(b + 1) <= K can be chosen, unless rounding makes the best
pair left out reach the K-th sum, which in half precision it can rarely do, or +inf meets -inf. A
program that finds this goes through all N * N pairs itself.
"""

# T tokens, C channels, N sub-keys per half, K chosen, M ranks kept per half;
# p_ pointer, o_ offsets, m_ mask, b_ values in registers, i_ position in the grid or a loop

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
# Triton has no types, may be absent, and reads signatures itself: it knows only constexpr.

from __future__ import annotations

import os

import triton
import triton.language as tl

# TRITON_INTERPRET=1 decides it once, when the kernels are decorated.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def pack(value, position):
    """Return the key of a float32 and a position below 2**31; -0.0 and 0.0 are one value.

    All NaN are one value, too, above all numbers.
    """
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ordered = tl.where(value == value, ordered, 0x7FC00000).to(tl.int64)
    return (ordered << 32) | (0x7FFFFFFF - position).to(tl.int64)


@triton.jit
def position_of(key):
    """Return the position in a key."""
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def value_of(key):
    """Return the float32 in a key."""
    ordered = (key >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def is_infinite(key):
    """Return whether the float32 in a key is +inf."""
    return (key >> 32) == 0x7F800000


@triton.jit
def best_keys(b_key, o_rank, RANKS: tl.constexpr, LOWEST: tl.constexpr):
    """Return the RANKS largest of a block of keys, descending, one for each of `o_rank`."""
    b_best = tl.full(o_rank.shape, LOWEST, tl.int64)
    for i_rank in range(RANKS):
        b_max = tl.max(b_key, 0)
        b_best = tl.where(o_rank == i_rank, b_max, b_best)
        b_key = tl.where(b_key == b_max, LOWEST, b_key)
    return b_best


# As a constant, one channel makes the compiler keep values that it then has no registers for.
@triton.jit(do_not_specialize=["C"])
def pairs_kernel(
    p_sim,
    p_pair,
    C,
    N,
    K: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    RANKS: tl.constexpr,
):
    """Choose the K best pairs of one token and channel, sub-keys [T, 2, C, K]; grid (T, C)."""
    LOWEST: tl.constexpr = -(2**63)
    i_T, i_C = tl.program_id(0), tl.program_id(1)
    o_first = (i_T.to(tl.int64) * 2 * C + i_C) * N
    o_second = o_first + C * N
    o_N, o_M = tl.arange(0, BN), tl.arange(0, BM)
    m_N = o_N < N
    b_first = tl.load(p_sim + o_first + o_N, mask=m_N, other=0.0).to(tl.float32)
    b_second = tl.load(p_sim + o_second + o_N, mask=m_N, other=0.0).to(tl.float32)
    b_first = best_keys(tl.where(m_N, pack(b_first, o_N), LOWEST), o_M, RANKS, LOWEST)
    b_other = best_keys(tl.where(m_N, pack(b_second, o_N), LOWEST), o_M, RANKS, LOWEST)

    m_M = o_M < RANKS
    b_sum = value_of(b_first)[:, None] + value_of(b_other)[None, :]
    b_place = position_of(b_first)[:, None] * N + position_of(b_other)[None, :]
    m_rank = m_M[:, None] & m_M[None, :]
    m_inside = (o_M[:, None] + 1) * (o_M[None, :] + 1) <= K
    b_pair = pack(b_sum, b_place)
    b_inside = tl.reshape(tl.where(m_rank & m_inside, b_pair, LOWEST), (BM * BM,))
    b_outside = tl.reshape(tl.where(m_rank & (m_inside == 0), b_pair, LOWEST), (BM * BM,))
    b_best = best_keys(b_inside, o_M, K, LOWEST)
    b_last = tl.min(tl.where(o_M < K, b_best, 0x7FFFFFFFFFFFFFFF), 0)

    m_infinite = is_infinite(b_first) | is_infinite(b_other)
    reached = (tl.max(b_outside, 0) >> 32) >= (b_last >> 32)
    if p_sim.dtype.element_ty == tl.bfloat16 or p_sim.dtype.element_ty == tl.float16:
        # LOST of `packed.py`; of NaN, too, it cannot be said that it is safe.
        lost = 0.00006103515625 if p_sim.dtype.element_ty == tl.bfloat16 else 0.00048828125
        least = tl.abs(value_of(b_last)) * lost
        m_safe = (tl.abs(value_of(b_first)) >= least) & (tl.abs(value_of(b_other)) >= least)
        reached &= tl.max((m_M & (m_safe == 0)).to(tl.int32), 0) > 0
    if reached | (tl.max(m_infinite.to(tl.int32), 0) > 0):
        b_previous = tl.full((), 0x7FFFFFFFFFFFFFFF, tl.int64)
        for i_K in range(K):
            b_max = tl.full((BN,), LOWEST, tl.int64)
            for i_N in range(N):
                b_value = tl.load(p_sim + o_first + i_N).to(tl.float32)
                b_key = pack(b_value + b_second, i_N * N + o_N)
                b_max = tl.maximum(b_max, tl.where(m_N & (b_key < b_previous), b_key, LOWEST))
            b_previous = tl.max(b_max, 0)
            b_best = tl.where(o_M == i_K, b_previous, b_best)

    b_position = position_of(b_best)
    o_pair = (i_T.to(tl.int64) * 2 * C + i_C) * K + o_M
    tl.store(p_pair + o_pair, (b_position // N).to(tl.int64), mask=o_M < K)
    tl.store(p_pair + o_pair + C * K, (b_position % N).to(tl.int64), mask=o_M < K)
