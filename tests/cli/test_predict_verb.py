"""`isoflop predict` on a made study: looking, planning and registering, and the report's score."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from analysis.made_runs import parabola, study
from isoflop.analysis import FitOptions, fit_optima, select_points
from isoflop.analysis.compare.multipliers import compare_archs
from isoflop.analysis.predict import PREDICTIONS, SIZE_AXES
from isoflop.analysis.registered import check_open, read_registered
from isoflop.analysis.report import make_document
from isoflop.analysis.report.document import Section, Table
from isoflop.analysis.report.source import source_of
from isoflop.cli import main
from isoflop.errors import UserError
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.runs import PlannedRun
from isoflop.tables import RUNS, read_table, write_table
from made_listing import listing
from made_studies import micro

BUDGETS = (10**10, 3 * 10**10, 10**11)
NEW = 3 * 10**11


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def best_at(budget: float) -> float:
    return 6e3 * (budget / 1e10) ** 0.45


def loss_of(run: PlannedRun, offset: float = 0.0) -> float:
    excess = 1.4 * (run.budget_flops / 1e10) ** -0.12 * (0.97 if run.arch == "swiglu" else 1.0)
    profile = parabola(best_at(run.budget_flops), floor=1.2 + excess, bend=0.08 * excess)
    return profile(run.n_params) * (1 + random.Random(f"1 {run.run_id}").gauss(0, 5e-4)) + offset


def write_results(
    plan: Plan, folder: Path, loss: Callable[[PlannedRun], float | None] = loss_of
) -> None:
    """Write the table of a study whose run folders did not travel with it."""
    rows = []
    for run in plan.runs:
        value = loss(run)
        rows.append(
            {**dict.fromkeys(RUNS.names), **run.row()}
            | {"loss": value, "status": "missing" if value is None else "done", "n_attempts": 0}
            | ({} if value is None else {"n_attempts": 1})
        )
    write_table(folder / "runs.parquet", rows, RUNS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "study"
    sizes = (1, 2, 3, 4, 5, 6)
    plan = make_plan(
        micro(archs=("mlp", "swiglu"), budgets=BUDGETS, sizes=sizes, max_epochs=1000.0)
    )
    write_plan(plan, folder)
    write_results(plan, folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


def registered(folder: Path) -> list[dict[str, object]]:
    values = json.loads((folder / "predictions.json").read_text())["registered"]
    assert isinstance(values, list)
    return values


def test_looking_prints_a_table_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    before = listing(folder)
    done = invoke("predict", folder, "--budget", "3e11")
    assert done.exit_code == 0, done.output
    for words in (
        "N*",
        "D*",
        "loss",
        "multiplier",
        "3 ×",
        "95% prediction intervals",
        "3e11 FLOPs",
    ):
        assert words in done.output, words
    assert "No learning rate: there is no law of it" in done.output
    assert "Multiplier: compute that swiglu needs" in done.output
    assert listing(folder) == before
    out = tmp_path / "out"
    assert (
        invoke("predict", folder, "--budget", "3e11", "--arch", "mlp", "--out", out).exit_code == 0
    )
    rows = read_table(out / "predictions.parquet", PREDICTIONS)
    assert {row["arch"] for row in rows} == {"mlp"}
    (size,) = (row for row in rows if row["quantity"] == "n_params")
    assert size["pi_lo"] < best_at(NEW) < size["pi_hi"]
    (rate,) = (row for row in rows if row["quantity"] == "learning_rate")
    assert (rate["value"], rate["status"]) == (None, "no_law")
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--budget", "1.1e12"), "must be from 1e10 to 1e12, 10 times the largest budget"),
        (("--budget", "nan"), "--budget = "),
        (("--budget", "1e11,3e11"), "--budget = "),
        (("--budget", "3e11", "--arch", "moe"), "--arch = 'moe'"),
        (("--budget", "3e11", "--reference", "moe"), "--reference = 'moe'"),
        (("--budget", "3e11", "--plan", "--arch", "mlp"), "leave --arch out"),
        (("--budget", "1e11", "--plan"), "one of which no run has begun (12 runs have)"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    made: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = listing(made)
    done = invoke("predict", made, *arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert done.output.count("\n") == 1
    assert listing(made) == before


def test_a_table_is_predicted_but_has_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    rows = [row | {"flops": row["budget_flops"]} for row in study(("mlp",), num=7)]
    names = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss")
    noise = random.Random(0)
    lines = [",".join(names)]
    for row in rows:
        row["loss"] *= 1 + noise.gauss(0, 1e-4)
        lines.append(",".join(str(row[name]) for name in names))
    path.write_text("\n".join(lines))
    assert "power law with a floor" in invoke("predict", path, "--budget", "1e12").output
    refused = invoke("predict", path, "--budget", "1e12", "--plan")
    assert refused.exit_code == 2
    assert "must be for a study's folder" in refused.output
    assert [p.name for p in tmp_path.iterdir()] == ["runs.csv"]


def test_a_plan_gets_sizes_about_the_prediction_which_stays(folder: Path) -> None:
    before = read_plan(folder)
    done = invoke("predict", folder, "--budget", "3e11", "--plan")
    assert done.exit_code == 0, done.output
    grown = read_plan(folder)
    assert {run.run_id for run in before.runs} < {run.run_id for run in grown.runs}
    for arch in ("mlp", "swiglu"):
        added = [r for r in grown.runs if (r.arch, r.budget_flops) == (arch, NEW)]
        assert len(added) == 6
        sizes = [math.log(run.n_params / best_at(NEW)) for run in added]
        # Inside, and not at an end of the grid.
        assert sorted(sizes)[1] < 0 < sorted(sizes)[-2]
    (entry,) = registered(folder)
    assert (entry["budget_flops"], entry["reference"], entry["num_points"]) == (NEW, "swiglu", 36)
    again = listing(folder)
    refused = invoke("predict", folder, "--budget", "3e11", "--plan")
    assert refused.exit_code == 2
    assert "one that is registered stays" in refused.output
    assert refused.output.count("\n") == 1
    assert listing(folder) == again
    # Another budget is added behind it.
    assert invoke("predict", folder, "--budget", "2e11", "--plan").exit_code == 0
    assert registered(folder)[0] == entry
    assert registered(folder)[1]["budget_flops"] == 2 * 10**11


def test_cut_off_before_it_is_registered_the_same_command_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("isoflop.analysis.registered.write_json_atomic", _killed)
        assert invoke("predict", folder, "--budget", "3e11", "--plan").exit_code == 1
    assert not (folder / "predictions.json").exists()
    plan = read_plan(folder)
    assert NEW in plan.study.budgets
    assert invoke("predict", folder, "--budget", "3e11", "--plan").exit_code == 0
    assert read_plan(folder) == plan
    assert len(registered(folder)) == 1


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_no_prediction_is_registered_once_a_run_has_begun(folder: Path) -> None:
    assert invoke("extend", folder, "--budgets", "3e11").exit_code == 0
    plan = read_plan(folder)
    first = next(run.run_id for run in plan.runs if run.budget_flops == NEW)
    write_results(
        plan, folder, lambda run: loss_of(run) if run.budget_flops < NEW else _only(run, first)
    )
    before = listing(folder)
    done = invoke("predict", folder, "--budget", "3e11", "--plan")
    assert done.exit_code == 2
    assert "one of which no run has begun (1 run has)" in done.output
    assert listing(folder) == before


def _only(run: PlannedRun, run_id: str) -> float | None:
    return loss_of(run) if run.run_id == run_id else None


def test_a_ladder_that_ends_too_early_is_said_before_anything_is_written(folder: Path) -> None:
    before = read_plan(folder)
    # A steep law: the optimum is far up the ladder, and beyond it at ten times the budget.
    write_results(
        before,
        folder,
        lambda run: (
            parabola(5e3 * (run.budget_flops / 1e10) ** 0.95, floor=_floor(run), bend=0.05)(
                run.n_params
            )
            * (1 + random.Random(run.run_id).gauss(0, 1e-4))
        ),
    )
    there = listing(folder)
    done = invoke("predict", folder, "--budget", "1e12", "--plan")
    assert done.exit_code == 2
    assert "within the ladder of mlp under recipe micro-v1 (size 8 has 197k)" in done.output
    assert listing(folder) == there


def _floor(run: PlannedRun) -> float:
    return 1.2 + 1.4 * (run.budget_flops / 1e10) ** -0.12


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema_version": 2, "registered": []}',
        '{"schema_version": 1, "registered": [{}]}',
        '{"schema_version": 1, "registered": [], "more": 1}',
        '{"schema_version": 1, "registered": NaN}',
    ],
)
def test_a_damaged_file_is_one_line_and_never_written_over(folder: Path, text: str) -> None:
    path = folder / "predictions.json"
    path.write_text(text)
    done = invoke("predict", folder, "--budget", "3e11", "--plan")
    assert done.exit_code == 2, done.output
    assert "predictions.json" in done.output
    assert done.output.count("\n") == 1
    with pytest.raises(UserError, match=r"predictions\.json"):
        source_of(folder / "runs.parquet", [], folder)
    assert path.read_text() == text
    assert read_plan(folder).study.budgets == BUDGETS


ROW = {
    **{"arch": "mlp", "budget_flops": 3e11, "quantity": "loss", "value": 2.0, "pi_lo": 1.9},
    **{"pi_hi": 2.1, "ratio": 3.0, "law": "a law", "status": "ok", "confidence": 0.95},
    **{"method": "parabola", "n_points": 3, "n_boot": 10, "n_failed": 0},
}
ENTRY = {
    **{"budget_flops": NEW, "registered_at": 1.0, "isoflop": "0", "reference": None},
    **{"num_points": 3, "points_sha256": "0" * 64},
}


@pytest.mark.parametrize(
    ("row", "entry", "said"),
    [
        ({"value": 10**400}, {}, "must be a finite number"),
        ({"budget_flops": 10**400}, {}, "must be the entry's"),
        ({"budget_flops": 1e11}, {}, "must be the entry's"),
        ({"quantity": "taste"}, {}, "quantity"),
        ({"value": "2"}, {}, "value"),
        ({}, {"budget_flops": 10**400}, "budget_flops"),
        ({}, {"predictions": []}, "predictions"),
        ({}, {"registered_at": 1e300}, "registered_at"),
        ({}, {"points_sha256": "x"}, "points_sha256"),
        ({}, {"num_points": 0}, "num_points"),
    ],
)
def test_a_registered_prediction_that_is_none_is_refused_by_name(
    tmp_path: Path, row: dict[str, object], entry: dict[str, object], said: str
) -> None:
    entries = [ENTRY | {"predictions": [ROW | row]} | entry]
    (tmp_path / "predictions.json").write_text(
        json.dumps({"schema_version": 1, "registered": entries})
    )
    with pytest.raises(UserError, match=said) as caught:
        read_registered(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "predictions.json"))


def test_a_budget_that_no_float_holds_exactly_is_read_again(tmp_path: Path) -> None:
    entries = [ENTRY | {"budget_flops": 10**23, "predictions": [ROW | {"budget_flops": 1e23}]}]
    (tmp_path / "predictions.json").write_text(
        json.dumps({"schema_version": 1, "registered": entries})
    )
    (entry,) = read_registered(tmp_path)
    assert entry.budget_flops == 10**23
    with pytest.raises(UserError, match="one that is registered stays"):
        check_open(tmp_path, 10**23, [])
    begun = {"budget_flops": 1e23 * 2, "status": "missing", "n_attempts": 1}
    with pytest.raises(UserError, match="1 run has"):
        check_open(tmp_path, 2 * 10**23, [begun])


def test_a_link_in_its_place_is_not_followed(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim.json"
    victim.write_text('{"schema_version": 1, "registered": []}')
    (folder / "predictions.json").symlink_to(victim)
    done = invoke("predict", folder, "--budget", "3e11", "--plan")
    assert done.exit_code == 2
    assert "a symbolic link" in done.output
    assert victim.read_text() == '{"schema_version": 1, "registered": []}'
    assert read_plan(folder).study.budgets == BUDGETS


def test_the_report_scores_what_was_registered(folder: Path) -> None:
    assert "predictions" not in sections_of(folder)
    assert invoke("predict", folder, "--budget", "3e11", "--plan").exit_code == 0
    # Nothing is measured yet.
    sentence, _, origin = sections_of(folder)["predictions"].blocks
    assert "Not measured: 7." in str(sentence)
    assert "intervals held" not in str(sentence)
    assert "from 36 runs" in str(origin)
    plan = read_plan(folder)
    write_results(plan, folder)
    sentence, table, _ = sections_of(folder)["predictions"].blocks
    assert "7 of 7 intervals held what was measured." in str(sentence), table
    # The losses of one family are off by far more than its interval, and with them its multiplier.
    write_results(
        plan,
        folder,
        lambda run: loss_of(run, 0.1 if run.budget_flops == NEW and run.arch == "mlp" else 0.0),
    )
    sentence, table, _ = sections_of(folder)["predictions"].blocks
    assert "5 of 7 intervals held what was measured." in str(sentence), table
    assert isinstance(table, Table)
    missed = [tuple(cell.text for cell in row) for row in table.rows if row[-1].text == "no"]
    assert [(row[0], row[2]) for row in missed] == [("mlp", "loss"), ("mlp", "multiplier")]


def sections_of(folder: Path) -> dict[str, Section]:
    """Return the sections of a report on what `isoflop report` would need of a fit."""
    path = folder / "runs.parquet"
    rows = read_table(path, RUNS)
    options = FitOptions(n_boot=50)
    fits = fit_optima(select_points(rows), options, methods=(options.method,), axes=SIZE_AXES)
    fits = replace(fits, compare=compare_archs(fits, ["flops"]))
    document = make_document(fits, source_of(path, rows, folder))
    return {section.key: section for section in document.sections}
