"""Trunks of a trainer of one's own: which runs share them, what has to be declared for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.plan.artefact import plan_to_json, read_plan, write_plan
from isoflop.plan.planner import make_plan
from isoflop.plan.trunks import trunks_of
from isoflop.spec import TrainerSpec
from isoflop.study.file import study_from_toml
from made_trainer import BRANCHING, own_study, own_values

COMMAND = BRANCHING["command"]


def test_runs_that_differ_in_length_alone_share_a_trunk(tmp_path: Path) -> None:
    plan = make_plan(own_study(tmp_path, **BRANCHING))
    trunks = trunks_of(plan)
    assert len(trunks) == 2 * 3
    for trunk in trunks:
        assert [run.budget_flops for run in trunk.runs] == [10**7, 2 * 10**7, 4 * 10**7]
        assert len({(run.arch, run.size) for run in trunk.runs}) == 1
        for run, fork in zip(trunk.runs, trunk.forks, strict=True):
            assert isinstance(run.spec, TrainerSpec)
            assert run.spec.command[-2 if run.arch == "gated" else -1] == str(fork)
            assert fork == run.spec.steps - int(0.2 * run.spec.steps)


@pytest.mark.parametrize("where", ["args", "env", "tokens", "none"])
def test_archs_of_one_command_that_name_themselves_are_different_training(
    where: str, tmp_path: Path
) -> None:
    values = own_values(tmp_path, **BRANCHING)
    values["arch"] = []
    trainer = values["trainer"]
    if where == "args":
        trainer["command"] = [*COMMAND, "--{arch}"]
    elif where == "env":
        trainer["env"] = {"KIND": "{arch}"}
    elif where == "tokens":
        trainer["command"] = [*COMMAND, "{arch}", "{tokens}"]
    own_study(tmp_path)
    plan = make_plan(study_from_toml(values))
    trunks = trunks_of(plan)
    # Without its name in it, both archs have the same runs.
    assert len(trunks) == (3 if where == "none" else 6)
    assert all(len(trunk.runs) == 3 for trunk in trunks)


def test_the_table_is_no_part_of_what_runs(tmp_path: Path) -> None:
    shared = make_plan(own_study(tmp_path, **BRANCHING))
    alone = make_plan(own_study(tmp_path, **BRANCHING | {"branch": None}))
    assert [run.run_id for run in alone.runs] == [run.run_id for run in shared.runs]
    assert trunks_of(alone) == ()
    assert "branch" not in plan_to_json(alone)["study"]["trainer"]
    write_plan(alone, tmp_path / "study")
    assert write_plan(shared, tmp_path / "study")
    assert trunks_of(read_plan(tmp_path / "study")) == trunks_of(shared)


def _trainer(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["trainer"].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_trainer(resume="restart"), "trainer.resume = 'restart': must be 'native' where there"),
        (lambda v: v["trainer"].pop("resume"), "trainer.resume = 'restart'"),
        (lambda v: v["trainer"].pop("warmup_steps"), "trainer.warmup_steps = None: must be given"),
        (lambda v: v["trainer"].pop("decay"), "trainer.decay = None: must be given where there"),
        (_trainer(decay=1.0), "trainer.decay = 1.0: must be less than 1"),
        (_trainer(decay=float("inf")), "trainer.decay = inf: must be less than 1"),
        (_trainer(command=COMMAND[:-1]), "must be one with {decay_start}; add an argument such"),
        (
            _trainer(command=[text.replace("{steps}", "{tokens}") for text in COMMAND]),
            "must be one with {steps}; add",
        ),
        (_trainer(branch={}), "trainer.branch.resume = None: must be given"),
        (_trainer(branch={"resume": "restart"}), "trainer.branch.resume = 'restart': must be"),
        (_trainer(branch={"resume": "native", "x": 1}), "trainer.branch.x"),
        (_trainer(ladder={"branch_dir": [1, 2, 3]}), "trainer.ladder = 'branch_dir'"),
        (_trainer(ladder={"decay_start": [1, 2, 3]}), "trainer.ladder = 'decay_start'"),
        (_trainer(branch=None, decay=None), "{decay_start}: must be one of"),
    ],
)
def test_a_mistake_in_it_is_one_line(
    edit: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    own_study(tmp_path)
    values = own_values(tmp_path, **BRANCHING)
    edit(values)
    with pytest.raises(UserError, match=message) as refused:
        make_plan(study_from_toml(values))
    assert "\n" not in str(refused.value)


def test_code_that_asks_for_its_spec_names_nothing(tmp_path: Path) -> None:
    asks = BRANCHING | {"command": ["{python}", "train.py"], "reads_spec": True}
    assert len(trunks_of(make_plan(own_study(tmp_path, **asks)))) == 3 * 2


def test_a_decay_of_all_steps_and_more_begins_at_the_first(tmp_path: Path) -> None:
    trainer = own_study(tmp_path, decay=2.0, warmup_steps=0).trainer
    assert trainer is not None
    assert trainer.decay_start(5) == 0
    assert trainer.values("plain", {}, 5, 0)["decay_start"] == 0
