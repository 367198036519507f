from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from isoflop.errors import UserError
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.planner import make_plan
from isoflop.study import Hypothesis, Study, Variant, paper_study
from isoflop.tables import PLAN, read_table
from made_studies import micro

RICH_STUDY = micro(
    sizes={10**10: {"default": (1, 2), "mlp": (1,)}},
    variants=(Variant(arch="mlp/wide", family="mlp", overrides={"hidden_width": 99}),),
    archs=("mlp", "mlp/wide", "sgatlin"),
    hypotheses=(Hypothesis(id="H1", claim="wider is better", decide="multiplier > 1"),),
    seeds=(0, 1),
)


@pytest.mark.parametrize("study", [RICH_STUDY, paper_study((10**17,)), micro()])
def test_a_plan_survives_its_file(study: Study, tmp_path: Path) -> None:
    plan = make_plan(study)
    assert write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan


def test_flops_are_exact_integers_in_json_and_float64_in_parquet(tmp_path: Path) -> None:
    budget = 123_456_789_012_345_678_901
    plan = make_plan(dataclasses.replace(paper_study((budget,)), archs=("mlp",)))
    write_plan(plan, tmp_path)
    first = json.loads((tmp_path / "plan.json").read_text())["runs"][0]
    assert first["budget_flops"] == budget
    assert first["flops"] == plan.runs[0].flops
    schema = pq.read_schema(tmp_path / "plan.parquet")
    assert str(schema.field("flops").type) == "double"
    assert schema.metadata[b"isoflop_schema_version"] == b"1"
    rows = read_table(tmp_path / "plan.parquet", PLAN)
    assert [row["run_id"] for row in rows] == [run.run_id for run in plan.runs]
    assert rows[0]["est_gpu_hours"] is None
    assert rows[0]["epochs"] is None


def test_planning_again_changes_nothing(tmp_path: Path) -> None:
    plan = make_plan(micro())
    write_plan(plan, tmp_path)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    assert not write_plan(plan, tmp_path)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()} == before


def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    write_plan(make_plan(micro()), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match="isoflop extend"):
        write_plan(make_plan(micro(seeds=(3,))), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


Edit = Callable[[dict[str, Any]], None]


def _set(*keys: Any, to: Any) -> Edit:
    def edit(values: dict[str, Any]) -> None:
        inner: Any = values
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (_set("runs", 0, "flops", to=1), r"runs\[0\].flops = 1"),
        (_set("runs", 1, "run_id", to="0" * 64), r"runs\[1\].run_id"),
        (_set("runs", 0, "n_tokens", to=5), "n_tokens"),
        (_set("runs", 0, "n_params", to=5), "n_params"),
        (_set("runs", 0, "residual", to=0.5), "residual"),
        (_set("runs", 0, "epochs", to=None), "epochs"),
        (_set("runs", 0, "flops_per_token", "experts", to=1), "flops_per_token"),
        (_set("runs", 0, "spec", "steps", to=41), "must be"),
        (_set("runs", 0, "spec", "d_model", to=17), "must be"),
        (_set("runs", 0, "spec", "family", to="rnn"), "family = 'rnn'"),
        (_set("runs", 0, "surprise", to=1), "surprise"),
        (_set("runs", 0, "budget_flops", to="1e10"), "budget_flops"),
        (_set("runs", 0, to="run"), r"runs\[0\]"),
        (_set("schema_version", to=99), "schema version 1"),
        (_set("study", "convention", to="kaplan"), "convention = 'kaplan'"),
        (_set("study", "colour", to="red"), "colour"),
        (_set("num_train_tokens", to=0), "num_train_tokens"),
        (_set("extra", to=1), "exactly the keys"),
    ],
)
def test_a_plan_edited_into_an_inconsistent_state_is_refused(
    edit: Edit, named: str, tmp_path: Path
) -> None:
    write_plan(make_plan(micro()), tmp_path)
    path = tmp_path / "plan.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=named):
        read_plan(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"runs": []}', "\x00"])
def test_a_corrupt_plan_is_one_clear_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan = .*plan\.json") as caught:
        read_plan(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_plan_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="existing file"):
        read_plan(tmp_path)
    with pytest.raises(UserError, match="run `isoflop plan`"):
        read_plan(tmp_path / "nowhere")
