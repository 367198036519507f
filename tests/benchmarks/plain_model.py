"""The same models as one would first write them in PyTorch, from the same weights.

Nothing of isoflop computes here: whole attention scores, gathered expert rows as tensors of their
own, every expert of a mixture computed and masked, autograd for all of it, AdamW as torch chooses.

Letters: B batch, T tokens (flattened in the feed-forward layers), D width, H heads, h head width,
C channels, K experts chosen per channel, E experts, N keys of one half.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.spec import RunSpec


class PlainModel(nn.Module):
    """A model of a run; parameters are named as ours, so that a state dict fits both."""

    def __init__(self, spec: RunSpec, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.spec = spec
        self.weights = nn.ParameterDict(
            {name.replace(".", "/"): value.clone() for name, value in weights.items()}
        )
        self.feed_forward = {
            "mlp": mlp,
            "swiglu": gated,
            "moe": mixture,
            "peer": tiny_experts,
            "sgatlin": tiny_experts,
        }[spec.family]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in self.weights.items()
            if name.startswith(prefix)
        }

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy."""
        x = self.weights["embedding"][inputs_BT]
        for layer in range(self.spec.n_layers):
            block = self.part(f"blocks/{layer}/")
            attended = rms_norm(x, block["attention_norm/scale"])
            x = x + attention(attended, self.part(f"blocks/{layer}/attention/"), self.spec)
            normed = rms_norm(x, block["feedforward_norm/scale"]).flatten(0, 1)
            layer_weights = self.part(f"blocks/{layer}/feedforward/")
            x = x + self.feed_forward(normed, layer_weights, self.spec).view_as(x)
        x = rms_norm(x, self.weights["output_norm/scale"])
        logits = x @ self.weights["embedding"].T
        return F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), ignore_index=0)


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale


def rotate(x_BTHh: Tensor) -> Tensor:
    num_tokens, width = x_BTHh.shape[1], x_BTHh.shape[3]
    rate = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angle_T1h = (torch.arange(num_tokens)[:, None] * rate)[:, None, :]
    first, second = x_BTHh.chunk(2, dim=-1)
    cos, sin = angle_T1h.cos(), angle_T1h.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(x_BTD: Tensor, weights: dict[str, Tensor], spec: RunSpec) -> Tensor:
    B, T, D = x_BTD.shape
    heads = (B, T, spec.n_heads, D // spec.n_heads)
    query, key = (half.view(heads) for half in (x_BTD @ weights["query_key"]).chunk(2, dim=-1))
    scale = weights["query_key_scale"]
    query, key = rotate(rms_norm(query, scale[0])), rotate(rms_norm(key, scale[1]))
    value = (x_BTD @ weights["value"]).view(heads)
    score = torch.einsum("bthe,bshe->bhts", query, key) / math.sqrt(heads[3])
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    share = score.masked_fill(future, -torch.inf).softmax(-1)
    mixed = torch.einsum("bhts,bshe->bthe", share, value)
    return mixed.reshape(B, T, D) @ weights["output"]


def mlp(x_TD: Tensor, weights: dict[str, Tensor], spec: RunSpec) -> Tensor:
    return F.gelu(x_TD @ weights["w1"], approximate="tanh") @ weights["w2"]


def gated(x_TD: Tensor, weights: dict[str, Tensor], spec: RunSpec) -> Tensor:
    gate, linear = (x_TD @ weights["w1"] + weights["bias1"]).chunk(2, dim=-1)
    gate, linear = gate.clamp(max=7.0), linear.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (linear + 1.0) @ weights["w2"] + weights["bias2"]


def mixture(x_TD: Tensor, weights: dict[str, Tensor], spec: RunSpec) -> Tensor:
    share_TE = (x_TD @ weights["gate"]).softmax(-1)
    share_TK, chosen_TK = share_TE.topk(int(spec.config["num_active"]), dim=-1)
    kept_TE = torch.zeros_like(share_TE).scatter(1, chosen_TK, share_TK)
    y_TD = torch.zeros_like(x_TD)
    for expert in range(share_TE.shape[1]):
        own = {name: weights[name][expert] for name in ("w1", "bias1", "w2", "bias2")}
        y_TD = y_TD + kept_TE[:, expert, None] * gated(x_TD, own, spec)
    return y_TD


def tiny_experts(x_TD: Tensor, weights: dict[str, Tensor], spec: RunSpec) -> Tensor:
    """sgatlin (a table per channel, the score as it is) and peer (one table, gelu, softmax)."""
    channels, k = int(spec.config["num_channels"]), int(spec.config["num_neighbours"])
    num_keys = math.isqrt(int(spec.config["num_experts"]))
    similarity_T2CN = similarities(x_TD, weights).view(-1, 2, channels, num_keys)
    score_T2CK, key_T2CK = similarity_T2CN.topk(k, dim=-1)
    sums = score_T2CK[:, 0, :, :, None] + score_T2CK[:, 1, :, None, :]
    score_TCK, pair_TCK = sums.flatten(2).topk(k, dim=-1)
    first = key_T2CK[:, 0].gather(2, pair_TCK // k)
    chosen_TCK = first * num_keys + key_T2CK[:, 1].gather(2, pair_TCK % k)
    table = torch.arange(channels)[None, :, None] if spec.family == "sgatlin" else 0
    w_in, w_out = (weights[name][table, chosen_TCK] for name in ("w_in", "w_out"))
    h_TCK = torch.einsum("td,tckd->tck", x_TD, w_in)
    if spec.family == "sgatlin":
        z_TCK = h_TCK * score_TCK
    else:
        z_TCK = F.gelu(h_TCK, approximate="tanh") * score_TCK.softmax(-1)
    return torch.einsum("tck,tckd->td", z_TCK, w_out)


def similarities(x_TD: Tensor, weights: dict[str, Tensor]) -> Tensor:
    if "router/w1" in weights:
        return x_TD @ weights["router/w1"] @ weights["router/w2"]
    num_groups, _, width = weights["router/keys"].shape
    query_TGQ = (x_TD @ weights["router/queries"]).view(len(x_TD), num_groups, width)
    # Two halves, hence sqrt(2Q).
    keys = weights["router/keys"] / math.sqrt(2 * width)
    return torch.einsum("tgq,gnq->tgn", query_TGQ, keys)
