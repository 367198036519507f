from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isoflop import families
from isoflop.errors import UserError
from isoflop.families import config_from_mapping, family_names, get_build, get_spec
from isoflop.families._external import COMPONENTS
from isoflop.recipe import MICRO_V1, PAPER_V1, RECIPES, Shape
from isoflop.study import PAPER_ARCHS

FOLDER = Path(families.__file__).parent

ROUTED = {"num_channels": 4, "num_neighbours": 4, "num_experts": 36, "router_width": 16}


def test_the_families_are_the_folders() -> None:
    # One that is added needs no line in any test.
    folders = (p.parent.name for p in FOLDER.glob("[!_]*/spec.py"))
    assert family_names() == tuple(sorted(folders))
    assert set(PAPER_ARCHS) <= set(family_names())


@pytest.mark.parametrize("family", family_names())
def test_a_spec_has_all_that_the_contract_names(family: str) -> None:
    spec = get_spec(family)
    assert set(spec.free_dimension) <= set(spec.Config.__dataclass_fields__)
    for recipe in RECIPES.values():
        for size in range(1, (recipe.max_size or 5) + 1):
            config = spec.ladder(recipe, size)
            d_model = recipe.shape(size).d_model
            components = spec.ledger(config, d_model, 128)
            assert all(0 < c.num_active_params <= c.num_params for c in components)
            assert spec.num_params(config, d_model) == sum(c.num_params for c in components)
            num_active = sum(c.num_active_params for c in components)
            assert spec.num_active_params(config, d_model) == num_active
            assert {c.name for c in components} <= set(COMPONENTS)


@pytest.mark.parametrize("family", family_names())
def test_every_field_of_a_shape_costs_flops_or_parameters(family: str) -> None:
    spec = get_spec(family)
    config = spec.ladder(MICRO_V1, 2)
    before = sum(c.flops_per_token + c.num_params for c in spec.ledger(config, 24, 128))
    wider = sum(c.flops_per_token + c.num_params for c in spec.ledger(config, 25, 128))
    assert wider > before


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("sgatlin", ROUTED | {"num_experts": 37}, "num_experts = 37: must be a square number"),
        ("sgatlin", ROUTED | {"num_neighbours": 6}, "num_neighbours = 6: must be below the square"),
        ("peer", ROUTED | {"num_neighbours": 6}, "peer.num_neighbours = 6"),
        (
            "sgatlin",
            ROUTED | {"router": "dense", "num_neighbours": 36},
            r"num_neighbours = 36: must be below num_experts \(36\)",
        ),
        ("sgatlin", ROUTED | {"num_channels": 0}, "num_channels = 0: must be 1 or more"),
        ("sgatlin", ROUTED | {"router": "hash"}, "router = 'hash': must be product_dense or"),
        ("sgatlin", ROUTED | {"activation": "tanh"}, "activation = 'tanh'"),
        ("sgatlin", ROUTED | {"gate_order": "both"}, "gate_order = 'both'"),
        ("moe", {"num_experts": 2, "num_active": 3, "hidden_width": 8}, "num_active = 3"),
        ("mlp", {"hidden_width": -1}, "hidden_width = -1: must be 1 or more"),
        ("mlp", {"hidden_width": 2.5}, "mlp.hidden_width = 2.5: must be a whole number"),
        ("mlp", {"hidden_width": True}, "mlp.hidden_width = True: must be a whole number"),
        ("sgatlin", ROUTED | {"router": 3}, "sgatlin.router = 3: must be a word in quotes"),
        ("mlp", {"hidden": 8}, "mlp.hidden = 8: must be a field of mlp"),
        ("mlp", {}, "mlp.hidden_width = None: must be given"),
        ("rnn", {}, "family = 'rnn': must be one of .*sgatlin"),
        ("_shared", {}, "family = '_shared'"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(
    family: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config_from_mapping(family, values)


def test_a_dense_router_needs_no_square() -> None:
    config_from_mapping("sgatlin", ROUTED | {"router": "dense", "num_experts": 37})


def test_unknown_build_is_refused_before_any_import() -> None:
    with pytest.raises(UserError, match="family"):
        get_build("rnn")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"d_model": 20, "n_layers": 1, "n_heads": 3}, "d_model = 20: must be a multiple of 2"),
        ({"d_model": 6, "n_layers": 1, "n_heads": 2}, "d_model = 6: must be a multiple of 2"),
        ({"d_model": 16, "n_layers": 0, "n_heads": 2}, "n_layers = 0: must be 1 or more"),
    ],
)
def test_impossible_widths_are_refused(shape: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Shape(**shape)


def test_rungs_outside_a_ladder_are_refused() -> None:
    with pytest.raises(UserError, match=r"sizes = 0: must be a rung of paper-v1's ladder"):
        PAPER_V1.shape(0)
    assert MICRO_V1.max_size is not None
    with pytest.raises(UserError, match="sizes = 99"):
        MICRO_V1.shape(99)


def test_specs_plans_and_accounting_import_no_torch() -> None:
    code = (
        "import sys; from isoflop.families import family_names, get_spec;"
        "[get_spec(name) for name in family_names()];"
        "import isoflop.accounting, isoflop.plan.planner, isoflop.plan.artefact;"
        "heavy = {'torch', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
