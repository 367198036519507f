from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isoflop.analysis.power import estimate_power
from isoflop.cli import main
from isoflop.cli.plan import design_table, power_lines, power_table
from isoflop.cli.tables import console
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.planner import make_plan
from isoflop.study import Variant, paper_study
from made_studies import micro


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = make_plan(micro(budgets=(10**10, 2 * 10**10), archs=("mlp", "sgatlin")))
    write_plan(plan, tmp_path / "p")
    return tmp_path / "p"


@pytest.mark.parametrize("verb", ["show", "diff", "extend"])
def test_help_fits_in_80_columns(verb: str) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80


def test_show_prints_the_plan(folder: Path) -> None:
    result = invoke("show", folder)
    assert result.exit_code == 0, result.output
    for run in read_plan(folder).runs:
        assert run.run_id[:12] in result.output
    assert "8 runs, " in result.output


def test_show_filters_and_sorts(folder: Path) -> None:
    result = invoke(
        "show", folder, "--arch", "sgatlin", "--budget", "1e10,2e10", "--sort", "n_params",
        "--descending",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if "sgatlin" in line]
    assert [row[3] for row in rows] == ["2", "2", "1", "1"]
    assert "4 of 8 rows" in result.output


def test_show_prints_one_run_whole(folder: Path) -> None:
    run = read_plan(folder).runs[-1]
    result = invoke("show", folder, run.run_id[:8])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["run", run.run_id] in lines
    for name, value in run.spec.to_json().items():
        if name != "config":
            assert [name, str(value)] in lines
    for name, value in run.spec.config.items():
        assert [name, str(value)] in lines
    assert ["training", "FLOPs", f"{run.flops:,}"] in lines
    shares = [float(line[2]) for line in lines if len(line) == 4 and line[3] == "%"]
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.05)
    assert shares[-1] == 100


def test_show_names_every_budget_of_a_shared_run(tmp_path: Path) -> None:
    plan = make_plan(micro(archs=("mlp",), sizes=(1,), budgets=(10**10, 10**10 + 10**4)))
    assert len(plan.unique_runs) == 1
    write_plan(plan, tmp_path)
    result = invoke("show", tmp_path, plan.runs[0].run_id[:6])
    assert result.output.count("mlp size 1 at 1e10") == 2


def test_estimates_are_called_estimates_and_explained(folder: Path) -> None:
    plain = invoke("show", folder, "--explain").output
    assert "time, memory and money: none" in plain
    assert "FLOPs: matrix products under the paper convention" in plain
    result = invoke("show", folder, "--hardware", "h100", "--explain")
    assert result.exit_code == 0, result.output
    assert "estimate on h100: " in result.output
    assert result.output.count("  h100: ") > 5
    run = read_plan(folder).runs[0].run_id
    one = invoke("show", folder, run, "--hardware", "h100", "--explain").output
    assert one.count("estimates") == 2
    assert "device-hours" in one


def test_the_prior_of_an_auto_study_is_explained(tmp_path: Path) -> None:
    write_plan(make_plan(micro(sizes="auto", archs=("mlp",))), tmp_path)
    assert "expected optima: " in invoke("show", tmp_path, "--explain").output


MISTAKES = {
    "unknown run": (["show", "p", "zz"], "run = 'zz'"),
    "no digits": (["show", "p", ""], "run = ''"),
    "run and filter": (["show", "p", "a", "--arch", "mlp"], "without filters"),
    "unknown arch": (["show", "p", "--arch", "rnn"], "--arch = rnn"),
    "unknown budget": (["show", "p", "--budget", "3e10"], "--budget = 3e10"),
    "no budget": (["show", "p", "--budget", "lots"], "--budget = lots"),
    "unknown size": (["show", "p", "--size", "5"], "--size = 5"),
    "no size": (["show", "p", "--size", "big"], "--size = big"),
    "unknown column": (["show", "p", "--sort", "colour"], "--sort = 'colour'"),
    "descending alone": (["show", "p", "--descending"], "--descending"),
    "unknown hardware": (["show", "p", "--hardware", "abacus"], "hardware = 'abacus'"),
    "show of nothing": (["show", "nowhere"], "nowhere"),
    "diff of nothing": (["diff", "p", "nowhere"], "nowhere"),
    "diff of no plan": (["diff", "p", "p/plan.parquet"], "plan.parquet"),
    "extend of nothing": (["extend", "nowhere", "--seeds", "1"], "nowhere"),
    "extend by nothing": (["extend", "p"], "--budgets, --seeds or --sizes"),
    "extend by words": (["extend", "p", "--seeds", "1,two"], "--seeds = 1,two"),
    "extend by an empty entry": (["extend", "p", "--sizes", "3,"], "--sizes = 3,"),
    "extend by a bad budget": (["extend", "p", "--budgets", "nan"], "--budgets = nan"),
    "extend by too little": (["extend", "p", "--budgets", "1e6"], "steps = "),
    "extend at no budget": (["extend", "p", "--sizes", "3", "--at", "1e9"], "--at = 1e9"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_exit_2_and_nothing_written(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = MISTAKES[name]
    monkeypatch.chdir(folder.parent)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_extend_grows_and_diff_says_by_what(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_bytes((folder / "plan.json").read_bytes())
    result = invoke("extend", folder, "--budgets", "4e10", "--seeds", "2,1", "--sizes", "3")
    assert result.exit_code == 0, result.output
    assert "8 runs unchanged, 0 changed, 46 added, 0 removed" in result.output
    assert "written to" in result.output
    study = json.loads((folder / "plan.json").read_text())["study"]
    assert (study["seeds"], study["sizes"]) == ([0, 2, 1], [1, 2, 3])
    again = invoke("extend", folder, "--seeds", "1")
    assert again.exit_code == 0
    assert "unchanged" in again.output

    forth, back = invoke("diff", old, folder), invoke("diff", folder, old)
    assert (forth.exit_code, back.exit_code) == (0, 0)
    assert "study.budgets: 1e10, 2e10 -> 1e10, 2e10, 4e10" in forth.output
    assert "+ 1e10 mlp size 1 seed 2: " in forth.output
    assert "- 1e10 mlp size 1 seed 2: " in back.output
    assert "+ … and 6 more" in forth.output
    assert "does not have: 0\n" in back.output
    assert "the same plan, 54 runs" in invoke("diff", folder, folder).output


def test_diff_names_the_fields_that_changed(folder: Path, tmp_path: Path) -> None:
    other = make_plan(
        micro(
            budgets=(10**10, 2 * 10**10),
            archs=("plain", "sgatlin"),
            variants=(Variant(arch="plain", family="mlp", overrides={}),),
            convention="paper+head",
            sizes=(1, 2),
        )
    )
    write_plan(other, tmp_path / "q")
    output = invoke("diff", folder, tmp_path / "q").output
    assert "study.convention: paper -> paper+head" in output
    assert "(steps)" in output
    assert "two conventions do not compare" in output


def test_diff_marks_the_same_training_under_another_label(folder: Path, tmp_path: Path) -> None:
    other = make_plan(
        micro(
            budgets=(10**10, 2 * 10**10),
            archs=("plain", "sgatlin"),
            variants=(Variant(arch="plain", family="mlp", overrides={}),),
        )
    )
    write_plan(other, tmp_path / "q")
    output = invoke("diff", folder, tmp_path / "q").output
    assert output.count("in both plans, under another label") == 8
    assert "does not have: 0\n" in output


def test_a_power_report_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    report = estimate_power(make_plan(paper_study((10**17, 10**18))))
    out = console()
    out.print(power_table(report))
    out.print(design_table(report))
    for line in power_lines(report):
        out.print(line, markup=False, soft_wrap=True)
    text = capsys.readouterr().out
    for word in ("exponent a ±", "reference", "one seed more", "× 2.00", "estimates", "assumes: "):
        assert word in text


def test_what_power_cannot_say_is_a_dash_and_not_a_zero(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = estimate_power(make_plan(paper_study((10**17,))))
    console().print(design_table(report))
    row = next(line for line in capsys.readouterr().out.splitlines() if "as planned" in line)
    assert row.split()[-2:] == ["-", "-"]
