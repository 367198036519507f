"""Initial values: distributions of the reference, streams shared by all families of a seed."""

from __future__ import annotations

import csv
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golden_values import GOLDEN, block_names, family_and_config
from isoflop.errors import UserError
from isoflop.families import family_names, get_build, get_spec
from isoflop.model.init import (
    CUT_STD,
    Initialiser,
    constant,
    initialise,
    stream,
    torch_default,
    trunc_normal,
)
from isoflop.model.transformer import Block, Transformer
from isoflop.recipe import get_recipe

# The settings of init_stats.csv (see the README of the golden values).
ROUTED = {"d_ffw": 1024, "n_channels": 8, "knn": 8, "d_key": 128, "activation": "identity"}
LAYERS: dict[str, dict[str, Any]] = {
    "mlp": {"type": "mlp", "d_ffw": 1024, "knn": 0},
    "swiglu": {"type": "glu", "d_ffw": 1024, "knn": 0},
    "moe": {"type": "moe", "d_ffw": 256, "n_channels": 4, "knn": 2},
    "peer": {"type": "peer", **ROUTED},
    **{
        f"sgl_{router}": {"type": "sparsely_gated_linear", "router_type": router, **ROUTED}
        for router in ("product_dense", "product_key_value", "dense", "key_value")
    },
}


def golden_stats(layer: str) -> dict[str, dict[str, Tensor]]:
    """Per statistic, arrays of the reference's shapes filled with it, by the reference's names."""
    stats: dict[str, dict[str, Tensor]] = {"mean": {}, "std": {}, "largest": {}}
    with (GOLDEN / "init_stats.csv").open() as file:
        for row in csv.DictReader(file):
            if row["layer"] != layer:
                continue
            values = {
                "mean": float(row["mean"]),
                "std": float(row["std"]),
                "largest": max(abs(float(row["min"])), abs(float(row["max"]))),
            }
            for statistic, value in values.items():
                shape = json.loads(row["shape"])
                stats[statistic][row["param"]] = torch.full(shape, value)
    return stats


def check_values(ours: Tensor, mean: float, std: float, largest: float, name: str) -> None:
    noise = 5.0 / math.sqrt(ours.numel())
    assert float(ours.std(correction=0)) == pytest.approx(std, rel=noise, abs=0), name
    assert float(ours.mean()) == pytest.approx(mean, abs=noise * std + 1e-12), name
    # The reference's extremes come close to the cut; a plain normal would pass it by far.
    assert float(ours.abs().max()) <= largest * 1.02, name


@pytest.mark.parametrize("layer", LAYERS)
def test_block_starts_as_the_references(layer: str) -> None:
    family, config = family_and_config(LAYERS[layer])
    block = Block(feedforward=get_build(family)(config, 256), d_model=256, n_heads=4)
    for parameter in block.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    initialise(block, 0)
    golden = {statistic: block_names(arrays) for statistic, arrays in golden_stats(layer).items()}
    ours = {name: p.detach() for name, p in block.named_parameters()}
    assert ours.keys() == golden["std"].keys()
    for name, value in ours.items():
        mean, std = golden["mean"][name].mean(), golden["std"][name].mean()
        check_values(value, float(mean), float(std), float(golden["largest"][name].max()), name)


def test_embedding_and_output_norm_start_as_the_references() -> None:
    model = Transformer(
        family="mlp",
        config=get_spec("mlp").Config(hidden_width=8),
        n_layers=1,
        d_model=256,
        n_heads=4,
        vocab_size=8192,
    )
    initialise(model, 0)
    golden = golden_stats("transformer")
    name = "embedder/embedding"
    embedding = model.embedding.detach()
    std = float(golden["std"][name].mean())
    check_values(embedding, 0.0, std, float(golden["largest"][name].max()) * 1.1, name)
    # Not cut: beyond two sigma lie 4.6 % of a plain normal.
    assert float((embedding.abs() > 2 * std).double().mean()) == pytest.approx(0.0455, abs=0.001)
    assert torch.equal(model.output_norm.scale.detach(), torch.ones(256))


def test_the_cut_is_exact_and_corrected() -> None:
    values = trunc_normal(3.0)((400_000,), stream(0, "x"))
    cut = 2.0 * 3.0 / CUT_STD
    assert pytest.approx(0.8796, abs=1e-4) == CUT_STD
    assert float(values.abs().max()) <= cut * (1 + 1e-6)
    assert float(values.abs().max()) > 0.999 * cut
    assert float(values.std()) == pytest.approx(3.0, rel=5e-3)


def small_model(family: str, seed: int) -> dict[str, Tensor]:
    recipe = get_recipe("micro-v1")
    shape = recipe.shape(1)
    model = Transformer(
        family=family,
        config=get_spec(family).ladder(recipe, 1),
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        n_heads=shape.n_heads,
        vocab_size=256,
    )
    initialise(model, seed)
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", family_names())
def test_attention_and_embedding_are_those_of_every_family(family: str) -> None:
    ours, mlp = small_model(family, 3), small_model("mlp", 3)
    shared = [name for name in mlp if ".feedforward." not in name]
    assert any("attention.query_key" in name for name in shared)
    for name in shared:
        assert torch.equal(ours[name], mlp[name]), name


@pytest.mark.parametrize("family", family_names())
def test_seeds_and_layers_differ_and_a_seed_repeats(family: str) -> None:
    first, again, other = small_model(family, 0), small_model(family, 0), small_model(family, 1)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        drawn = float(value.std()) > 0
        assert torch.equal(value, other[name]) != drawn, name
        if drawn and name.startswith("blocks.0."):
            assert not torch.equal(value, first[name.replace("blocks.0.", "blocks.1.")]), name


class Drawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 2))

    def initialisers(self) -> dict[str, Initialiser]:
        return {"weight": constant(1.0)}


def test_a_parameter_that_nobody_draws_is_refused() -> None:
    with pytest.raises(UserError, match=r"parameters = 1\.weight, 1\.bias: must be named in"):
        initialise(nn.Sequential(Drawn(), nn.Linear(2, 2)), seed=0)


def test_a_tied_parameter_is_drawn_under_either_name() -> None:
    model = nn.Sequential(nn.Identity(), Drawn())
    model[0].weight = model[1].weight
    initialise(model, seed=0)
    assert torch.equal(model[0].weight, torch.ones(2, 2))


class Gated(nn.Module):
    """Ordinary modules, named from outside."""

    def __init__(self, **entries: Any) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 6)
        self.stack = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8, bias=False))
        self.entries = entries or {
            "gate.weight": trunc_normal(0.5),
            "gate.bias": constant(0.25),
            "stack": torch_default,
        }

    def initialisers(self) -> dict[str, Any]:
        return self.entries


def values_of(module: nn.Module, seed: int) -> dict[str, Tensor]:
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    initialise(module, seed)
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_ordinary_modules_are_named_from_outside_or_begin_as_in_torch() -> None:
    found = values_of(Gated(), 3)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    again, other = values_of(Gated(), 3), values_of(Gated(), 4)
    assert not torch.equal(found["gate.weight"], other["gate.weight"])
    assert not torch.equal(found["stack.1.weight"], other["stack.1.weight"])
    assert all(torch.equal(again[name], value) for name, value in found.items())
    assert torch.equal(found["gate.weight"], trunc_normal(0.5)((6, 8), stream(3, "gate.weight")))
    assert torch.equal(found["gate.bias"], torch.full((6,), 0.25))
    module = Gated()
    torch.manual_seed(5)
    initialise(module, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(stream(3, "stack").initial_seed())
    assert torch.equal(found["stack.1.weight"], nn.Linear(6, 8, bias=False).weight)
    assert torch.equal(found["stack.0.weight"], torch.ones(6))


def test_a_name_from_outside_comes_before_the_modules_own() -> None:
    class Own(nn.Linear):
        def initialisers(self) -> dict[str, Initialiser]:
            return {"weight": constant(1.0), "bias": constant(2.0)}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Own(2, 2)

        def initialisers(self) -> dict[str, Initialiser]:
            return {"inner.weight": constant(3.0)}

    found = values_of(Outer(), 0)
    assert found["inner.weight"].unique().tolist() == [3.0]
    assert found["inner.bias"].unique().tolist() == [2.0]


ALL = {"gate": torch_default, "stack": torch_default}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"gate": torch_default},
            "parameters = stack.0.weight, stack.0.bias, stack.1.weight: must",
        ),
        (ALL | {"gate.wieght": constant(0)}, "= 'gate.wieght': must be a parameter (gate.weight, "),
        (ALL | {"gate": constant(0)}, "= 'gate': must be a parameter (gate.weight, gate.bias, "),
        (ALL | {"gates": torch_default}, "= 'gates': must be a module that it holds (gate, stack"),
        (ALL | {"gate.bias": torch_default}, "= 'gate.bias': must be a module that it holds (gate"),
        (
            {"gate.bias": 0.5} | ALL,
            "one whose function draws values of its shape (TypeError: 'float'",
        ),
        (
            {"gate.bias": lambda shape, generator: torch.ones(5)} | ALL,
            "= 'gate.bias': must be one whose function draws values of its shape (RuntimeError",
        ),
    ],
)
def test_what_is_not_initialised_is_said_in_one_line(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        initialise(Gated(**entries), 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
