from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from isoflop import __version__
from isoflop.cli import main
from isoflop.plan.artefact import read_plan
from isoflop.study import paper_study

VERBS = (
    "plan",
    "show",
    "diff",
    "extend",
    "run",
    "submit",
    "status",
    "logs",
    "cancel",
    "retry",
    "clean",
    "fit",
    "gate",
    "refine",
    "predict",
    "report",
    "interpret",
    "quickstart",
    "flops",
    "calibrate",
    "data",
)

HEAVY = ("torch", "pandas", "scipy", "matplotlib", "datasets")

MICRO_STUDY = """
[study]
name = "micro"
budgets = [1e9]
archs = ["mlp", "sgatlin"]
sizes = [1, 2]
recipe = "micro-v1"

[data]
seq_len = 32
batch_size = 4
"""


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def study_file(tmp_path: Path, text: str = MICRO_STUDY) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("code", "barred"),
    [
        ("main(['--help'])", (*HEAVY, "rich", "pydantic", "pyarrow", "numpy")),
        ("main(['plan', '--help'])", (*HEAVY, "rich", "pydantic", "pyarrow", "numpy")),
        ("main(['run', '--help'])", HEAVY),
        ("main(['plan', '--budgets', '1e17,1e18'])", HEAVY),
    ],
)
def test_light_commands_import_nothing_heavy(
    code: str, barred: tuple[str, ...], tmp_path: Path
) -> None:
    script = (
        "import sys, contextlib\n"
        "from isoflop.cli import main\n"
        f"with contextlib.suppress(SystemExit):\n    {code}\n"
        f"found = {set(barred)!r} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)


def test_help_fits_in_80_columns_and_lists_the_pipeline_in_order() -> None:
    text = invoke("--help").output
    assert max(map(len, text.splitlines())) <= 80
    verbs = [f"{verb} " for verb in VERBS]
    places = [text.index(f"\n  {verb}") for verb in verbs]
    assert places == sorted(places)
    for verb in (*VERBS, ("data", "fetch")):
        result = invoke(*([verb] if isinstance(verb, str) else verb), "--help")
        assert result.exit_code == 0
        assert max(map(len, result.output.splitlines())) <= 80


def test_version() -> None:
    assert __version__ in invoke("--version").output


def test_plan_needs_no_file(tmp_path: Path) -> None:
    result = invoke("plan", "--budgets", "1e17,1e18", "--out", tmp_path / "p")
    assert result.exit_code == 0, result.output
    for heading in ("run", "budget", "arch", "size", "params", "active", "non-emb", "tokens"):
        assert heading in result.output
    assert "47 runs" in result.output
    assert read_plan(tmp_path / "p").study == paper_study((10**17, 10**18))
    again = invoke("plan", "--budgets", "1e17,1e18", "--out", tmp_path / "p")
    assert again.exit_code == 0
    assert "unchanged" in again.output


def test_plan_goes_to_results_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("plan", study_file(tmp_path)).exit_code == 0
    assert {p.name for p in (tmp_path / "results" / "micro").iterdir()} == {
        "estimates.json",
        "plan.json",
        "plan.parquet",
    }


def test_budgets_override_those_of_a_study(tmp_path: Path) -> None:
    result = invoke("plan", study_file(tmp_path), "--budgets", "2e9", "--out", tmp_path / "p")
    assert result.exit_code == 0
    assert read_plan(tmp_path / "p").study.budgets == (2 * 10**9,)


MISTAKES = {
    "no study and no budgets": (["plan"], "--budgets = None"),
    "unordered budgets": (["plan", "--budgets", "1e18,1e17"], "budgets = 1e18, 1e17"),
    "not a number": (["plan", "--budgets", "lots"], "budgets = lots"),
    "an empty entry": (["plan", "--budgets", "1e17,"], "budgets"),
    "too small for one step": (["plan", "--budgets", "1e6"], "steps = 0"),
    "too few steps": (["plan", "--budgets", "1e13"], "1250 or more"),
    "no such study": (["plan", "none.toml"], "none.toml"),
    "no such folder": (["run", "nowhere"], "nowhere"),
    "status of nothing": (["status", "nowhere"], "nowhere"),
    "fit of nothing": (["fit", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_exit_2_and_nothing_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("isoflop: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


BAD_STUDIES = {
    "unknown key": ('name = "micro"', 'name = "micro"\ncolour = "red"', "study.colour"),
    "unknown arch": ('"mlp"', '"rnn"', "archs = 'rnn'"),
    "rung off the ladder": ("[1, 2]", "[1, 99]", "sizes = 99"),
    "experts not a square": (
        "[data]",
        '[[variant]]\narch = "x"\nfamily = "sgatlin"\noverrides = { num_experts = 101 }\n[data]',
        "num_experts = 101: must be a square",
    ),
    "too many neighbours": (
        "[data]",
        '[[variant]]\narch = "x"\nfamily = "sgatlin"\noverrides = { num_neighbours = 10 }\n[data]',
        "num_neighbours = 10: must be below the square root",
    ),
    "width and heads": (
        "[data]",
        '[[variant]]\narch = "x"\nfamily = "mlp"\noverrides = { n_heads = 3 }\n[data]',
        "d_model = 8: must be a multiple of 2",
    ),
    "missing corpus": ("[data]", '[data]\nsource = "sotu"', "isoflop data fetch sotu"),
    "unknown corpus": ("[data]", '[data]\nsource = "moon"', "moon"),
}


@pytest.mark.parametrize("name", BAD_STUDIES)
def test_a_bad_study_is_one_line_exit_2_and_nothing_written(name: str, tmp_path: Path) -> None:
    old, new, message = BAD_STUDIES[name]
    text = MICRO_STUDY.replace(old, new)
    if 'arch = "x"' in text:
        text = text.replace('"mlp", "sgatlin"', '"x"')
    result = invoke("plan", study_file(tmp_path, text), "--out", tmp_path / "p")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "p").exists()


def test_a_corrupt_plan_stops_every_verb(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    invoke("plan", study_file(tmp_path), "--out", folder)
    (folder / "plan.json").write_text((folder / "plan.json").read_text()[:100])
    before = sorted(p.name for p in folder.rglob("*"))
    for verb in ("run", "status", "fit"):
        result = invoke(verb, folder)
        assert result.exit_code == 2
        assert "must be valid JSON" in result.stderr
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_data_that_are_not_here_stop_run_but_not_plan(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    assert invoke("plan", "--budgets", "1e17", "--out", folder).exit_code == 0
    result = invoke("run", folder)
    assert result.exit_code == 2
    assert "slimpajama-627b" in result.stderr
    assert {p.name for p in folder.iterdir()} == {"estimates.json", "plan.json", "plan.parquet"}


def test_status_of_a_fresh_plan(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    invoke("plan", study_file(tmp_path), "--out", folder)
    result = invoke("status", folder)
    assert result.exit_code == 0
    mlp = next(line for line in result.output.splitlines() if "mlp" in line)
    assert mlp.split() == ["1e9", "mlp", "-", "-", "-", "-", "2"]


def test_fit_of_a_fresh_plan_says_that_nothing_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    invoke("plan", study_file(tmp_path), "--out", folder)
    result = invoke("fit", folder)
    assert result.exit_code == 0
    assert "Nothing to fit yet" in result.output
    assert "4 runs excluded: 4 missing" in result.output


def test_a_rule_that_no_machine_can_judge_is_named(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    rule = '[[hypothesis]]\nid = "{}"\nclaim = "c"\ndecide = "{}"\n'
    study.write_text(
        MICRO_STUDY
        + rule.format("H1", "multiplier(sgatlin, mlp) > 1")
        + rule.format("H2", "sgatlin wins")
    )
    result = invoke("plan", study, "--out", tmp_path / "p")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("hypothesis ")]
    assert [line.split(":")[0] for line in lines] == ["hypothesis H2"]


def verbs_of_a_folder() -> list[str]:
    """The verbs whose first argument is the folder of a plan."""
    found = []
    for verb in VERBS:
        command = main.get_command(None, verb)  # type: ignore[arg-type]
        assert command is not None
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        if arguments and arguments[0].human_readable_name in ("FOLDER", "FOLDER_OR_TABLE"):
            found.append(verb)
    return found


def test_a_study_file_where_its_folder_is_expected_is_answered_by_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(study_file(tmp_path, MICRO_STUDY).name)
    verbs = verbs_of_a_folder()
    assert {"run", "submit", "status", "fit", "report", "show", "cancel"} <= {*verbs}
    for verb in verbs:
        result = invoke(verb, file)
        assert result.exit_code == 2
        typed = f"type: isoflop plan {file}, then: isoflop {verb} results/micro"
        assert result.stderr.count("\n") == 1
        assert result.stderr.rstrip().endswith(typed), verb
    assert invoke("plan", file).exit_code == 0
    assert invoke("run", file).stderr.rstrip().endswith("; type: isoflop run results/micro")
    file.write_text("[study")
    assert "isoflop run results/NAME" in invoke("run", file).stderr


def test_a_misspelt_key_is_named_before_the_one_that_is_missing(tmp_path: Path) -> None:
    file = study_file(tmp_path, MICRO_STUDY.replace("archs =", "arch ="))
    result = invoke("plan", file, "--out", tmp_path / "p")
    assert result.stderr.startswith("isoflop: study.arch = ['mlp', 'sgatlin']: must be a known key")
    assert result.stderr.rstrip().endswith("; write archs")
    file.write_text(MICRO_STUDY.replace("[study]", "[studdy]"))
    assert "studdy" in invoke("plan", file, "--out", tmp_path / "p").stderr


def test_the_data_of_a_study_that_names_none_are_said(tmp_path: Path) -> None:
    said = "no source in [data]"
    file = study_file(tmp_path)
    result = invoke("plan", file, "--out", tmp_path / "p")
    assert f"{said} of {file}: sotu-embedded is taken" in " ".join(result.output.split())
    file.write_text(MICRO_STUDY + 'source = "sotu-embedded"\n')
    assert said not in invoke("plan", file, "--out", tmp_path / "q").output
    result = invoke("plan", file, "--budgets", "1e13", "--out", tmp_path / "r")
    assert "in sotu-embedded (what a study takes without a source in [data])" in result.stderr


def test_a_plan_of_which_no_run_fits_has_no_gpu_hours(tmp_path: Path) -> None:
    output = " ".join(invoke("plan", "--budgets", "1e25", "--out", tmp_path / "p").output.split())
    assert "estimate on h100: no run fits, so that there are no GPU-hours to tell;" in output
    assert " 0 GPU-hours" not in output


def test_a_verb_leaves_the_environment_of_its_process_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = dict(os.environ)
    CliRunner().invoke(main, ["show", "nowhere"])
    assert dict(os.environ) == before
