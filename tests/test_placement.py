"""Where a run executes: the study's table, the command line over it, never its identity."""

from __future__ import annotations

from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.placement import Placement, placement_from
from isoflop.plan.planner import make_plan
from isoflop.study import Study
from isoflop.study.file import study_from_toml
from isoflop.validate import validated
from made_studies import micro

STUDY = {"name": "s", "budgets": [1e10], "archs": ["mlp"], "recipe": "micro-v1", "sizes": [1]}
TABLE = {
    "device": "cpu",
    "workers": 3,
    "micro_batch": 2,
    "checkpoint_activations": True,
    "compile": False,
    "checkpoint_every": 60,
    "evaluate_every": 10,
    "sinks": ["tensorboard"],
}


def test_the_table_says_where_and_the_command_line_has_the_last_word() -> None:
    assert placement_from(TABLE) == Placement(
        micro_batch=2,
        checkpoint_activations=True,
        compile=False,
        checkpoint_every_s=60,
        evaluate_every_steps=10,
    )
    over = {"micro_batch": None, "checkpoint_every": 0.0, "checkpoint_activations": False}
    found = placement_from(TABLE, over)
    assert (found.micro_batch, found.checkpoint_every_s) == (2, 0.0)
    assert not found.checkpoint_activations
    assert placement_from({"cluster": "local"}, {}) == Placement()


def test_a_model_is_compiled_on_gpus_unless_somebody_said_otherwise() -> None:
    for device, expected in (("cpu", False), ("cuda", True), ("cuda:1", True)):
        assert placement_from({"device": device}, {"compile": None}).compiles is expected
        for given in (True, False):
            assert placement_from({"device": device, "compile": given}).compiles is given
    # What ranks split is compiled again afterwards, and was not compared.
    for parallel, expected in (("ddp", True), ("fsdp", False), ("channel", False)):
        split = {"device": "cuda", "parallel": parallel, "ranks": 2}
        assert placement_from(split).compiles is expected
        assert placement_from(split, {"compile": True}).compiles
    # Jobs that were sent before there was a default say which.
    assert not validated(Placement, {"device": "cuda", "compile": False}).compiles
    assert validated(Placement, {"device": "cuda", "compile": None}).compiles


def test_the_head_is_what_is_asked_for_or_what_the_device_has() -> None:
    assert Placement().head_used == "fp32"
    assert Placement(device="cuda:1").head_used == "tf32"
    assert placement_from({"head": "bf16"}, {"head": None}).head_used == "bf16"
    assert placement_from({"device": "cuda", "head": "bf16"}, {"head": "fp32"}).head_used == "fp32"
    with pytest.raises(UserError, match="head = 'fp16': must be one of fp32, tf32, bf16"):
        Placement(head="fp16")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("micro_batch", 0),
        ("workers", 0),
        ("checkpoint_every", -1),
        ("checkpoint_every", float("nan")),
        ("evaluate_every", 0),
        ("ranks", 2),
        ("device", "tpu"),
        ("compile", 1),
        ("head", "fp16"),
        ("sinks", ["paper"]),
        ("speed", "high"),
    ],
)
def test_a_study_with_another_value_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key.removesuffix("_every")):
        study_from_toml({"study": STUDY, "placement": {key: value}})


def test_a_placement_is_frozen_as_far_as_it_is_given_and_changes_no_run() -> None:
    plain = study_from_toml({"study": STUDY})
    assert plain.to_json()["placement"] == {"cluster": "local"}
    placed = study_from_toml({"study": STUDY, "placement": TABLE})
    assert placed.to_json()["placement"] == {"cluster": "local"} | TABLE
    assert validated(Study, placed.to_json()) == placed
    ids = [[run.run_id for run in make_plan(study).runs] for study in (plain, placed)]
    assert ids[0] == ids[1]


def test_a_study_made_in_python_is_checked_too() -> None:
    with pytest.raises(UserError, match="micro_batch = 0"):
        micro(placement={"micro_batch": 0})
