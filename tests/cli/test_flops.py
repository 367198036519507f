from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.flops import flops
from isoflop.errors import UserError
from isoflop.families import PATHS_VARIABLE
from isoflop.model.flop_gate import FlopCheck
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_studies import micro


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(flops, [str(a) for a in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    return result


def numbers(output: str, row: str) -> list[str]:
    (line,) = [line for line in output.splitlines() if line.split()[:1] == [row]]
    return line.split()[1:]


def test_the_ledger_of_a_rung() -> None:
    result = invoke("sgatlin", "--scale", "6", "--seq-len", "2048", "--vocab", "1000")
    assert result.exit_code == 0
    assert "width 768, 12 layers, 12 heads, 2048 tokens, vocabulary 1000" in result.output
    # 4·K·C·D per token and layer; both rows of 128 experts in bf16.
    assert numbers(result.output, "experts")[0] == "4,718,592"
    assert numbers(result.output, "experts")[-2:] == ["4,718,592", "1.00"]
    assert numbers(result.output, "head")[0] == f"{2 * 768 * 1000:,}"
    assert numbers(result.output, "attn_scores")[0] == f"{12 * 4 * 2048 * 768:,}"
    conventions = ("paper", "paper+head", "causal", "chinchilla", "6n", "6n_total")
    for name in conventions:
        assert int(numbers(result.output, name)[0].replace(",", "")) > 0
    assert numbers(result.output, "paper+head")[1] == "1.000"


def test_shares_add_up_and_options_are_obeyed() -> None:
    output = invoke("mlp", "--recipe", "micro-v1", "--convention", "causal").output
    names = ("attn_proj", "attn_scores", "experts", "router", "head", "norms")
    assert sum(float(numbers(output, name)[1]) for name in names) == pytest.approx(100, abs=0.4)
    assert "vocabulary 256" in output
    assert numbers(output, "causal")
    assert "chinchilla" not in output
    fp32 = invoke("peer", "--bytes-per-value", "4").output
    assert numbers(fp32, "experts")[-1] == "0.50"
    dense = invoke("sgatlin", "--set", "router=dense", "--set", "num_experts=37").output
    assert "num_experts=37" in dense
    assert "router=dense" in dense


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "must be a family \\(.*sgatlin.*\\) or a study"),
        (["mlp", "--scale", "0"], "--scale = 0: must be 1 or more"),
        (["mlp", "--recipe", "micro-v1", "--scale", "99"], "--scale = 99: must be a rung"),
        (["mlp", "--seq-len", "0"], "--seq-len = 0"),
        (["mlp", "--vocab", "-1"], "--vocab = -1"),
        (["mlp", "--bytes-per-value", "0"], "--bytes-per-value = 0"),
        (["mlp", "--convention", "kaplan"], "convention = 'kaplan'"),
        (["mlp", "--recipe", "none"], "recipe = 'none'"),
        (["mlp", "--set", "hidden_width"], "--set = 'hidden_width': must be FIELD=VALUE"),
        (["mlp", "--set", "colour=red"], "mlp.colour"),
        (["tests"], "a family, or a study with --check; add --check"),
    ],
)
def test_nonsense_gets_one_clear_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        invoke(*arguments)


def test_the_ledger_needs_no_torch() -> None:
    code = (
        "import sys, contextlib\n"
        "from isoflop.cli.flops import flops\n"
        "assert not {'rich', 'pydantic', 'numpy', 'torch'} & set(sys.modules)\n"
        "with contextlib.suppress(SystemExit):\n    flops(['sgatlin'])\n"
        "assert not {'torch', 'pydantic', 'pyarrow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_checking_a_study_file_and_its_folder(tmp_path: Path) -> None:
    study = micro(archs=("mlp", "sgatlin"), sizes=(1, 2))
    write_plan(make_plan(study), tmp_path / "micro")
    in_folder = invoke(tmp_path / "micro", "--check")
    path = tmp_path / "study.toml"
    path.write_text(
        '[study]\nname = "micro"\nbudgets = [1e10]\narchs = ["mlp", "sgatlin"]\nsizes = [1, 2]\n'
        'recipe = "micro-v1"\n[data]\nseq_len = 32\nbatch_size = 4\n'
    )
    in_file = invoke(path, "--check")
    assert in_folder.exit_code == in_file.exit_code == 0
    assert in_folder.output == in_file.output
    lines = in_file.output.splitlines()
    assert [line[:11] for line in lines[:-1]] == ["ok      mlp"] * 2 + ["ok      sga"] * 2
    assert lines[-1].startswith("4 shapes checked for 4 models")


def test_checking_a_family_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import isoflop.families.swiglu.spec as built_in

    monkeypatch.setenv(PATHS_VARIABLE, "")
    folder = tmp_path / "my_swiglu"
    folder.mkdir()
    for name in ("spec.py", "module.py"):
        (folder / name).write_text((Path(built_in.__file__).parent / name).read_text())
    assert invoke(folder, "--check").exit_code == 0
    assert "my_swiglu size 1" in invoke("my_swiglu").output


def test_a_difference_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(specs: list[object]) -> list[FlopCheck]:
        return [FlopCheck(spec=specs[0], flops_per_token=1, problem="head forward: 2")]  # type: ignore[arg-type]

    monkeypatch.setattr("isoflop.model.flop_gate.check_specs", differs)
    result = invoke("mlp", "--check")
    assert result.exit_code == 1
    assert "DIFFERS mlp hidden_width=256" in result.output
    assert result.output.splitlines()[0].endswith(": head forward: 2")
