"""What experts write: the tokens whose logits their output weights raise or lower directly.

The direct path runs from w_out past all later layers through the output norm and the unembedding.
The norm divides all logits of a token by one number, which changes no order.

Letters: N experts, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.data.tokenizers import PAD_ID

# Logits that exist at once, in numbers.
_CHUNK = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Writes:
    """The tokens that a unit of an expert's output moves most."""

    raises: tuple[tuple[int, float], ...]
    """(token, z): z is the change of its logit in standard deviations over the vocabulary."""
    lowers: tuple[tuple[int, float], ...]
    """The same, lowest first."""


def direct_writes(
    w_out_ND: Tensor, scale_D: Tensor, embedding_VD: Tensor, num_tokens: int
) -> list[Writes]:
    """Of each expert, the ``num_tokens`` tokens that it raises and lowers most; never the pad."""
    size = max(1, _CHUNK // len(embedding_VD))
    return [
        writes
        for chunk_ND in (w_out_ND * scale_D).split(size)
        for writes in _of_chunk(chunk_ND @ embedding_VD.T, num_tokens)
    ]


def _of_chunk(change_NV: Tensor, num_tokens: int) -> list[Writes]:
    kept_NV = torch.cat([change_NV[:, :PAD_ID], change_NV[:, PAD_ID + 1 :]], dim=1)
    mean_N1 = kept_NV.mean(1, keepdim=True)
    z_NV = (change_NV - mean_N1) / kept_NV.std(1, keepdim=True).clamp_min(1e-30)
    z_NV[:, PAD_ID] = 0.0
    num = min(num_tokens, kept_NV.shape[1])
    highest, lowest = z_NV.topk(num, 1), (-z_NV).topk(num, 1)
    return [
        Writes(
            raises=tuple(zip(up_token, up, strict=True)),
            lowers=tuple(zip(down_token, [-z for z in down], strict=True)),
        )
        for up_token, up, down_token, down in zip(
            highest.indices.tolist(),
            highest.values.tolist(),
            lowest.indices.tolist(),
            lowest.values.tolist(),
            strict=True,
        )
    ]
