from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.families import PATHS_VARIABLE
from isoflop.families.mlp import spec as mlp
from isoflop.numbers import format_flops
from isoflop.study import Study, parse_flops
from isoflop.study.file import load_study, study_from_toml
from isoflop.validate import validated

MINIMAL: dict[str, Any] = {"study": {"name": "s", "budgets": [1e17], "archs": ["mlp"]}}


def _with(section: str, **values: Any) -> dict[str, Any]:
    return MINIMAL | {section: MINIMAL.get(section, {}) | values}


def test_everything_has_a_default_but_name_budgets_and_archs() -> None:
    assert study_from_toml(MINIMAL) == Study(name="s", budgets=(10**17,), archs=("mlp",))
    for key in ("name", "archs"):
        section = {k: v for k, v in MINIMAL["study"].items() if k != key}
        with pytest.raises(UserError, match=f"study.{key} = None: must be given; add it"):
            study_from_toml({"study": section})
    with pytest.raises(UserError, match="budgets = \\[\\]: must be one budget .* \\(or epochs\\)"):
        study_from_toml({"study": {"name": "s", "archs": ["mlp"]}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_with("study", colour="red"), "study.colour = 'red': must be a known key"),
        (MINIMAL | {"training": {}}, "training = {}: must be a known key"),
        (_with("study", budgets=[]), "budgets = \\[\\]"),
        (_with("study", budgets=[-1e17]), "study.budgets.0 = -1e\\+17: must be a positive"),
        (_with("study", budgets=[True], colour="red"), "study.colour = 'red'"),
        (_with("study", name=date(2024, 1, 2)), "study.name = datetime.date.*: must be text in"),
        (_with("study", int=1), "study.int = 1: must be a known key \\(name, .*; remove it"),
        (MINIMAL | {"str": 1}, "^str = 1: must be a known key \\(study, .*; remove it"),
        (_with("study", sizes={"1e17": {"int": ["x"]}}), "study.sizes.1e17.int.0 = 'x'"),
        (_with("study", budgets=[1e18, 1e17]), "budgets = 1e18, 1e17: must be ascending"),
        (_with("study", budgets=[1e17, 1e17]), "budgets = 1e17, 1e17: must be ascending"),
        (_with("study", epochs=[1]), "budgets = \\['1e17'\\]: must be left out where epochs"),
        (
            _with("study", learning_rates={"moe": 1e-3}),
            "learning_rates = 'moe': must be one of mlp",
        ),
        (_with("study", learning_rates={"mlp": 0}), "learning_rates.mlp = 0.0: must be a number"),
        (_with("study", learning_rates={"mlp": float("nan")}), "learning_rates.mlp = nan"),
        (_with("study", recipe="micro-v2@lr=0.006"), "recipe = 'micro-v2@lr=0.006': must be paper"),
        (_with("study", archs=[]), "archs = \\[\\]"),
        (_with("study", archs=["rnn"]), "archs = 'rnn': must be one of mlp, moe"),
        (_with("study", archs=["mlp", "mlp"]), "archs = 'mlp': must be named once"),
        (_with("study", convention="kaplan"), "convention = 'kaplan'"),
        (
            _with("study", recipe="big-v9"),
            "recipe = 'big-v9': must be paper-v1 or micro-v1 or micro-v2",
        ),
        (
            _with("study", match="width"),
            "match = 'width': must be one of ladder, flops_per_token, active_params",
        ),
        (_with("study", match_reference="rnn"), "match_reference = 'rnn': must be one of mlp"),
        (_with("study", tolerance=0), "tolerance = 0.0: must be a number above 0"),
        (
            _with("study", tolerance=0.9),
            "tolerance = 0.9: must be a number above 0 and at most 0.5",
        ),
        (_with("study", sizes="all"), "sizes = 'all': must be rungs such as"),
        (_with("study", sizes="auto", num_sizes=2), "num_sizes = 2: must be 3 or more"),
        (_with("study", num_sizes=5), 'num_sizes = 5: must be left out unless sizes = "auto"'),
        (_with("data", max_epochs=0), "data.max_epochs = 0.0: must be a number above 0"),
        (_with("families", paths=["nowhere"]), "families.paths = 'nowhere'"),
        (
            MINIMAL | {"hypothesis": [{"id": "H", "claim": "c", "decide": " "}]},
            "hypothesis.decide = ' ': must be given",
        ),
        (
            MINIMAL | {"hypothesis": [{"id": "H", "claim": "c", "decide": "d"}] * 2},
            "hypothesis.id = 'H': must be used once",
        ),
        (_with("study", keep_weights="some"), "keep_weights = 'some'"),
        (_with("study", seeds=[-1]), "seeds = -1: must be 0 or more"),
        (_with("study", seeds=[1, 1]), "seeds = \\[1, 1\\]: must be distinct"),
        (_with("study", sizes=[0]), "sizes = 0: must be 1 or more"),
        (_with("study", sizes={"1e18": [1]}), "sizes = '1e18': must be a budget \\(1e17\\)"),
        (_with("study", sizes={"1e17": {"peer": [1]}}), "sizes = 'peer': must be one of mlp"),
        (_with("study", sizes={"1e17": {}}), "sizes at 1e17 = None: must be given for mlp"),
        (_with("study", name="../up"), "name = '../up'"),
        (_with("data", seq_len=0), "data.seq_len = 0: must be 1 or more"),
        (_with("data", batch_size="16"), "data.batch_size = '16'"),
        (_with("placement", cluster="mars"), "placement.cluster = 'mars': .*isoflop submit"),
        (MINIMAL | {"variant": [{"arch": "mlp", "family": "mlp"}]}, "a label of its own"),
        (MINIMAL | {"variant": [{"arch": "a\x1b", "family": "mlp"}]}, "without control characters"),
        (MINIMAL | {"variant": [{"arch": "x", "family": "rnn"}]}, "family of variant x = 'rnn'"),
    ],
)
def test_a_mistake_is_one_clear_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        study_from_toml(values)
    assert "\n" not in str(caught.value)


def test_a_study_survives_json() -> None:
    study = study_from_toml(
        _with("study", sizes={"1e17": {"default": [2], "mlp": [1, 3]}}, seeds=[3, 1])
        | {
            "variant": [{"arch": "x", "family": "sgatlin", "overrides": {"router": "dense"}}],
            "hypothesis": [{"id": "H", "claim": "c", "decide": "d"}],
            "data": {"seq_len": 64, "batch_size": 8, "max_epochs": 1.5},
        }
    )
    assert validated(Study, study.to_json()) == study


@pytest.mark.parametrize("match", ["ladder", "flops_per_token", "active_params"])
def test_matching_and_auto_sizes_survive_json(match: str) -> None:
    changes = {"match": match, "match_reference": "swiglu", "tolerance": 0.02}
    study = study_from_toml(_with("study", sizes="auto", num_sizes=5, **changes))
    assert (study.sizes, study.num_sizes, study.max_epochs) == ("auto", 5, 4)
    again = validated(Study, json.loads(json.dumps(study.to_json())))
    assert again == study
    # The very same text, so that planning again recognises the plan that is there.
    assert json.dumps(again.to_json()) == json.dumps(study.to_json())


def test_a_study_of_an_earlier_version_gets_the_defaults() -> None:
    frozen = study_from_toml(MINIMAL).to_json()
    for key in ("num_sizes", "match_reference", "tolerance", "max_epochs", "family_paths"):
        del frozen[key]
    assert validated(Study, frozen) == study_from_toml(MINIMAL)


def test_family_folders_are_named_relative_to_the_study_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    folder = tmp_path / "experiments" / "wide"
    folder.mkdir(parents=True)
    source = Path(mlp.__file__)
    (folder / "spec.py").write_bytes(source.read_bytes())
    (folder / "module.py").write_bytes(source.with_name("module.py").read_bytes())
    file = tmp_path / "experiments" / "s.toml"
    file.write_text(
        '[study]\nname = "s"\nbudgets = [1e17]\narchs = ["mlp", "wide"]\n'
        '[families]\npaths = ["wide"]\n'
    )
    monkeypatch.chdir(tmp_path)
    study = load_study(Path("experiments/s.toml"))
    # Below the current folder the path is kept relative: a plan reads the same in any copy.
    assert study.family_paths == ("experiments/wide",)
    assert validated(Study, study.to_json()) == study
    monkeypatch.chdir(tmp_path / "experiments")
    assert load_study(Path("s.toml")).family_paths == ("wide",)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_study(file).family_paths == (str(folder),)


@pytest.mark.parametrize("typed", ["1e17", 1e17, "100000000000000000", 10**17, " 1E17 ", "1.0e17"])
def test_flops_are_exact_however_they_are_typed(typed: object) -> None:
    assert parse_flops(typed) == 10**17


@given(digit=st.integers(1, 9), exponent=st.integers(0, 26))
def test_a_float_means_the_decimal_that_was_typed(digit: int, exponent: int) -> None:
    # int(1e23) is 99999999999999991611392; a person who types 1e23 means 10^23.
    typed = f"{digit}e{exponent}"
    assert parse_flops(float(typed)) == parse_flops(typed) == digit * 10**exponent
    assert parse_flops(format_flops(digit * 10**exponent)) == digit * 10**exponent


@pytest.mark.parametrize(
    "typed", ["", "1e41", -1, 0, "1e17 FLOPs", None, True, [1], float("nan"), 1.5]
)
def test_nonsense_flops_are_refused(typed: object) -> None:
    with pytest.raises(UserError, match="must be a positive whole number of FLOPs"):
        parse_flops(typed)


def test_files_that_are_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be an existing study file"):
        load_study(tmp_path / "none.toml")
    with pytest.raises(UserError, match="must be an existing study file"):
        load_study(tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_text("[study\n")
    with pytest.raises(UserError, match="must be valid TOML"):
        load_study(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="must be readable text"):
        load_study(bad)
