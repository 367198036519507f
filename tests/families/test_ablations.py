"""sgatlin's ablations: it becomes PEER bit for bit, and every cell of the grid is sound."""

from __future__ import annotations

import dataclasses
import itertools
import random
import tomllib
from typing import Any

import pytest
import torch
from torch import nn

from isoflop.families import config_from_mapping, get_build, get_spec
from isoflop.families._shared.spec import ACTIVATIONS, GATE_ORDERS, GATES, ROUTERS, TABLES
from isoflop.model import build_model, next_token_loss
from isoflop.model.flop_gate import check_spec
from isoflop.model.init import initialise
from isoflop.plan.models import Models
from isoflop.recipe import MICRO_V1, PAPER_V1
from isoflop.resources import builtin
from isoflop.spec import RunSpec
from isoflop.study import Study
from isoflop.study.file import study_from_toml
from isoflop_kernels import use_implementation

PEER_SHAPE = {"num_channels": 3, "num_neighbours": 4, "num_experts": 36, "router_width": 10}
AS_PEER = {
    "router": "product_key_value",
    "activation": "gelu_tanh",
    "gate_order": "act_then_gate",
    "gate": "softmax",
    "tables": "shared",
}
GRID = list(itertools.product(ROUTERS, ACTIVATIONS, GATE_ORDERS, GATES, TABLES))
NUM_SHARES = 5


def step(module: nn.Module, implementation: str) -> dict[str, torch.Tensor]:
    """Output and all gradients of a layer on fixed inputs."""
    x_TD = torch.randn(23, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with use_implementation(implementation):
        y_TD = module(x_TD)
    y_TD.square().sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    return {"y": y_TD, "x": x_TD.grad, **gradients}


@pytest.mark.parametrize("implementation", ["reference", "bag"])
def test_sgatlin_configured_as_peer_is_peer_bit_for_bit(implementation: str) -> None:
    peer = get_build("peer")(config_from_mapping("peer", PEER_SHAPE), 12)
    ours = get_build("sgatlin")(config_from_mapping("sgatlin", PEER_SHAPE | AS_PEER), 12)
    initialise(peer, 5)
    # The names, shapes and initial values of the parameters are the same too.
    initialise(ours, 5)
    for (name, theirs), (our_name, mine) in zip(
        peer.named_parameters(), ours.named_parameters(), strict=True
    ):
        assert name == our_name
        assert torch.equal(theirs, mine)
    expected, got = step(peer, implementation), step(ours, implementation)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.parametrize("field", AS_PEER)
def test_each_of_the_five_choices_matters(field: str) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(get_spec("sgatlin").Config)}
    outputs = []
    for choices in (AS_PEER, AS_PEER | {field: defaults[field]}):
        module = get_build("sgatlin")(config_from_mapping("sgatlin", PEER_SHAPE | choices), 12)
        initialise(module, 5)
        outputs.append(step(module, "reference")["y"])
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("recipe", [MICRO_V1, PAPER_V1])
@pytest.mark.parametrize("size", [1, 3])
def test_as_peer_it_costs_what_peer_costs(recipe: Any, size: int) -> None:
    peer, ours = get_spec("peer"), get_spec("sgatlin")
    config = peer.ladder(recipe, size)
    same = config_from_mapping("sgatlin", dataclasses.asdict(config) | AS_PEER)
    d_model = recipe.shape(size).d_model
    assert ours.ledger(same, d_model, 128) == peer.ledger(config, d_model, 128)


def drawn_spec(cell: tuple[str, ...], rng: random.Random) -> RunSpec:
    router, activation, gate_order, gate, tables = cell
    num_neighbours = rng.randint(1, 4)
    product = router.startswith("product")
    pool = rng.randint(num_neighbours + 1, 6 if product else 30)
    n_heads = rng.randint(1, 2)
    return RunSpec(
        family="sgatlin",
        config={
            "num_channels": rng.randint(1, 4),
            "num_neighbours": num_neighbours,
            "num_experts": pool**2 if product else pool,
            "router_width": rng.randint(1, 9),
            "router": router,
            "activation": activation,
            "gate_order": gate_order,
            "gate": gate,
            "tables": tables,
        },
        d_model=2 * n_heads * rng.randint(1, 5),
        n_layers=rng.randint(1, 2),
        n_heads=n_heads,
        vocab_size=rng.randint(3, 40),
        seq_len=rng.randint(1, 9),
        batch_size=2,
        steps=1,
        data_id="made",
        tokenizer_hash="made",
        seed=rng.randrange(100),
        recipe="micro-v1",
        precision="fp32",
    )


# Every choice of every field is in each share, since no number of choices divides by five.
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, NUM_SHARES))]
)
def test_every_cell_of_the_grid_builds_counts_exactly_and_stays_finite(seed: int) -> None:
    rng = random.Random(seed)
    for cell in GRID[seed::NUM_SHARES]:
        spec = drawn_spec(cell, rng)
        check = check_spec(spec, batch_size=2)
        assert check.problem is None, spec
        model = build_model(spec)
        tokens = torch.randint(2, spec.vocab_size, (2, spec.seq_len))
        loss = next_token_loss(model(tokens), tokens)
        loss.backward()
        assert loss.isfinite()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (name, spec)
            assert parameter.grad.isfinite().all(), (name, spec)


def ablations() -> Study:
    return study_from_toml(tomllib.loads(builtin("experiments", "cpu_ablations.toml").read_text()))


def configs(study: Study, size: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Family and resolved configuration of each arch."""
    models = Models(study, vocab_size=256)
    on_ladder = {arch: models.on_ladder(arch, size, 128) for arch in study.archs}
    return {arch: (m.family, dataclasses.asdict(m.config)) for arch, m in on_ladder.items()}


def test_the_ladder_goes_from_peer_to_sgatlin_one_change_at_a_time() -> None:
    study = ablations()
    by_arch = configs(study, study.sizes[0])
    family, peer = by_arch["peer"]
    assert family == "peer"
    rungs = [peer | AS_PEER]
    names = [arch for arch in study.archs if arch.startswith("ladder/")]
    rungs += [by_arch[arch][1] for arch in (*names, "sgatlin")]
    changes = [
        {key for key in before if before[key] != after[key]}
        for before, after in itertools.pairwise(rungs)
    ]
    # Without an activation there is no order to speak of; unshared tables have as many experts in
    # all as the shared one.
    assert changes == [
        {"gate"},
        {"activation", "gate_order"},
        {"tables", "num_experts"},
        {"router"},
    ]
    totals = {
        rung["num_experts"] * (rung["num_channels"] if rung["tables"] == "separate" else 1)
        for rung in rungs
    }
    assert totals == {676}


def test_the_grid_is_whole() -> None:
    study = ablations()
    by_arch = configs(study, study.sizes[0])
    _, sgatlin = by_arch["sgatlin"]
    cells = set()
    for arch, (_, config) in by_arch.items():
        if arch != "sgatlin" and not arch.startswith(("raw/", "softmax/")):
            continue
        choices = (config["activation"], config["gate_order"], config["gate"])
        same = {"activation": choices[0], "gate_order": choices[1], "gate": choices[2]}
        assert config == sgatlin | same
        cells.add(choices)
    grid = {
        (activation, order, gate)
        for activation, order, gate in itertools.product(ACTIVATIONS, GATE_ORDERS, GATES)
        if activation != "identity" or order == "gate_then_act"
    }
    assert cells == grid
