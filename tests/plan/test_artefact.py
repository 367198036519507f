from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from isoflop.errors import UserError
from isoflop.plan.artefact import read_plan, replace_plan, write_plan
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import describe_run
from isoflop.study import Hypothesis, Study, Variant, paper_study
from isoflop.tables import PLAN, read_table
from made_studies import Edit, check_edit_is_refused, micro, set_value

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
    assert schema.metadata[b"isoflop_schema_version"] == str(PLAN.version).encode()
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


def test_only_another_placement_replaces_the_plan(tmp_path: Path) -> None:
    plan = make_plan(micro())
    write_plan(plan, tmp_path)
    table = (tmp_path / "plan.parquet").read_bytes()
    elsewhere = make_plan(micro(placement={"cluster": "local", "workers": 1}))
    assert write_plan(elsewhere, tmp_path)
    assert read_plan(tmp_path) == elsewhere
    assert [run.run_id for run in elsewhere.runs] == [run.run_id for run in plan.runs]
    assert (tmp_path / "plan.parquet").read_bytes() == table
    assert not write_plan(elsewhere, tmp_path)


def test_a_folder_without_a_plan_is_told_what_to_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"with a plan\.json; run `isoflop plan STUDY\.toml`"):
            read_plan(folder)


def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    write_plan(make_plan(micro()), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match="isoflop extend"):
        write_plan(make_plan(micro(seeds=(3,))), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (set_value("runs", 0, "flops", to=1), r"runs\[0\].flops = 1"),
        (set_value("runs", 1, "run_id", to="0" * 64), r"runs\[1\].run_id"),
        (set_value("runs", 0, "n_tokens", to=5), "n_tokens"),
        (set_value("runs", 0, "n_params", to=5), "n_params"),
        (set_value("runs", 0, "residual", to=0.5), "residual"),
        (set_value("runs", 0, "epochs", to=None), "epochs"),
        (set_value("runs", 0, "flops_per_token", "experts", to=1), "flops_per_token"),
        (set_value("runs", 0, "spec", "steps", to=41), "must be"),
        (set_value("runs", 0, "spec", "d_model", to=17), "must be"),
        (set_value("runs", 0, "spec", "family", to="rnn"), "family = 'rnn'"),
        (set_value("runs", 0, "surprise", to=1), "surprise"),
        (set_value("runs", 0, "budget_flops", to="1e10"), "budget_flops"),
        (set_value("runs", 0, to="run"), r"runs\[0\]"),
        (set_value("schema_version", to=99), "schema version 2"),
        (set_value("study", "convention", to="kaplan"), "convention = 'kaplan'"),
        (set_value("study", "colour", to="red"), "colour"),
        (set_value("num_train_tokens", to=0), "num_train_tokens"),
        (
            set_value("extra", to=1),
            "with exactly the keys schema_version, .*, runs; restore it",
        ),
        (set_value("schema_version", to=None), "with exactly the keys"),
        (set_value("left_out", to=[1]), r"plan\.json: left_out.0 = 1: must be text"),
        (set_value("expected", to=[{"budget_flops": 1, "arch": "mlp", "size": 1.0}]), "0 entries"),
        (set_value("family_digests", to={"rnn": "0" * 64}), "family_digests"),
        (set_value("family_digests", to={"mlp": "0"}), "family_digests.mlp = '0'"),
        (set_value("runs", 0, "match_residual", to=0.0), r"runs\[0\].match_residual = 0.0"),
        (
            set_value("study", "seeds", to=[0, 1]),
            r"runs\[1\] = mlp size 2 seed 0 at 1e10: must be",
        ),
        (set_value("study", "seeds", to=[1]), "must be mlp size 1 seed 1 at 1e10"),
        (set_value("study", "sizes", to=[1]), r"runs\[1\]"),
        (set_value("study", "sizes", to=[1, 2, 3]), r"runs\[2\]"),
        (
            set_value("study", "budgets", to=[10**10, 10**11]),
            "= nothing: must be mlp size 1",
        ),
        (set_value("study", "budgets", to=[10**11]), "at 1e10: must be"),
        (set_value("study", "archs", to=["swiglu"]), r"runs\[0\].arch = 'mlp'"),
        (set_value("study", "recipe", to="paper-v1"), "spec.recipe = 'micro-v1'"),
        (set_value("study", "batch_size", to=2), "spec.batch_size = 4"),
        (set_value("study", "seq_len", to=64), "spec.seq_len = 32"),
        (set_value("study", "hypotheses", to=[{"id": "H"}]), "claim"),
        (
            lambda values: values["study"].pop("hypotheses"),
            r"plan\.json: study.hypotheses = None: must be given; restore it or plan again",
        ),
        (lambda values: values["study"].pop("placement"), "study.placement = None"),
        (lambda values: values["runs"].pop(), "= nothing: must be sgatlin size 2 seed 0"),
        (lambda values: values["runs"].append(values["runs"][0]), "must be nothing"),
        (lambda values: values["runs"].reverse(), "in the order budget, arch, size, seed"),
        (lambda values: values.update(runs=[]), "must be mlp size 1 seed 0 at 1e10"),
    ],
)
def test_a_plan_edited_into_an_inconsistent_state_is_refused(
    edit: Edit, named: str, tmp_path: Path
) -> None:
    check_edit_is_refused(micro(), edit, named, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"runs": []}', "\x00"])
def test_a_corrupt_plan_is_one_clear_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan = .*plan\.json") as caught:
        read_plan(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_variant_that_is_edited_away_from_its_runs_is_refused(tmp_path: Path) -> None:
    write_plan(make_plan(RICH_STUDY), tmp_path)
    path = tmp_path / "plan.json"
    values = json.loads(path.read_text())
    values["study"]["variants"][0]["overrides"]["hidden_width"] = 98
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="spec.hidden_width = 99: must be 98, as the study says"):
        read_plan(tmp_path)


def test_fewer_steps_than_the_budget_pays_for_are_refused(tmp_path: Path) -> None:
    plan = make_plan(micro())
    first = plan.runs[0]
    fewer = describe_run(
        dataclasses.replace(first.spec, steps=first.spec.steps - 1),
        arch=first.arch,
        size=first.size,
        budget_flops=first.budget_flops,
        convention=plan.study.convention,
        num_train_tokens=plan.num_train_tokens,
    )
    write_plan(dataclasses.replace(plan, runs=(fewer, *plan.runs[1:])), tmp_path)
    with pytest.raises(UserError, match=r"runs\[0\].spec.steps = .* as the budget pays for"):
        read_plan(tmp_path)


def test_a_number_of_another_kind_is_no_exact_count(tmp_path: Path) -> None:
    write_plan(make_plan(micro()), tmp_path)
    path = tmp_path / "plan.json"
    values = json.loads(path.read_text())
    values["runs"][0]["flops"] = float(values["runs"][0]["flops"])
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"runs\[0\].flops"):
        read_plan(tmp_path)


def test_an_auto_study_keeps_where_it_expected_its_optima(tmp_path: Path) -> None:
    plan = make_plan(micro(sizes="auto", archs=("mlp", "sgatlin")))
    write_plan(plan, tmp_path)
    assert len(plan.expected) == 2
    assert read_plan(tmp_path) == plan
    path = tmp_path / "plan.json"
    values = json.loads(path.read_text())
    values["expected"][1]["arch"] = "mlp"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"expected\[1\]"):
        read_plan(tmp_path)
    # It would be written again as 7.0.
    values["expected"][1] |= {"arch": "sgatlin", "size": 7}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="expected.1.size = 7: must be a number with a decimal"):
        read_plan(tmp_path)


def test_a_matched_study_keeps_its_residuals(tmp_path: Path) -> None:
    plan = make_plan(micro(match="active_params", archs=("mlp", "swiglu"), tolerance=0.1))
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    assert [run.match_residual for run in plan.runs] == [
        entry["match_residual"]
        for entry in json.loads((tmp_path / "plan.json").read_text())["runs"]
    ]


def test_replacing_a_plan_replaces_both_files(tmp_path: Path) -> None:
    write_plan(make_plan(micro()), tmp_path)
    other = make_plan(micro(seeds=(4,)))
    replace_plan(other, tmp_path)
    assert read_plan(tmp_path) == other
    seeds = {row["seed"] for row in read_table(tmp_path / "plan.parquet", PLAN)}
    assert seeds == {4}
