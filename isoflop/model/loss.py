"""Loss of next-token prediction.

Letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from isoflop.data.tokenizer import PAD_ID


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the targets that are not padding (a scalar, float32)."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=PAD_ID)


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy in nats of each target, float32 [B, T]; 0 at padding."""
    flat = F.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=PAD_ID, reduction="none"
    )
    return flat.view_as(targets_BT)
