"""Causal self-attention with normalised, rotated queries and keys.

Letters: B batch, T tokens, D width, H heads; h = D / H head width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import UserError
from isoflop.model.init import Initialiser, constant, trunc_normal
from isoflop.model.rotary import normalise_and_rotate


def same_document(inputs_BT: Tensor, end_of_text_id: int) -> Tensor:
    """Return which keys a query sees where attention ends with the document: bool [B, 1, T, T].

    All up to its own position, back to the last end-of-text at most. An end-of-text that is read
    belongs to the document it opens: from it that document's first token is predicted, as that of
    a window is from the begin token. Positions go on counting through the window.
    """
    document_BT = (inputs_BT == end_of_text_id).cumsum(1)
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril()[:, None]


class Attention(nn.Module):
    """Multi-head causal attention, no biases (reference implementation, section "Model").

    Queries and keys pass an RMSNorm over the head width (one scale each, shared by the heads) and
    the rotary embedding; values do neither. Scores are divided by sqrt(h).
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        if d_model % (2 * n_heads):
            raise UserError(
                "d_model", d_model, f"a multiple of 2 * n_heads = {2 * n_heads}", "change n_heads"
            )
        self.n_heads = n_heads
        self.head_width = d_model // n_heads
        # Columns: all heads' queries, then all heads' keys; the initial distribution is that of
        # two kernels.
        self.query_key = nn.Parameter(torch.empty(d_model, 2 * d_model))
        self.value = nn.Parameter(torch.empty(d_model, d_model))
        self.output = nn.Parameter(torch.empty(d_model, d_model))
        # Row 0 for queries, row 1 for keys.
        self.query_key_scale = nn.Parameter(torch.empty(2, self.head_width))

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Kernels: std 1/sqrt(D); scales 1."""
        kernel = trunc_normal(self.output.shape[0] ** -0.5)
        return {
            "query_key": kernel,
            "value": kernel,
            "output": kernel,
            "query_key_scale": constant(1.0),
        }

    def forward(self, x_BTD: Tensor, visible_B1TT: Tensor | None = None) -> Tensor:
        """Return attention over the sequence: [B, T, D] -> [B, T, D].

        ``visible_B1TT`` says which keys (last) a query sees; None: all up to its own position.
        """
        B, T, D = x_BTD.shape
        value = x_BTD @ self.value
        # Normalised and rotated in float32 whatever the compute type.
        query_key = normalise_and_rotate((x_BTD @ self.query_key).float(), self.query_key_scale)
        heads = (B, T, 2, self.n_heads, self.head_width)
        query, key = query_key.to(value.dtype).view(heads).unbind(2)
        value = value.view_as(query)
        mixed_BHTh = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=visible_B1TT,
            is_causal=visible_B1TT is None,
        )
        return mixed_BHTh.transpose(1, 2).reshape(B, T, D) @ self.output
