"""The decoder-only transformer of the reference implementation, with any family's feed-forward.

Letters: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isoflop.families import config_from_mapping, get_build
from isoflop.model.attention import Attention, same_document
from isoflop.model.init import Initialiser, initialise, normal
from isoflop.model.loss import unembed, unembedded_loss, unembedded_token_losses
from isoflop.model.norm import RMSNorm
from isoflop_kernels.precision import autocast_disabled

if TYPE_CHECKING:
    from isoflop.spec import RunSpec


class Block(nn.Module):
    """Pre-norm block: ``a = x + Attention(norm(x))``, then ``a + FeedForward(norm(a))``."""

    def __init__(self, *, feedforward: nn.Module, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.feedforward_norm = RMSNorm(d_model)
        self.feedforward = feedforward

    def forward(self, x_BTD: Tensor, visible_B1TT: Tensor | None = None) -> Tensor:
        """Return one layer: [B, T, D] -> [B, T, D]. The feed-forward sees the tokens flattened."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), visible_B1TT)
        y_TD = self.feedforward(self.feedforward_norm(x_BTD).flatten(0, 1))
        return x_BTD + y_TD.view_as(x_BTD)


class Transformer(nn.Module):
    """Decoder-only language model with a tied embedding, no dropout, no absolute positions.

    Parameters are uninitialised until :func:`isoflop.model.init.initialise` or a loaded state.
    ``checkpoint_activations``, when set, keeps only the input of each block for the backward pass
    and recomputes the rest there, with the same result bit for bit on the CPU; a layer's ``gates``
    are then called twice per step. ``document_end``, when set to the id of the end-of-text, keeps
    attention within documents (:func:`isoflop.model.attention.same_document`). ``head_in_bf16``,
    when set, rounds the operands of the head's products to bfloat16 (isoflop.model.loss).

    Args:
        family: a family's name.
        config: that family's ``Config``.
        n_layers: number of blocks.
        d_model: residual width D.
        n_heads: attention heads; 2 * n_heads divides D.
        vocab_size: tokens V.
    """

    def __init__(
        self,
        *,
        family: str,
        config: Any,
        n_layers: int,
        d_model: int,
        n_heads: int,
        vocab_size: int,
    ) -> None:
        super().__init__()
        build = get_build(family)
        self.embedding = nn.Parameter(torch.empty(vocab_size, d_model))
        self.blocks = nn.ModuleList(
            Block(feedforward=build(config, d_model), d_model=d_model, n_heads=n_heads)
            for _ in range(n_layers)
        )
        self.output_norm = RMSNorm(d_model)
        self.checkpoint_activations = False
        self.head_in_bf16 = False
        self.document_end: int | None = None

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Return a plain normal, std 1/sqrt(D), for the embedding."""
        return {"embedding": normal(self.embedding.shape[1] ** -0.5)}

    def forward(
        self, inputs_BT: Tensor, targets_BT: Tensor | None = None, *, per_token: bool = False
    ) -> Tensor:
        """Return logits, or the loss of the targets, of the token at each position.

        Losses come from here and not from the logits, so that large logits need not exist whole
        (isoflop.model.loss) and wrappers of the model see the whole computation.

        Args:
            inputs_BT: token ids, int64: the targets shifted right, begin id first.
            targets_BT: token ids, int64; padding carries no loss.
            per_token: whether losses are wanted one by one.

        Returns:
            float32, also under autocast: logits [B, T, V]; with targets the sum of their
            cross-entropy in nats, or each one's [B, T], 0 at padding.
        """
        x_BTD = F.embedding(inputs_BT, self.embedding)
        visible_B1TT = None
        if self.document_end is not None:
            visible_B1TT = same_document(inputs_BT, self.document_end)
        for block in self.blocks:
            x_BTD = self._through(block, x_BTD, visible_B1TT)
        x_BTD = self.output_norm(x_BTD)
        with autocast_disabled(x_BTD.device):
            if targets_BT is None:
                return unembed(x_BTD, self.embedding, bf16=self.head_in_bf16)
            loss = unembedded_token_losses if per_token else unembedded_loss
            return loss(x_BTD, self.embedding, targets_BT, bf16=self.head_in_bf16)

    def token_losses(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return cross-entropy in nats of each target, float32 [B, T]; 0 at padding."""
        losses: Tensor = self(inputs_BT, targets_BT, per_token=True)
        return losses

    def _through(self, block: nn.Module, x_BTD: Tensor, visible_B1TT: Tensor | None) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            # Nothing in a block draws random numbers.
            y_BTD = checkpoint(
                block, x_BTD, visible_B1TT, use_reentrant=False, preserve_rng_state=False
            )
        else:
            y_BTD = block(x_BTD, visible_B1TT)
        result: Tensor = y_BTD
        return result


def build_model(spec: RunSpec) -> Transformer:
    """Return the initialised model of a run, on the CPU.

    Raises:
        UserError: the family or its configuration is not valid.
    """
    model = uninitialised_model(spec)
    initialise(model, spec.seed)
    return model


def uninitialised_model(spec: RunSpec) -> Transformer:
    """Return the model of a run before its values are set, on torch's default device.

    Raises:
        UserError: as :func:`build_model`.
    """
    return Transformer(
        family=spec.family,
        config=config_from_mapping(spec.family, spec.config),
        n_layers=spec.n_layers,
        d_model=spec.d_model,
        n_heads=spec.n_heads,
        vocab_size=spec.vocab_size,
    )
