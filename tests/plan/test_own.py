"""Plans of trainers of one's own: what a run is, what it costs, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.accounting.count import Count
from isoflop.errors import UserError
from isoflop.plan import artefact, own
from isoflop.plan.artefact import plan_to_json, read_plan, write_plan
from isoflop.plan.edit import diff_plans
from isoflop.plan.grow import extend_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.spec import TrainerSpec, run_id, spec_from_json
from isoflop.study import Study
from isoflop.study.file import study_from_toml
from isoflop.tables import PLAN, read_table
from made_trainer import BATCH_TOKENS, FLOPS_PER_TOKEN, own_study, own_values


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return tmp_path / "code"


def changed(study: Study, **changes: Any) -> Study:
    assert study.trainer is not None
    return dataclasses.replace(study, trainer=dataclasses.replace(study.trainer, **changes))


def ids(plan: Plan) -> list[str]:
    return [run.run_id for run in plan.runs]


def test_a_budget_becomes_whole_steps_by_the_declared_flops(code: Path) -> None:
    plan = make_plan(own_study(code))
    assert len(plan.runs) == 3 * 2 * 3
    assert plan.num_train_tokens is None
    for run in plan.runs:
        step_flops = FLOPS_PER_TOKEN[run.size - 1] * BATCH_TOKENS
        assert run.spec.steps == run.budget_flops // step_flops
        assert run.flops == run.spec.steps * step_flops
        assert (run.declared, run.flops_per_token, run.n_active) == (True, {}, run.n_params)
        assert run.n_tokens == run.spec.steps * BATCH_TOKENS


def test_the_command_is_resolved_but_for_where_it_runs(code: Path) -> None:
    study = own_study(code, env={"LR": "{depth}e-3", "BRACE": "{{x}}"})
    run = make_plan(study).runs[3]
    spec = run.spec
    assert isinstance(spec, TrainerSpec)
    steps = str(spec.steps)
    assert spec.command == ("{python}", "train.py", "1", steps, "0", "{result}", "--gated")
    assert spec.env == {"LR": "1e-3", "BRACE": "{{x}}"}
    assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"data": "other"},
        {"env": {"LR": "1"}},
        {"seq_len": 32},
        {"command": ("{python}", "train.py", "--x", "{depth}", "{steps}", "{seed}", "{result}")},
    ],
)
def test_what_a_run_is_changes_its_id(code: Path, change: dict[str, Any]) -> None:
    study = own_study(code)
    assert not set(ids(make_plan(study))) & set(ids(make_plan(changed(study, **change))))


def test_where_it_runs_and_what_is_said_of_it_do_not(code: Path, tmp_path: Path) -> None:
    study = own_study(code)
    assert study.trainer is not None
    here = ids(make_plan(study))
    other = own_study(tmp_path / "elsewhere", resume="restart", count_timeout_s=5.0)
    assert ids(make_plan(other)) == here
    result = dataclasses.replace(study.trainer.result, unit="loss_of_mine")
    assert ids(make_plan(changed(study, result=result))) == here
    assert ids(make_plan(dataclasses.replace(study, name="b", placement={"ranks": 4}))) == here
    (code / "train.py").write_text("other")
    assert not set(ids(make_plan(study))) & set(here)


def test_a_plan_is_read_back_without_its_code(code: Path, tmp_path: Path) -> None:
    plan = make_plan(own_study(code))
    assert write_plan(plan, tmp_path / "s")
    (code / "train.py").unlink()
    read = read_plan(tmp_path / "s")
    assert plan_to_json(read) == plan_to_json(plan)
    assert read.code == plan.code
    (row, *_) = read_table(tmp_path / "s" / "plan.parquet", PLAN)
    assert row["declared"] is True
    assert (row["d_model"], row["flops_experts"], row["flops_other"]) == (None, None, None)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda p: p["runs"][0].update(flops=1), "runs\\[0\\].flops = 1"),
        (lambda p: p["runs"][0]["spec"].update(steps=7), "runs\\[0\\].spec = "),
        (lambda p: p["runs"][0]["spec"].update(command=["rm", "-rf", "x"]), "runs\\[0\\].spec = "),
        (lambda p: p["runs"][0]["spec"].update(code="0" * 64), "runs\\[0\\].run_id = "),
        (lambda p: p["runs"][0].update(arch="mlp"), "an arch of its \\[trainer\\] in runs\\[0\\]"),
        (lambda p: p["runs"].pop(), "runs\\[17\\]"),
        (lambda p: p["counts"].pop(), "a count of gated size 3"),
        (lambda p: p["counts"][0]["count"].update(n_params=5), "runs\\[0\\]"),
        (lambda p: p["counts"][0]["count"].update(training_flops="x"), "training_flops = 'x'"),
        (lambda p: p["study"]["trainer"].update(batch_tokens=65), "batch_tokens = 65"),
        (lambda p: p["study"]["trainer"]["command"].append("{nope}"), "{nope}"),
    ],
)
def test_an_edited_plan_is_refused(
    code: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], named: str
) -> None:
    write_plan(make_plan(own_study(code)), tmp_path / "s")
    path = tmp_path / "s" / "plan.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=named):
        read_plan(tmp_path / "s")


def test_budgets_that_few_steps_leave_a_part_of_are_told(code: Path) -> None:
    values = own_values(code)
    values["study"]["budgets"] = [1e6, 1e9]
    own_study(code)
    (warning,) = make_plan(study_from_toml(values)).warnings
    # The largest size takes 576,000 FLOPs a step.
    assert "gated size 3 at 1e6" in warning or "plain size 3 at 1e6" in warning
    assert "42% with 1 steps" in warning
    assert make_plan(own_study(code)).warnings == ()


def test_large_numbers_may_be_written_with_an_exponent(code: Path) -> None:
    own_study(code)
    values = own_values(code, batch_tokens=6.4e1)
    values["trainer"]["count"] = {
        "flops_per_token": [1e3, 4e3, 9e3],
        "n_params": [1e3, 4e3, 9e3],
    }
    assert ids(make_plan(study_from_toml(values))) == ids(make_plan(own_study(code)))
    values["trainer"]["batch_tokens"] = 64.5
    with pytest.raises(UserError, match="trainer.batch_tokens = 64.5: must be a whole number"):
        study_from_toml(values)


def test_nothing_of_changed_code_is_imported_to_grow(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(make_plan(own_study(code)), tmp_path / "s")
    plan = read_plan(tmp_path / "s", with_code=True)
    (code / "train.py").write_text("other")
    asked: list[Any] = []
    monkeypatch.setattr(own, "count_many", lambda requests, **_: asked.append(requests) or [])
    new = 8 * 10**7
    with pytest.raises(UserError, match=r"as it was planned \(changed: train.py\)"):
        extend_plan(plan, budgets=[new], sizes=[1, 2, 3], at=[new])
    assert asked == []


def test_a_difference_names_the_keys_of_the_trainer(code: Path) -> None:
    study = own_study(code)
    assert study.trainer is not None
    result = dataclasses.replace(study.trainer.result, loss="val")
    after = make_plan(changed(study, data="other", result=result))
    difference = diff_plans(make_plan(study), after)
    assert [name for name, _, _ in difference.study] == ["trainer.data", "trainer.result.loss"]
    assert difference.changed[0].fields == ("data",)


def test_growing_keeps_every_run_and_needs_the_planned_code(code: Path, tmp_path: Path) -> None:
    write_plan(make_plan(own_study(code)), tmp_path / "s")
    with pytest.raises(UserError, match=r"trainer.code = .*--with-code"):
        extend_plan(read_plan(tmp_path / "s"), budgets=[8 * 10**7])
    plan = read_plan(tmp_path / "s", with_code=True)
    grown = extend_plan(plan, budgets=[8 * 10**7], seeds=[1])
    difference = diff_plans(plan, grown)
    assert (len(difference.same), len(difference.added)) == (18, 30)
    (code / "model.py").write_text("new")
    with pytest.raises(UserError, match=r"as it was planned \(new: model.py\)"):
        extend_plan(plan, budgets=[8 * 10**7])
    with pytest.raises(UserError, match=r"as it was planned \(new: model.py\)"):
        write_plan(make_plan(own_study(code)), tmp_path / "s")


def test_counted_models_are_counted_once_a_rung_with_the_archs_arguments(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def count_many(requests: Any, **where: Any) -> list[Count]:
        asked.extend((r.target, dict(r.values), r.seq_len) for r in requests)
        return [Count.declared_from(flops_per_token=3000, n_params=10)] * len(requests)

    monkeypatch.setattr(own, "count_many", count_many)
    values = own_values(code, count="model:build")
    values["arch"][0] |= {"count_with": {"gated": True}, "ladder": {"depth": [4, 5, 6]}}
    own_study(code)
    plan = make_plan(study_from_toml(values))
    assert asked[0] == ("model:build", {"depth": 1}, 16)
    assert asked[3] == ("model:build", {"depth": 4, "gated": True}, 16)
    assert len(asked) == len(plan.counts) == 6
    # The formula of one operator is the user's own.
    first = plan.counts[0]
    partly = dataclasses.replace(first.count, declared=False, declared_operators=("a::b",))
    runs = own.OwnRuns(plan.study, [dataclasses.replace(first, count=partly)], "d")
    assert runs.run(10**9, first.arch, first.size, 0).declared
    values["trainer"]["count"] = "hf:config-{depth}.json"
    asked.clear()
    make_plan(study_from_toml(values))
    assert asked[2:4] == [
        ("hf:config-3.json", {}, 16),
        ("hf:config-4.json", {"gated": True}, 16),
    ]


def _trainer(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["trainer"].update(changes)


COMMAND = ["{python}", "train.py", "{depth}", "{steps}", "{seed}", "{result}"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_trainer(command=["train"]), "train: must be one with {steps} or {tokens}; add"),
        (
            lambda v: (
                v["study"].update(seeds=[0, 1]),
                v["trainer"].update(command=["t", "{steps}", "{depth}"]),
            ),
            "must be one with {seed}; add",
        ),
        (_trainer(command=["t", "{steps}", "{seed}"]), "must be one with {depth}; add"),
        (_trainer(command=[*COMMAND, "{dept}"]), "{dept}: must be one of .*; write depth"),
        (_trainer(command=[*COMMAND, "{depth"]), "trainer.command = '{depth'"),
        (_trainer(command=[*COMMAND, "{depth:3}"]), "write {{ for a brace"),
        (_trainer(command=[]), "trainer.command = \\[\\]: must be a program"),
        (_trainer(resume="native"), "must be one with {checkpoint_dir}"),
        (_trainer(batch_tokens=65), "batch_tokens = 65: must be a multiple of seq_len 16"),
        (_trainer(ladder={}), "trainer.ladder = {}"),
        (_trainer(ladder={"depth": [1, 2], "w": [1]}), "trainer.ladder.w = \\[1\\]: must be 2"),
        (_trainer(ladder={"steps": [1, 2, 3]}), "trainer.ladder = 'steps'"),
        (_trainer(count={"flops_per_token": [1], "n_params": [1]}), "must be 3 numbers"),
        (_trainer(result={"unit": "bits per byte"}), "trainer.result.unit = 'bits per byte'"),
        (
            _trainer(result={"unit": "nats_per_tokens"}),
            "clearly another metric; write nats_per_token",
        ),
        (_trainer(result={"unit": "bpb"}), "clearly another metric; write bits_per_byte"),
        (_trainer(result={"loss": "x"}), "trainer.result.unit = None: must be given"),
        (_trainer(result={"unit": "u", "json": "a", "csv": "b"}), "must be one of json, csv"),
        (
            _trainer(result={"unit": "u", "json": "{run_id}{dept}"}),
            "{dept}: must be one of .*write depth",
        ),
        (lambda v: v["arch"][0].update(name="mlp"), "arch.name = 'mlp': must be one of plain"),
        (lambda v: v["arch"].append({"name": "gated"}), "a label of its own"),
        (lambda v: v["arch"][0].update(ladder={"x": [1]}), "{x}: must be one of depth"),
        (lambda v: v["arch"][0].update(ladder={"depth": [1]}), "must be 3 values"),
        (lambda v: v["study"].update(archs=["gated", "mlp"]), "comparable_losses = true"),
        (lambda v: v["study"].update(sizes="auto"), "rungs of the trainer's ladder"),
        (lambda v: v["study"].update(match="flops_per_token"), "a ladder of its own"),
        (lambda v: v["study"].update(epochs=[1.0], budgets=[], sizes=[1]), "epochs = \\[1.0\\]"),
        (lambda v: v["study"].update(keep_weights="best"), "all or none"),
        (lambda v: v["study"].update(sizes=[1, 2, 4]), "sizes = 4: must be a rung of the"),
        (lambda v: v["study"].update(budgets=[1e4, 1e7]), "raise the budget to 6.4e4 or more"),
        (lambda v: v.pop("trainer"), "arch = 'gated': must be left out without a \\[trainer\\]"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    code: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    own_study(code)
    values = own_values(code)
    edit(values)
    with pytest.raises(UserError, match=message) as refused:
        make_plan(study_from_toml(values))
    assert "\n" not in str(refused.value)


def test_a_built_in_family_stands_beside_it_where_losses_are_comparable(code: Path) -> None:
    own_study(code)
    values = own_values(code, comparable_losses=True, result={"unit": "nats_per_token"})
    values["study"] |= {
        "archs": ["gated", "mlp"],
        "budgets": [1e10],
        "recipe": "micro-v1",
        "sizes": [1, 2],
    }
    values["data"] = {"seq_len": 32, "batch_size": 4}
    plan = make_plan(study_from_toml(values))
    assert [type(run.spec).__name__ for run in plan.runs] == ["TrainerSpec"] * 2 + ["RunSpec"] * 2
    assert plan.num_train_tokens is not None
    values["trainer"]["result"]["unit"] = "bits_per_byte"
    with pytest.raises(UserError, match=re.escape("trainer.result.unit = 'bits_per_byte'")):
        study_from_toml(values)


def test_a_spec_of_one_kind_is_never_read_as_the_other(code: Path) -> None:
    run = make_plan(own_study(code)).runs[0]
    values = run.spec.to_json()
    for name, wrong in (("command", "x"), ("steps", 1.5), ("more", 1), ("code", "abc")):
        with pytest.raises(UserError, match=f"spec.{name}"):
            spec_from_json(values | {name: wrong})
    assert run.run_id == run_id(spec_from_json(values))


@pytest.mark.parametrize("last", ["write_code", "write_plan_table", "write_text_atomic"])
def test_a_plan_that_was_cut_off_in_the_code_folder_is_no_code(
    last: str, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = own_study(code)
    plan, folder = make_plan(study), code / "results" / "s"
    write = getattr(artefact, last)

    def write_and_die(*arguments: Any) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artefact, last, write_and_die)
        with pytest.raises(KeyboardInterrupt):
            write_plan(plan, folder)
    assert ids(make_plan(study)) == ids(plan)


def test_a_command_that_would_run_the_folder_and_not_its_copy_is_refused(
    code: Path, tmp_path: Path
) -> None:
    own_study(code)
    (tmp_path / "link").symlink_to(code)
    (code / "lib").mkdir()
    (code / "lib" / "model.py").touch()
    for text, relative in {
        f"{code}/train.py": "train.py",
        f"--path=/opt:{code}/lib:/x": "lib",
        f"{code}": ".",
        f"/opt:{code}/:/x": ".",
        # Data are found there, too; another folder is another.
        f"--data={code}/data": None,
        f"{code}-other/train.py": None,
    }.items():
        for change in ({"command": [*COMMAND, text]}, {"env": {"X": text}}):
            study = own_study(code, **change)
            if relative is None:
                make_plan(study)
                continue
            with pytest.raises(UserError, match=f"; write {re.escape(relative)}$"):
                make_plan(study)
    # The folder's own path by way of a link.
    study = own_study(code, command=[*COMMAND, str(code / "train.py")], code=str(tmp_path / "link"))
    with pytest.raises(UserError, match="write train.py"):
        make_plan(study)
