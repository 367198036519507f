"""Loss of next-token prediction.

Logits and losses are float32. With ``bf16``, the operands of the head's products, forward and
backward, are rounded to bfloat16 and their sums are float32; the embedding's gradient is float32
and is rounded nowhere. On CUDA that is tensor cores' own arithmetic, without float32 copies; on the
CPU, whose products in bfloat16 round their results, rounded operands are widened again.

On a GPU a chunk's gradient is made by one kernel (isoflop_kernels.cross_entropy). The libraries for
the whole were read and not taken. torch's own linear_cross_entropy (2.13, chunked) does the same
in float32, by as many passes over the logits as torch's operators take here; of operands in
bfloat16 it returns loss and the embedding's gradient in bfloat16 (relative errors 2.5e-3 and 3.4e-3
on the CPU; here 1e-6 and 1.7e-3). Liger-Kernel's rounds logits to the type of its operands and
waits for the device in each call. Cut cross-entropy holds no logits, but makes them again in the
backward pass, and leaves out small gradients by default.

Letters: B batch, T tokens, D width, V vocabulary; R tokens of a chunk. Flat tensors have all tokens
of the batch in T.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from isoflop.data.tokenizers import PAD_ID
from isoflop_kernels import implementation

# Logits (float32) of one pass through the model that may exist whole. Larger ones are made and used
# up in chunks of about CHUNK_BYTES. On a CPU core a chunk of 2^24 (83 tokens of a vocabulary of
# 50,258) is fastest, half the time of whole logits: it stays in the caches and its products are
# large enough; 2^22 and 2^26 take up to 60 % more. A GPU wants more tokens per product.
MAX_LOGIT_BYTES = 2**26
CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**28}
# Numbers of a row of logits in memory are a multiple of it, off the CPU.
ALIGNED = 64


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats over targets that are not padding (scalar, float32)."""
    return _cross_entropy(logits_BTV, targets_BT, "mean")


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the cross-entropy in nats of each target, float32 [B, T]; 0 at padding."""
    return _cross_entropy(logits_BTV, targets_BT, "none").view_as(targets_BT)


def unembed(x_BTD: Tensor, embedding_VD: Tensor, *, bf16: bool = False) -> Tensor:
    """Return the logits of the tied embedding, [..., V]."""
    x_BTD, embedding_VD = _rounded(x_BTD, bf16), _rounded(embedding_VD, bf16)
    # The copy makes the embedding's gradient a product of the fast kind: at width 8 on the CPU, an
    # eighth of the time of the one that follows from a transposed view.
    return x_BTD @ embedding_VD.T.contiguous()


def _rounded(factor: Tensor, bf16: bool) -> Tensor:
    """Return a factor of the logits in float32; with `bf16`, as numbers of bfloat16."""
    return (factor.bfloat16() if bf16 else factor).float()


def unembedded_loss(
    x_BTD: Tensor, embedding_VD: Tensor, targets_BT: Tensor, *, bf16: bool = False
) -> Tensor:
    """Return the summed cross-entropy in nats over targets that are not padding (scalar, float32).

    Logits that would exceed MAX_LOGIT_BYTES never exist whole: chunk by chunk of tokens, their
    gradients are formed in the forward pass, so that nothing is computed twice.
    """
    if not bf16 and not _in_chunks(targets_BT, embedding_VD):
        return _cross_entropy(unembed(x_BTD, embedding_VD), targets_BT, "sum")
    return _chunked_sum(x_BTD.flatten(0, 1), embedding_VD, targets_BT.flatten(), bf16)


def unembedded_token_losses(
    x_BTD: Tensor, embedding_VD: Tensor, targets_BT: Tensor, *, bf16: bool = False
) -> Tensor:
    """Return :func:`token_losses` of the logits; in chunks, which save memory without gradients."""
    if not _in_chunks(targets_BT, embedding_VD):
        return token_losses(unembed(x_BTD, embedding_VD, bf16=bf16), targets_BT)
    x_TD, target_T = x_BTD.flatten(0, 1), targets_BT.flatten()
    chunks = _differentiable_logits if torch.is_grad_enabled() else _logits
    losses = [
        token_losses(logit_RV, target_T[rows])
        for rows, logit_RV in chunks(x_TD, embedding_VD, bf16)
    ]
    return torch.cat(losses).view_as(targets_BT)


def _cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    flat = logits.view(-1, logits.shape[-1])
    return F.cross_entropy(flat, targets.flatten(), ignore_index=PAD_ID, reduction=reduction)


def _in_chunks(targets_BT: Tensor, embedding_VD: Tensor) -> bool:
    return targets_BT.numel() * _logit_bytes(embedding_VD) > MAX_LOGIT_BYTES


def _logit_bytes(embedding_VD: Tensor) -> int:
    """Return the bytes of one token's logits."""
    return embedding_VD.shape[0] * torch.float32.itemsize


def _chunks(num_tokens: int, embedding_VD: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES[embedding_VD.device.type] // _logit_bytes(embedding_VD))
    for start in range(0, num_tokens, size):
        yield slice(start, min(start + size, num_tokens))


def _chunked_sum(x_TD: Tensor, embedding_VD: Tensor, target_T: Tensor, bf16: bool) -> Tensor:
    with_gradients = torch.is_grad_enabled() and (x_TD.requires_grad or embedding_VD.requires_grad)
    if with_gradients and torch.compiler.is_compiling():
        summed: Tensor = _uncompiled(x_TD, embedding_VD, target_T, bf16)[0]
        return summed
    loss: Tensor = _ChunkedSum.apply(x_TD, embedding_VD, target_T, with_gradients, bf16)
    return loss


class _ChunkedSum(torch.autograd.Function):
    """The summed loss; its gradients are made in the forward pass and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        embedding_VD: Tensor,
        target_T: Tensor,
        with_gradients: bool,
        bf16: bool,
    ) -> Tensor:
        if not with_gradients:
            return _sum_alone(x_TD, embedding_VD, target_T, bf16)
        loss, *gradients = _sum_and_gradients(x_TD, embedding_VD, target_T, bf16)
        ctx.save_for_backward(*gradients)
        ctx.dtype = x_TD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        return (*_scaled_gradients(ctx, grad), None, None, None)


# The same as an operator that torch.compile does not look into: it would unroll the chunks.
@torch.library.custom_op(
    "isoflop::chunked_sum",
    mutates_args=(),
    schema="(Tensor x, Tensor embedding, Tensor target, bool bf16) -> (Tensor, Tensor, Tensor)",
)
def _uncompiled(
    x_TD: Tensor, embedding_VD: Tensor, target_T: Tensor, bf16: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _sum_and_gradients(x_TD, embedding_VD, target_T, bf16)


@_uncompiled.register_fake
def _(
    x_TD: Tensor, embedding_VD: Tensor, target_T: Tensor, bf16: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss = x_TD.new_empty((), dtype=torch.float32)
    return loss, loss.new_empty(x_TD.shape), loss.new_empty(embedding_VD.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients)
    ctx.dtype = inputs[0].dtype


def _differentiate(ctx: Any, grad: Tensor, *others: None) -> tuple[Tensor, Tensor, None, None]:
    return (*_scaled_gradients(ctx, grad), None, None)


_uncompiled.register_autograd(_differentiate, setup_context=_keep)


def _scaled_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    grad_x_TD, grad_embedding_VD = ctx.saved_tensors
    return (grad_x_TD * grad).to(ctx.dtype), grad_embedding_VD * grad


def _sum_alone(x_TD: Tensor, embedding_VD: Tensor, target_T: Tensor, bf16: bool) -> Tensor:
    loss = x_TD.new_zeros((), dtype=torch.float32)
    for rows, logit_RV in _logits(x_TD, embedding_VD, bf16):
        loss = loss + _cross_entropy(logit_RV, target_T[rows], "sum")
    return loss


def _sum_and_gradients(
    x_TD: Tensor, embedding_VD: Tensor, target_T: Tensor, bf16: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss and its gradients by the tokens and by the embedding, in float32."""
    loss = x_TD.new_zeros((), dtype=torch.float32)
    read_TD, read_VD = _read(x_TD, embedding_VD, bf16)
    grad_x_TD = loss.new_empty(x_TD.shape)
    grad_embedding_VD = loss.new_zeros(embedding_VD.shape)
    fused = implementation(x_TD.device.type) == "triton"
    for rows, logit_RV in _logits(read_TD, read_VD, bf16):
        grad_RV = logit_RV
        if read_TD.dtype != logit_RV.dtype:
            grad_RV = _matrix(len(logit_RV), logit_RV.shape[1], logit_RV, read_TD.dtype)
        gradient = _fused_losses_and_gradient if fused else _losses_and_gradient
        loss_R = gradient(logit_RV, target_T[rows], grad_RV)
        loss = loss + loss_R.sum()
        _product(grad_RV, read_VD, grad_x_TD[rows])
        _add_product(grad_RV.T, read_TD[rows], grad_embedding_VD)
    return loss, grad_x_TD, grad_embedding_VD


def _read(x_TD: Tensor, embedding_VD: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    """Return both factors of the logits in the type that they are multiplied in."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    return x_TD.to(dtype), embedding_VD.to(dtype)


def _logits(x_TD: Tensor, embedding_VD: Tensor, bf16: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of chunk after chunk, float32, in the same memory."""
    read_TD, read_VD = _read(x_TD, embedding_VD, bf16)
    chunk_RV = None
    for rows in _chunks(len(read_TD), read_VD):
        if chunk_RV is None:
            chunk_RV = _matrix(rows.stop, len(read_VD), read_TD, torch.float32)
        logit_RV = chunk_RV[: rows.stop - rows.start]
        _product(read_TD[rows], read_VD.T, logit_RV)
        yield rows, logit_RV


def _differentiable_logits(
    x_TD: Tensor, embedding_VD: Tensor, bf16: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the same, each chunk in memory of its own, by operators that autograd knows."""
    x_TD, embedding_VD = _rounded(x_TD, bf16), _rounded(embedding_VD, bf16)
    for rows in _chunks(len(x_TD), embedding_VD):
        yield rows, x_TD[rows] @ embedding_VD.T


def _matrix(num_rows: int, num_columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a matrix to be filled. Off the CPU its rows are aligned, which tensor cores ask for.

    With a vocabulary of 50,258 and without gaps, rows would begin at multiples of 4 or 8 bytes.
    """
    if like.device.type == "cpu":
        return like.new_empty(num_rows, num_columns, dtype=dtype)
    aligned = -(-num_columns // ALIGNED) * ALIGNED
    return like.new_empty(num_rows, aligned, dtype=dtype)[:, :num_columns]


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Put the product of two matrices into `out`, which is float32 as its sums are."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.device.type != "cpu":
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


def _add_product(a: Tensor, b: Tensor, total: Tensor) -> None:
    """Add the product of two matrices to `total`, which is float32 as its sums are."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, out=total)
        return
    # Versions of torch differ in whether a sum of another type may be added to.
    product = torch.empty_like(total)
    _product(a, b, product)
    total += product


def _fused_losses_and_gradient(logit_RV: Tensor, target_R: Tensor, grad_RV: Tensor) -> Tensor:
    """Return what :func:`_losses_and_gradient` does, by one kernel for GPUs."""
    from isoflop_kernels.cross_entropy import losses_and_gradient

    return losses_and_gradient(logit_RV, target_R, grad_RV, ignored=PAD_ID)


def _losses_and_gradient(logit_RV: Tensor, target_R: Tensor, grad_RV: Tensor) -> Tensor:
    """Return the loss of each token; fill in the gradient of their sum. The logits are used up."""
    target_R1 = target_R[:, None]
    kept_R1 = (target_R1 != PAD_ID).to(logit_RV.dtype)
    peak_R1 = logit_RV.amax(1, keepdim=True)
    shifted_RV = logit_RV.sub_(peak_R1)
    chosen_R1 = shifted_RV.gather(1, target_R1)
    exp_RV = shifted_RV.exp_()
    total_R1 = exp_RV.sum(1, keepdim=True)
    loss_R1 = (total_R1.log() - chosen_R1) * kept_R1
    wide_RV = exp_RV.mul_(kept_R1 / total_R1).scatter_add_(1, target_R1, -kept_R1)
    if grad_RV is not logit_RV:
        grad_RV.copy_(wide_RV)
    return loss_R1.squeeze(1)
