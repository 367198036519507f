from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.plan.identity import RunSpec, canonical_json, run_id

SPEC = RunSpec(
    family="sgatlin",
    config={"num_channels": 4, "router": "product_dense"},
    d_model=32,
    n_layers=2,
    n_heads=2,
    vocab_size=256,
    seq_len=128,
    batch_size=16,
    steps=1000,
    data_id="abc",
    tokenizer_hash="def",
    seed=0,
    recipe="micro-v1",
    precision="fp32",
)


def test_the_id_is_frozen() -> None:
    # Ids name results on people's disks: this value may only change with a schema version.
    assert run_id(SPEC) == "5a56ebca62ef2c5d787364be14a42826b3eb9aab64af7b4deae0efb8dd186daa"


@given(st.randoms(use_true_random=False))
def test_order_folder_and_environment_never_change_an_id(shuffler: random.Random) -> None:
    values = list(SPEC.to_json().items())
    shuffler.shuffle(values)
    config = list(SPEC.config.items())
    shuffler.shuffle(config)
    before = Path.cwd()
    os.environ["ISOFLOP_TEST_NOISE"] = str(shuffler.random())
    try:
        os.chdir("/")
        again = RunSpec.from_json(dict(values) | {"config": dict(config)})
        assert run_id(again) == run_id(SPEC)
    finally:
        os.chdir(before)
        del os.environ["ISOFLOP_TEST_NOISE"]


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(RunSpec)])
def test_every_identity_field_changes_the_id(name: str) -> None:
    value: Any = getattr(SPEC, name)
    if name == "config":
        changed: Any = {**value, "num_channels": 5}
    else:
        changed = value + (1 if isinstance(value, int) else "x")
    assert run_id(dataclasses.replace(SPEC, **{name: changed})) != run_id(SPEC)


def test_a_spec_survives_json() -> None:
    assert RunSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "10"}, "spec.steps = '10': must be int"),
        ({"steps": 10.0}, "spec.steps = 10.0"),
        ({"seed": True}, "spec.seed = True"),
        ({"config": []}, "spec.config"),
        ({"gpu": 1}, "spec.gpu = 1: must be one of"),
    ],
)
def test_a_damaged_spec_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunSpec.from_json(SPEC.to_json() | change)


def test_a_spec_with_a_missing_field_is_refused() -> None:
    values = SPEC.to_json()
    del values["seed"]
    with pytest.raises(UserError, match=r"spec\.seed = None: must be given"):
        RunSpec.from_json(values)


@pytest.mark.parametrize(
    "value", [1.5, {"a": {1: 2}}, {"a": object()}, {"a": (1, 2)}, float("nan")]
)
def test_what_has_no_canonical_form_raises(value: Any) -> None:
    with pytest.raises(TypeError, match="no canonical form"):
        canonical_json(value)
