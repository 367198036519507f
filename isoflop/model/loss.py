"""Loss of next-token prediction.

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

# Logits (float32) of one pass through the model that may exist whole. Larger ones are made and used
# up in chunks of about CHUNK_BYTES. On a CPU core a chunk of 2^24 (83 tokens of a vocabulary of
# 50,258) is fastest, half the time of whole logits: it stays in the caches and its products are
# large enough; 2^22 and 2^26 take up to 60 % more. A GPU wants more tokens per product.
MAX_LOGIT_BYTES = 2**26
CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**28}


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats over targets that are not padding (scalar, float32)."""
    return _cross_entropy(logits_BTV, targets_BT, "mean")


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the cross-entropy in nats of each target, float32 [B, T]; 0 at padding."""
    return _cross_entropy(logits_BTV, targets_BT, "none").view_as(targets_BT)


def unembed(x_BTD: Tensor, embedding_VD: Tensor) -> Tensor:
    """Return the logits of the tied embedding, [..., V]."""
    # The copy makes the embedding's gradient a product of the fast kind: at width 8 on the CPU, an
    # eighth of the time of the one that follows from a transposed view.
    return x_BTD @ embedding_VD.T.contiguous()


def unembedded_loss(x_BTD: Tensor, embedding_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats over targets that are not padding (scalar, float32).

    Logits that would exceed MAX_LOGIT_BYTES never exist whole: chunk by chunk of tokens, their
    gradients are formed in the forward pass, so that nothing is computed twice.
    """
    if not _in_chunks(targets_BT, embedding_VD):
        return _cross_entropy(unembed(x_BTD, embedding_VD), targets_BT, "sum")
    # A compiler would unroll the chunks, and there is nothing to fuse in their products.
    chunked_sum = torch.compiler.disable(_chunked_sum)
    loss: Tensor = chunked_sum(x_BTD.flatten(0, 1), embedding_VD, targets_BT.flatten())
    return loss


def unembedded_token_losses(x_BTD: Tensor, embedding_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """Return :func:`token_losses` of the logits; in chunks, which save memory without gradients."""
    if not _in_chunks(targets_BT, embedding_VD):
        return token_losses(unembed(x_BTD, embedding_VD), targets_BT)
    x_TD, target_T = x_BTD.flatten(0, 1), targets_BT.flatten()
    losses = [
        token_losses(x_TD[rows] @ embedding_VD.T, target_T[rows])
        for rows in _chunks(len(target_T), embedding_VD)
    ]
    return torch.cat(losses).view_as(targets_BT)


def _cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    flat = logits.view(-1, logits.shape[-1])
    return F.cross_entropy(flat, targets.flatten(), ignore_index=PAD_ID, reduction=reduction)


def _in_chunks(targets_BT: Tensor, embedding_VD: Tensor) -> bool:
    return targets_BT.numel() * _logit_bytes(embedding_VD) > MAX_LOGIT_BYTES


def _logit_bytes(embedding_VD: Tensor) -> int:
    """Return the bytes of one token's logits."""
    return embedding_VD.shape[0] * embedding_VD.element_size()


def _chunks(num_tokens: int, embedding_VD: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES[embedding_VD.device.type] // _logit_bytes(embedding_VD))
    for start in range(0, num_tokens, size):
        yield slice(start, min(start + size, num_tokens))


def _chunked_sum(x_TD: Tensor, embedding_VD: Tensor, target_T: Tensor) -> Tensor:
    with_gradients = torch.is_grad_enabled() and (x_TD.requires_grad or embedding_VD.requires_grad)
    loss: Tensor = _ChunkedSum.apply(x_TD, embedding_VD, target_T, with_gradients)
    return loss


class _ChunkedSum(torch.autograd.Function):
    """The summed loss; its gradients are made in the forward pass and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, embedding_VD: Tensor, target_T: Tensor, with_gradients: bool
    ) -> Tensor:
        loss = x_TD.new_zeros(())
        if not with_gradients:
            for rows in _chunks(len(x_TD), embedding_VD):
                loss = loss + _cross_entropy(x_TD[rows] @ embedding_VD.T, target_T[rows], "sum")
            return loss
        grad_x_TD = torch.empty_like(x_TD)
        grad_embedding_VD = torch.zeros_like(embedding_VD)
        slices = list(_chunks(len(x_TD), embedding_VD))
        chunk_RV = x_TD.new_empty(slices[0].stop, len(embedding_VD))
        for rows in slices:
            logit_RV = chunk_RV[: rows.stop - rows.start]
            torch.mm(x_TD[rows], embedding_VD.T, out=logit_RV)
            loss_R, grad_RV = _losses_and_gradient(logit_RV, target_T[rows])
            loss = loss + loss_R.sum()
            torch.mm(grad_RV, embedding_VD, out=grad_x_TD[rows])
            torch.addmm(grad_embedding_VD, grad_RV.T, x_TD[rows], out=grad_embedding_VD)
        ctx.save_for_backward(grad_x_TD, grad_embedding_VD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x_TD, grad_embedding_VD = ctx.saved_tensors
        return grad_x_TD * grad, grad_embedding_VD * grad, None, None


def _losses_and_gradient(logit_RV: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each token; put the gradient of their sum in the logits' memory."""
    target_R1 = target_R[:, None]
    kept_R1 = (target_R1 != PAD_ID).to(logit_RV.dtype)
    peak_R1 = logit_RV.amax(1, keepdim=True)
    shifted_RV = logit_RV.sub_(peak_R1)
    chosen_R1 = shifted_RV.gather(1, target_R1)
    exp_RV = shifted_RV.exp_()
    total_R1 = exp_RV.sum(1, keepdim=True)
    loss_R1 = (total_R1.log() - chosen_R1) * kept_R1
    grad_RV = exp_RV.mul_(kept_R1 / total_R1)
    return loss_R1.squeeze(1), grad_RV.scatter_add_(1, target_R1, -kept_R1)
