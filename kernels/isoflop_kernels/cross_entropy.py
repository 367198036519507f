"""The gradient of cross-entropy by logits in one kernel: two reads of the logits and one write.

torch's operators take eight passes over them: the largest, the difference, the exponential, the
sum, the quotient. Liger-Kernel's cross-entropy is the model for it.
"""

# R tokens of a chunk, V vocabulary;
# p_ pointer, o_ offsets, m_ mask, b_ values in registers, i_ position in the grid

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
# Triton has no types, may be absent, and reads signatures itself: it knows only constexpr.

from __future__ import annotations

import os

import triton
import triton.language as tl
from torch import Tensor

from isoflop_kernels import triton_config

# TRITON_INTERPRET=1 decides it once, when the kernel is decorated.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Numbers of a row that a program works on at a time, and its warps.
BLOCK = 4096
WARPS = 8
# Below all logits, and finite, so that no difference of two is NaN.
LOWEST = tl.constexpr(-1e38)


@triton.jit
def more_of_sum(b_peak, b_sum, b_x):
    """Return each lane's largest number so far, and its sum of exponentials relative to that."""
    b_new = tl.maximum(b_peak, b_x)
    return b_new, b_sum * tl.exp(b_peak - b_new) + tl.exp(b_x - b_new)


@triton.jit
def softmax_gradient_kernel(
    p_logit,
    p_target,
    p_loss,
    p_grad,
    V,
    LOGIT_ROW,
    GRAD_ROW,
    IGNORED: tl.constexpr,
    BV: tl.constexpr,
):
    """Compute one token's loss and gradient; grid (R). Both may lie in the logits' memory.

    Every lane keeps the largest of its logits and the sum of exponentials relative to it, so that
    the first pass needs no word from other lanes before its end. All blocks but the last are whole:
    without a mask, 16 bytes are loaded at a time.
    """
    i_R = tl.program_id(0).to(tl.int64)
    b_target = tl.load(p_target + i_R)
    # Before the sums, for which all lanes wait: afterwards it may be overwritten.
    b_chosen = tl.load(p_logit + i_R * LOGIT_ROW + b_target)
    b_peak = tl.full((BV,), LOWEST, tl.float32)
    b_sum = tl.zeros((BV,), tl.float32)
    o_last = V // BV * BV
    for o_block in range(0, o_last, BV):
        b_x = tl.load(p_logit + i_R * LOGIT_ROW + o_block + tl.arange(0, BV))
        b_peak, b_sum = more_of_sum(b_peak, b_sum, b_x)
    o_V = o_last + tl.arange(0, BV)
    b_x = tl.load(p_logit + i_R * LOGIT_ROW + o_V, mask=o_V < V, other=LOWEST)
    b_peak, b_sum = more_of_sum(b_peak, b_sum, b_x)
    b_largest = tl.max(b_peak, 0)
    b_total = tl.sum(b_sum * tl.exp(b_peak - b_largest), 0)
    b_kept = b_target != IGNORED
    tl.store(p_loss + i_R, tl.where(b_kept, tl.log(b_total) + b_largest - b_chosen, 0.0))
    b_scale = tl.where(b_kept, 1.0 / b_total, 0.0)
    b_one = tl.where(b_kept, 1.0, 0.0)
    # The last block is still at hand.
    b_grad = tl.exp(b_x - b_largest) * b_scale - tl.where(o_V == b_target, b_one, 0.0)
    b_grad = b_grad.to(p_grad.dtype.element_ty)
    tl.store(p_grad + i_R * GRAD_ROW + o_V, b_grad, mask=o_V < V)
    for o_block in range(0, o_last, BV):
        o_V = o_block + tl.arange(0, BV)
        b_x = tl.load(p_logit + i_R * LOGIT_ROW + o_V)
        b_grad = tl.exp(b_x - b_largest) * b_scale - tl.where(o_V == b_target, b_one, 0.0)
        tl.store(p_grad + i_R * GRAD_ROW + o_V, b_grad.to(p_grad.dtype.element_ty))


def losses_and_gradient(
    logit_RV: Tensor, target_R: Tensor, grad_RV: Tensor, *, ignored: int
) -> Tensor:
    """Return each token's cross-entropy in nats, float32 [R]; fill in the gradient of their sum.

    Args:
        logit_RV: float32, its rows each without gaps.
        target_R: int64.
        grad_RV: float32 or half precision, its rows each without gaps; may be `logit_RV`.
        ignored: the target whose tokens have loss 0 and gradients 0.
    """
    if logit_RV.device.type == "cpu" and not INTERPRETED:
        triton_config.refuse_cpu()
    assert logit_RV.stride(1) == grad_RV.stride(1) == 1
    loss_R = logit_RV.new_empty(len(logit_RV))
    with triton_config.launching(logit_RV.device):
        softmax_gradient_kernel[len(logit_RV),](
            logit_RV,
            target_R,
            loss_R,
            grad_RV,
            logit_RV.shape[1],
            logit_RV.stride(0),
            grad_RV.stride(0),
            IGNORED=ignored,
            BV=BLOCK,
            num_warps=WARPS,
        )
    return loss_R
