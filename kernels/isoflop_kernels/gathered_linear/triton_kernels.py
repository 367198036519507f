"""The Triton kernels of the operator; `triton_op.py` launches them.

All arithmetic is float32: values are widened right after the load and rounded once at the store.
Every sum has a fixed order and no program writes where another one does, so nothing is atomic and
repeated runs agree bit for bit. Offsets into tables and tokens are 64 bits wide.
"""

# T tokens, D width, C channels, K experts chosen per channel, N = T * C * K choices,
# R rows of all tables together, J choices worked on at a time, S chunks of sorted choices;
# p_ pointer, o_ offsets, m_ mask, b_ values in registers, i_ position in the grid or a loop

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
# Triton has no types, may be absent, and reads signatures itself: it knows only constexpr.

from __future__ import annotations

import os

import triton
import triton.language as tl

from isoflop_kernels.gathered_linear.triton_gate import gate, gate_backward

# TRITON_INTERPRET=1 decides it once, when the kernels are decorated.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def dot_kernel(
    p_x,
    p_w,
    p_idx,
    p_score,
    p_h,
    p_z,
    C,
    D,
    TABLE_ROWS,
    K: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATE_ORDER: tl.constexpr,
    WITH_Z: tl.constexpr,
):
    """Multiply one token with its K rows of one channel, and make z of it; grid (T, C).

    Channels are the slow axis, so that the programs running at a time share one channel's table.
    TABLE_ROWS is E, or 0 where all channels share a table.
    """
    i_T, i_C = tl.program_id(0), tl.program_id(1)
    o_K = tl.arange(0, BK)
    m_K = o_K < K
    o_choice = (i_T * C + i_C) * K + o_K
    b_row = tl.load(p_idx + o_choice, mask=m_K, other=0).to(tl.int64)
    o_row = (b_row + i_C.to(tl.int64) * TABLE_ROWS) * D
    o_x = i_T.to(tl.int64) * D
    b_h = tl.zeros((BK,), tl.float32)
    for o_slice in range(0, D, BD):
        o_D = o_slice + tl.arange(0, BD)
        m_D = o_D < D
        b_x = tl.load(p_x + o_x + o_D, mask=m_D, other=0.0).to(tl.float32)
        m_KD = m_K[:, None] & m_D[None, :]
        b_w = tl.load(p_w + o_row[:, None] + o_D[None, :], mask=m_KD, other=0.0).to(tl.float32)
        b_h += tl.sum(b_w * b_x[None, :], 1)
    tl.store(p_h + o_choice, b_h, mask=m_K)
    if WITH_Z:
        b_score = tl.load(p_score + o_choice, mask=m_K, other=0.0).to(tl.float32)
        tl.store(p_z + o_choice, gate(b_h, b_score, ACTIVATION, GATE_ORDER), mask=m_K)


@triton.jit
def combine_kernel(
    p_w,
    p_idx,
    p_z,
    p_y,
    C,
    D,
    TABLE_ROWS,
    K: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """Sum all C * K weighted rows of one token, one slice of D; grid (T, slices).

    Slices are the slow axis, so that one slice of every table stays in the second-level cache.
    """
    i_T, i_slice = tl.program_id(0), tl.program_id(1)
    o_K = tl.arange(0, BK)
    m_K = o_K < K
    o_D = i_slice * BD + tl.arange(0, BD)
    m_D = o_D < D
    m_KD = m_K[:, None] & m_D[None, :]
    b_sum = tl.zeros((BK, BD), tl.float32)
    o_choice = i_T * C * K + o_K
    b_row = tl.load(p_idx + o_choice, mask=m_K, other=0).to(tl.int64)
    b_z = tl.load(p_z + o_choice, mask=m_K, other=0.0)
    for i_C in range(C):
        o_row = (b_row + i_C * TABLE_ROWS) * D
        b_w = tl.load(p_w + o_row[:, None] + o_D[None, :], mask=m_KD, other=0.0).to(tl.float32)
        # Those of the next channel are on their way while this one's rows arrive.
        o_choice += K
        m_next = m_K & (i_C + 1 < C)
        b_row = tl.load(p_idx + o_choice, mask=m_next, other=0).to(tl.int64)
        b_next = tl.load(p_z + o_choice, mask=m_next, other=0.0)
        b_sum += b_z[:, None] * b_w
        b_z = b_next
    b_y = tl.sum(b_sum, 0).to(p_y.dtype.element_ty)
    tl.store(p_y + i_T.to(tl.int64) * D + o_D, b_y, mask=m_D)


@triton.jit
def expert_kernel(
    p_x,
    p_dy,
    p_w_out,
    p_h,
    p_score,
    p_dz,
    p_order,
    p_start,
    p_first_chunk,
    p_slot,
    p_row,
    p_dh,
    p_dscore,
    p_dw_in,
    p_dw_out,
    p_partial,
    R,
    CK,
    PER_TABLE,
    TABLE_ROWS,
    D,
    CHUNK,
    BJ: tl.constexpr,
    BD: tl.constexpr,
    DZ: tl.constexpr,
    WITH_IN: tl.constexpr,
    WITH_OUT: tl.constexpr,
    ADD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATE_ORDER: tl.constexpr,
):
    """Compute all gradients of one chunk of one expert's choices; grid (S, slices).

    The expert's output row is loaded once; its tokens' x and dy stream by, each gathered once, and
    give the gradients of h, the score and both table rows. DZ says how a program comes by
    the gradient of z: "gather" sees all of D and takes the dot product, "load" sees a slice and
    reads what `dot_kernel` found, "none" needs no more than dw_out. The order holds choices as they
    are numbered within the row's table, PER_TABLE for each token, of CK in all tables. A row that
    is one chunk is written straight away, also when it is empty, or with ADD added to what is
    there; otherwise the sums go to the row's slots for `reduce_kernel`.
    """
    i_S, i_slice = tl.program_id(0), tl.program_id(1)
    i_R = tl.load(p_row + i_S)
    # The grid is an upper bound that needs no word from the device; its last programs are idle.
    if i_R < R:
        i_chunk = i_S - tl.load(p_first_chunk + i_R)
        o_begin = tl.load(p_start + i_R) + i_chunk * CHUNK
        o_end = tl.minimum(o_begin + CHUNK, tl.load(p_start + i_R + 1))
        o_table = i_R // TABLE_ROWS * PER_TABLE
        o_D = i_slice * BD + tl.arange(0, BD)
        m_D = o_D < D
        # One sum for each choice of a block, and over the choices once at the end: a sum over
        # choices crosses warps, and so waits for all of them.
        b_in = tl.zeros((BJ, BD), tl.float32)
        b_out = tl.zeros((BJ, BD), tl.float32)
        if DZ == "gather":
            b_w = tl.load(p_w_out + i_R.to(tl.int64) * D + o_D, mask=m_D, other=0.0).to(tl.float32)
        o_J = o_begin + tl.arange(0, BJ)
        b_next = tl.load(p_order + o_J, mask=o_J < o_end, other=0)
        for _ in range(o_begin, o_end, BJ):
            m_J = o_J < o_end
            # Fewer than 2**31 choices; dividing 64-bit numbers takes a subroutine.
            b_number = b_next.to(tl.int32)
            b_token = b_number // PER_TABLE
            o_choice = o_table + b_token * (CK - PER_TABLE) + b_number
            o_token = b_token.to(tl.int64) * D
            # Those of the next block are on their way while this one's tokens arrive.
            o_J += BJ
            b_next = tl.load(p_order + o_J, mask=o_J < o_end, other=0)
            m_JD = m_J[:, None] & m_D[None, :]
            o_JD = o_token[:, None] + o_D[None, :]
            b_h = tl.load(p_h + o_choice, mask=m_J, other=0.0)
            b_score = tl.load(p_score + o_choice, mask=m_J, other=0.0).to(tl.float32)
            if WITH_OUT or DZ == "gather":
                b_dy = tl.load(p_dy + o_JD, mask=m_JD, other=0.0).to(tl.float32)
            # Here, so that it is on its way while the warps meet for the dot product.
            if WITH_IN:
                b_x = tl.load(p_x + o_JD, mask=m_JD, other=0.0).to(tl.float32)
            if DZ != "none":
                if DZ == "gather":
                    b_dz = tl.sum(b_dy * b_w[None, :], 1)
                else:
                    b_dz = tl.load(p_dz + o_choice, mask=m_J, other=0.0)
                b_dh, b_dscore = gate_backward(b_dz, b_h, b_score, ACTIVATION, GATE_ORDER)
                if i_slice == 0:
                    tl.store(p_dh + o_choice, b_dh, mask=m_J)
                    tl.store(p_dscore + o_choice, b_dscore.to(p_dscore.dtype.element_ty), mask=m_J)
            if WITH_IN:
                b_in += tl.where(m_J, b_dh, 0.0)[:, None] * b_x
            if WITH_OUT:
                b_z = tl.where(m_J, gate(b_h, b_score, ACTIVATION, GATE_ORDER), 0.0)
                b_out += b_z[:, None] * b_dy
        b_in, b_out = tl.sum(b_in, 0), tl.sum(b_out, 0)
        num_chunks = tl.load(p_first_chunk + i_R + 1) - tl.load(p_first_chunk + i_R)
        if num_chunks == 1:
            o_dw = i_R.to(tl.int64) * D + o_D
            if ADD:
                if WITH_IN:
                    b_in += tl.load(p_dw_in + o_dw, mask=m_D, other=0.0).to(tl.float32)
                if WITH_OUT:
                    b_out += tl.load(p_dw_out + o_dw, mask=m_D, other=0.0).to(tl.float32)
            if WITH_IN:
                tl.store(p_dw_in + o_dw, b_in.to(p_dw_in.dtype.element_ty), mask=m_D)
            if WITH_OUT:
                tl.store(p_dw_out + o_dw, b_out.to(p_dw_out.dtype.element_ty), mask=m_D)
        else:
            o_slot = (tl.load(p_slot + i_R) + i_chunk).to(tl.int64) * 2 * D
            if WITH_IN:
                tl.store(p_partial + o_slot + o_D, b_in, mask=m_D)
            if WITH_OUT:
                tl.store(p_partial + o_slot + D + o_D, b_out, mask=m_D)


@triton.jit
def reduce_kernel(
    p_first_chunk,
    p_slot,
    p_partial,
    p_dw_in,
    p_dw_out,
    D,
    BD: tl.constexpr,
    WITH_IN: tl.constexpr,
    WITH_OUT: tl.constexpr,
    ADD: tl.constexpr,
):
    """Add up the chunks of each row that has several, in their order; grid (R, slices).

    With ADD, they are added to what is there.
    """
    i_R, i_slice = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_chunks = tl.load(p_first_chunk + i_R + 1) - tl.load(p_first_chunk + i_R)
    if num_chunks > 1:
        o_D = i_slice * BD + tl.arange(0, BD)
        m_D = o_D < D
        i_slot = tl.load(p_slot + i_R).to(tl.int64)
        b_in = tl.zeros((BD,), tl.float32)
        b_out = tl.zeros((BD,), tl.float32)
        for i_chunk in range(num_chunks):
            o_partial = (i_slot + i_chunk) * 2 * D + o_D
            if WITH_IN:
                b_in += tl.load(p_partial + o_partial, mask=m_D, other=0.0)
            if WITH_OUT:
                b_out += tl.load(p_partial + o_partial + D, mask=m_D, other=0.0)
        if ADD:
            if WITH_IN:
                b_in += tl.load(p_dw_in + i_R * D + o_D, mask=m_D, other=0.0).to(tl.float32)
            if WITH_OUT:
                b_out += tl.load(p_dw_out + i_R * D + o_D, mask=m_D, other=0.0).to(tl.float32)
        if WITH_IN:
            tl.store(p_dw_in + i_R * D + o_D, b_in.to(p_dw_in.dtype.element_ty), mask=m_D)
        if WITH_OUT:
            tl.store(p_dw_out + i_R * D + o_D, b_out.to(p_dw_out.dtype.element_ty), mask=m_D)
