"""Kernels of v2: dot products and table gradients as matrix products over groups of rows.

A group is a channel's table and a first sub-key: NK contiguous rows. A pair is a group and a
token's channel that chose K or fewer experts in it; `groups.py` sorts them. The products multiply
elements as they come, exactly, and add in float32; see `group_table_kernel` for what is rounded.
Every sum has a fixed order and nothing is atomic. Offsets are 64 bits wide.
"""

# D width, K experts chosen per channel, G groups, NK rows of a group, S chunks of pairs;
# blocks: BM pairs, BN rows of a group, BK choices of a pair, BD of the width;
# p_ pointer, o_ offsets, m_ mask, b_ values in registers, i_ position in the grid or a loop

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
# Triton has no types, may be absent, and reads signatures itself: it knows only constexpr.

from __future__ import annotations

import triton
import triton.language as tl

from isoflop_kernels.gathered_linear.triton_gate import gate, gate_backward


@triton.jit
def product(b_left, b_right, b_sum, UPCAST: tl.constexpr):
    """Return b_sum + b_left @ b_right; UPCAST as Triton's interpreter cannot multiply bfloat16."""
    if UPCAST:
        b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
    return tl.dot(b_left, b_right, b_sum, input_precision="ieee")


@triton.jit
def group_dot_kernel(
    p_x,
    p_w,
    p_h,
    p_score,
    p_order,
    p_column,
    p_first,
    p_token,
    p_start,
    p_first_chunk,
    p_group,
    p_z,
    p_dh,
    p_dscore,
    G,
    D,
    NK,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATE_ORDER: tl.constexpr,
    BACKWARD: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Multiply BM pairs' tokens with their choices, and make z of it; grid (S).

    Each token is gathered once and multiplied with all rows of the group, of which its choices are
    picked. Forward, x and w_in give h and z; backward, dy and w_out give the gradient of z, and
    with h from the forward pass z and the gradients of h and the score.
    """
    i_S = tl.program_id(0)
    i_G = tl.load(p_group + i_S)
    # The grid is an upper bound that needs no word from the device; its last programs are idle.
    if i_G < G:
        i_chunk = i_S - tl.load(p_first_chunk + i_G)
        o_M = tl.load(p_start + i_G) + i_chunk * BM + tl.arange(0, BM)
        m_M = o_M < tl.load(p_start + i_G + 1)
        o_first = tl.load(p_first + o_M, mask=m_M, other=0)
        b_count = tl.load(p_first + o_M + 1, mask=m_M, other=0) - o_first
        o_token = tl.load(p_token + o_M, mask=m_M, other=0).to(tl.int64) * D
        o_N = tl.arange(0, BN)
        m_N = o_N < NK
        o_row = (i_G.to(tl.int64) * NK + o_N) * D
        b_dots = tl.zeros((BM, BN), tl.float32)
        for o_slice in range(0, D, BD):
            o_D = o_slice + tl.arange(0, BD)
            m_D = o_D < D
            m_MD = m_M[:, None] & m_D[None, :]
            b_x = tl.load(p_x + o_token[:, None] + o_D[None, :], mask=m_MD, other=0.0)
            m_ND = m_N[:, None] & m_D[None, :]
            b_w = tl.load(p_w + o_row[:, None] + o_D[None, :], mask=m_ND, other=0.0)
            b_dots = product(b_x, tl.trans(b_w), b_dots, UPCAST)
        o_K = tl.arange(0, BK)
        m_MK = o_K[None, :] < b_count[:, None]
        o_MK = o_first[:, None] + o_K[None, :]
        o_choice = tl.load(p_order + o_MK, mask=m_MK, other=0)
        b_column = tl.load(p_column + o_MK, mask=m_MK, other=0)
        b_dot = tl.gather(b_dots, b_column, 1)
        b_score = tl.load(p_score + o_choice, mask=m_MK, other=0.0).to(tl.float32)
        if BACKWARD:
            b_h = tl.load(p_h + o_choice, mask=m_MK, other=0.0)
            b_dh, b_dscore = gate_backward(b_dot, b_h, b_score, ACTIVATION, GATE_ORDER)
            tl.store(p_dh + o_choice, b_dh, mask=m_MK)
            tl.store(p_dscore + o_choice, b_dscore.to(p_dscore.dtype.element_ty), mask=m_MK)
        else:
            b_h = b_dot
            tl.store(p_h + o_choice, b_h, mask=m_MK)
        tl.store(p_z + o_choice, gate(b_h, b_score, ACTIVATION, GATE_ORDER), mask=m_MK)


@triton.jit
def scale_of(b_weight):
    """Return the power of two that brings the largest weight to [1, 2), and its inverse.

    It is bounded so that sums multiplied by it stay finite.
    """
    b_largest = tl.max(tl.max(tl.abs(b_weight), 1), 0)
    b_exponent = (b_largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    b_exponent = tl.minimum(tl.maximum(b_exponent, 63), 191)
    b_scale = ((254 - b_exponent) << 23).to(tl.float32, bitcast=True)
    return b_scale, (b_exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def group_table_kernel(
    p_rows,
    p_weight,
    p_column,
    p_first,
    p_token,
    p_start,
    p_first_chunk,
    p_slot,
    p_group,
    p_dw,
    p_partial,
    G,
    D,
    NK,
    CHUNK,
    TABLE: tl.constexpr,
    ADD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Compute one table's gradient from one chunk of a group's pairs; grid (S, slices).

    It is W @ X with the tokens' rows X, x or dy, each gathered once, and the weights W of all
    choices of a block, dh or z, in a matrix: zero where a token did not choose, the sum where it
    chose twice. Weights are float32 and rounded to the type of X here. Slices are the slow axis,
    so that one slice of all tokens stays in the second-level cache. A group that is one chunk is
    written straight away, also when it is empty, or with ADD added to what is there; otherwise
    sums go to the group's slots for `reduce_kernel`, to the first or second place of a slot as
    TABLE says.
    """
    i_S, i_slice = tl.program_id(0), tl.program_id(1)
    i_G = tl.load(p_group + i_S)
    if i_G < G:
        i_chunk = i_S - tl.load(p_first_chunk + i_G)
        num_chunks = tl.load(p_first_chunk + i_G + 1) - tl.load(p_first_chunk + i_G)
        o_begin = tl.load(p_start + i_G) + i_chunk * CHUNK
        o_end = tl.minimum(o_begin + CHUNK, tl.load(p_start + i_G + 1))
        o_N = tl.arange(0, BN)
        o_D = i_slice * BD + tl.arange(0, BD)
        m_D = o_D < D
        b_sum = tl.zeros((BN, BD), tl.float32)
        for o_block in range(o_begin, o_end, BM):
            o_M = o_block + tl.arange(0, BM)
            m_M = o_M < o_end
            o_first = tl.load(p_first + o_M, mask=m_M, other=0)
            b_count = tl.load(p_first + o_M + 1, mask=m_M, other=0) - o_first
            o_token = tl.load(p_token + o_M, mask=m_M, other=0).to(tl.int64) * D
            m_MD = m_M[:, None] & m_D[None, :]
            # Not needed before the weights are in place, so that it has the time to arrive.
            b_rows = tl.load(p_rows + o_token[:, None] + o_D[None, :], mask=m_MD, other=0.0)
            b_weight = tl.zeros((BN, BM), tl.float32)
            for i_K in range(tl.max(b_count, 0)):
                m_K = i_K < b_count
                b_column = tl.load(p_column + o_first + i_K, mask=m_K, other=0)
                b_one = tl.load(p_weight + o_first + i_K, mask=m_K, other=0.0)
                b_weight += tl.where(o_N[:, None] == b_column[None, :], b_one[None, :], 0.0)
            half = p_rows.dtype.element_ty
            if half == tl.float16:
                # Too few exponents for gradients; powers of two change no digit of the sums.
                b_scale, b_unscale = scale_of(b_weight)
                b_weight *= b_scale
                b_sum *= b_scale
            b_sum = product(b_weight.to(half), b_rows, b_sum, UPCAST)
            if half == tl.float16:
                b_sum *= b_unscale
        m_ND = (o_N < NK)[:, None] & m_D[None, :]
        o_ND = o_N.to(tl.int64)[:, None] * D + o_D[None, :]
        o_table = i_G.to(tl.int64) * NK * D
        if num_chunks == 1:
            if ADD:
                b_sum += tl.load(p_dw + o_table + o_ND, mask=m_ND, other=0.0).to(tl.float32)
            tl.store(p_dw + o_table + o_ND, b_sum.to(p_dw.dtype.element_ty), mask=m_ND)
        else:
            o_slot = ((tl.load(p_slot + i_G) + i_chunk).to(tl.int64) * 2 + TABLE) * NK * D
            tl.store(p_partial + o_slot + o_ND, b_sum, mask=m_ND)
