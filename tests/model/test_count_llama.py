"""Llama and Qwen shapes by closed formulas: grouped-query attention, tied or not, and mixtures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoflop
from isoflop.accounting.count import Count
from isoflop.model.flop_counter import UncountedOperatorError
from isoflop.model.target import count_target


class Attention(nn.Module):
    def __init__(self, width: int, n_heads: int, n_kv: int, head: int, qk_norm: bool) -> None:
        super().__init__()
        self.head = head
        self.q_proj = nn.Linear(width, n_heads * head, bias=False)
        self.k_proj = nn.Linear(width, n_kv * head, bias=False)
        self.v_proj = nn.Linear(width, n_kv * head, bias=False)
        self.o_proj = nn.Linear(n_heads * head, width, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(head) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (rotated(norm(x), angles) for norm, x in zip(self.norms, (q, k), strict=True))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    # As complex numbers, as Llama's own code.
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        width, heads = shape["hidden_size"], shape["num_attention_heads"]
        self.self_attn = Attention(
            width, heads, shape["num_key_value_heads"], shape["head_dim"], shape["qk_norm"]
        )
        self.mlp = FeedForward(width, shape["intermediate_size"])
        self.input_norm, self.post_norm = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_norm(x), angles)
        return x + self.mlp(self.post_norm(x))


class Llama(nn.Module):
    def __init__(self, **shape: Any) -> None:
        super().__init__()
        self.head = shape["head_dim"]
        self.tok_embeddings = nn.Embedding(shape["vocab_size"], shape["hidden_size"])
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape["num_hidden_layers"]))
        self.norm = nn.RMSNorm(shape["hidden_size"])
        self.output = nn.Linear(shape["hidden_size"], shape["vocab_size"], bias=False)
        if shape["tie_word_embeddings"]:
            self.output.weight = self.tok_embeddings.weight

    def forward(self, ids: Tensor) -> Tensor:
        rates = 1.0 / 10000 ** (torch.arange(0, self.head, 2).float() / self.head)
        angles = torch.arange(ids.shape[1]).float()[:, None] @ rates[None]
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x, angles)
        return self.output(self.norm(x)).float()


SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "qk_norm": False,
    },
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
        "qk_norm": False,
    },
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "qk_norm": True,
    },
}
# The largest is counted from its configuration below.
PARAMS = {"llama-3.2-1b": 1_235_814_400, "qwen3-0.6b": 596_049_920}
TINY = {**SHAPES["qwen3-0.6b"], "hidden_size": 32, "intermediate_size": 48, "vocab_size": 99}
TINY |= {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2}


def forward_by_component(shape: dict[str, Any], length: int) -> dict[str, int]:
    width, head = shape["hidden_size"], shape["head_dim"]
    queries, keys = (shape[f"num_{n}_heads"] * head for n in ("attention", "key_value"))
    layers = shape["num_hidden_layers"]
    return {
        "attn_proj": layers * 2 * width * (2 * queries + 2 * keys),
        "attn_scores": layers * 4 * length * queries,
        "experts": layers * 6 * width * shape["intermediate_size"],
        "head": 2 * width * shape["vocab_size"],
    }


def check(count: Count, shape: dict[str, Any], length: int) -> None:
    expected = forward_by_component(shape, length)
    assert {name: flops for name, flops in count.flops_by_component.items() if flops} == expected
    assert count.training_flops == 3 * sum(expected.values()) == 3 * (count.flops or 0)
    assert (count.n_layers, count.n_heads) == (
        shape["num_hidden_layers"],
        shape["num_attention_heads"],
    )
    num_tables = 1 if shape["tie_word_embeddings"] else 2
    tables = shape["vocab_size"] * shape["hidden_size"]
    head = next(c for c in count.components if c.name == "head")
    assert head.num_params == num_tables * tables
    assert count.n_nonembed == count.n_params - tables


@pytest.mark.parametrize("tied", [True, False])
def test_grouped_queries_tied_or_not(tied: bool) -> None:
    shape = TINY | {"tie_word_embeddings": tied}
    check(isoflop.count(Llama(**shape), torch.zeros(3, 10, dtype=torch.long)), shape, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMS)
def test_published_shapes(name: str) -> None:
    with torch.device("meta"):
        model = Llama(**SHAPES[name])
    count = isoflop.count(model, torch.zeros(1, 2048, dtype=torch.long))
    check(count, SHAPES[name], 2048)
    assert count.n_params == PARAMS[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_configurations_of_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name in SHAPES:
        shape = SHAPES[name] if name == "llama-2-7b" else TINY
        kind = transformers.Qwen3Config if shape["qk_norm"] else transformers.LlamaConfig
        kind(**{k: v for k, v in shape.items() if k != "qk_norm"}).save_pretrained(tmp_path / name)
        length = 4096 if name == "llama-2-7b" else 10
        count = count_target(f"hf:{name}/config.json", {}, length, tmp_path)
        check(count, shape, length)
        assert name != "llama-2-7b" or count.n_params == 6_738_415_616
    # A field in the place of the file's.
    fewer = count_target("hf:qwen3-0.6b", {"num_hidden_layers": 1}, 10, tmp_path)
    check(fewer, TINY | {"num_hidden_layers": 1}, 10)
    check_mixture_and_scan(tmp_path)


def check_mixture_and_scan(folder: Path) -> None:
    sizes = {"hidden_size": 32, "vocab_size": 99, "num_hidden_layers": 2}
    mixture = {"model_type": "mixtral", **sizes, "intermediate_size": 48, "num_local_experts": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    (folder / "mixtral.json").write_text(json.dumps(mixture | heads))
    count = count_target("hf:mixtral.json", {}, 8, folder)
    # Two of four experts.
    assert count.flops_by_component["experts"] == 2 * 2 * 6 * 32 * 48
    assert count.flops_by_component["router"] == 2 * 2 * 32 * 4
    assert count.n_params - count.n_active == 2 * 2 * 3 * 32 * 48
    scan = {"model_type": "mamba", **sizes, "state_size": 4}
    (folder / "mamba.json").write_text(json.dumps(scan))
    with pytest.raises(UncountedOperatorError, match="in a loop over tokens in backbone.layers.0"):
        count_target("hf:mamba.json", {}, 8, folder)
