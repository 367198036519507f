"""Golden values of the reference implementation, and its parameter names mapped to ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.families import config_from_mapping
from isoflop.model import Transformer

GOLDEN = Path(__file__).parent / "golden"


@cache
def index() -> dict[str, Any]:
    return json.loads((GOLDEN / "fixtures" / "index.json").read_text())


@cache
def _stored(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "fixtures" / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def fixture(name: str) -> dict[str, Tensor]:
    """All arrays of a fixture; an array that another one also holds is stored once, there."""
    arrays = {}
    for key, entry in index()[name]["arrays"].items():
        owner, stored_key = entry.get("same_as", (name, key))
        arrays[key] = torch.from_numpy(_stored(owner)[stored_key].copy())
    return arrays


def under(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The arrays below ``prefix/``, without it."""
    return {
        k.removeprefix(prefix + "/"): v for k, v in arrays.items() if k.startswith(prefix + "/")
    }


FAMILIES = {"mlp": "mlp", "glu": "swiglu", "moe": "moe", "peer": "peer"}


def family_and_config(feedforward: Mapping[str, Any]) -> tuple[str, Any]:
    """Our family and Config of a reference ``feedforward_config``."""
    family = FAMILIES.get(feedforward["type"], "sgatlin")
    return family, config_from_mapping(family, _config_values(family, feedforward))


def _config_values(family: str, feedforward: Mapping[str, Any]) -> dict[str, Any]:
    width, knn = feedforward["d_ffw"], feedforward["knn"]
    if family in ("mlp", "swiglu"):
        return {"hidden_width": width}
    channels = feedforward["n_channels"]
    if family == "moe":
        return {"num_experts": channels, "num_active": knn, "hidden_width": width}
    routed = {
        "num_channels": channels,
        "num_neighbours": knn,
        "num_experts": width,
        "router_width": feedforward["d_key"],
    }
    if family == "peer":
        return routed
    activation = {"gelu": "gelu_tanh"}.get(feedforward["activation"], feedforward["activation"])
    return routed | {"router": feedforward["router_type"], "activation": activation}


def _attention(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    query, key, value = (
        golden[f"{part}_projection/kernel"].flatten(1) for part in ("query", "key", "value")
    )
    return {
        "query_key": torch.cat((query, key), dim=1),
        "value": value,
        "output": golden["output_projection/kernel"].flatten(0, 1),
        "query_key_scale": torch.stack((golden["query_norm/scale"], golden["key_norm/scale"])),
    }


def _glu(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        "w1": golden["Dense_0/kernel"],
        "bias1": golden["Dense_0/bias"],
        "w2": golden["Dense_1/kernel"],
        "bias2": golden["Dense_1/bias"],
    }


def _moe(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    num_experts = golden["gate/kernel"].shape[1]
    experts = [_glu(under(golden, f"GatedLinearUnit_{e}")) for e in range(num_experts)]
    stacked = {name: torch.stack([e[name] for e in experts]) for name in experts[0]}
    return {"gate": golden["gate/kernel"], **stacked}


def _routed(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    router = under(golden, "router") or under(golden, "ProductKeyValueRouter_0")
    w_in, w_out = golden["experts"]
    if w_in.ndim == 2:
        w_in, w_out = w_in[None], w_out[None]
    if "Dense_0/kernel" in router:
        ours = {
            "router.w1": router["Dense_0/kernel"],
            "router.w2": router["DenseGeneral_0/kernel"].flatten(1),
        }
    else:
        *_, d_model, _ = router["queries/kernel"].shape
        queries = router["queries/kernel"].flatten(0, -3)
        ours = {
            "router.queries": queries.transpose(0, 1).reshape(d_model, -1),
            "router.keys": router["keys"].flatten(0, -3),
        }
    return {"w_in": w_in, "w_out": w_out, **ours}


def feedforward_names(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A feed-forward's reference arrays (parameters or gradients) under our names."""
    if "gate/kernel" in golden:
        return _moe(golden)
    if "experts" in golden:
        return _routed(golden)
    if "Dense_0/bias" in golden:
        return _glu(golden)
    return {"w1": golden["Dense_0/kernel"], "w2": golden["Dense_1/kernel"]}


def attention_names(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _attention(golden)


def block_names(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {
        f"{norm}.scale": golden[f"{norm}/scale"] for norm in ("attention_norm", "feedforward_norm")
    }
    attention = _attention(under(golden, "attention"))
    feedforward = feedforward_names(under(golden, "ffw"))
    ours |= {f"attention.{name}": value for name, value in attention.items()}
    return ours | {f"feedforward.{name}": value for name, value in feedforward.items()}


def transformer_names(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {
        "embedding": golden["embedder/embedding"],
        "output_norm.scale": golden["output_norm/scale"],
    }
    num_layers = len({m.group(1) for k in golden if (m := re.match(r"blocks_(\d+)/", k))})
    for layer in range(num_layers):
        block = block_names(under(golden, f"blocks_{layer}"))
        ours |= {f"blocks.{layer}.{name}": value for name, value in block.items()}
    return ours


def transformer(entry: Mapping[str, Any], golden_params: Mapping[str, Tensor]) -> Transformer:
    """Our model of a transformer fixture's index entry with the reference's weights."""
    family, config = family_and_config(entry["feedforward_config"])
    model = Transformer(
        family=family,
        config=config,
        n_layers=entry["n_layers"],
        d_model=entry["d_model"],
        n_heads=entry["d_model"] // entry["d_heads"],
        vocab_size=entry["vocab"],
    )
    model.load_state_dict(transformer_names(golden_params))
    return model


def worst_error(ours: Tensor, golden: Tensor) -> float:
    """Largest difference relative to the golden array's largest value."""
    assert ours.shape == golden.shape
    return float(
        (ours.detach().double() - golden.double()).abs().max() / golden.double().abs().max()
    )
