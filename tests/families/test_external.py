"""Families from outside: a bilinear feed-forward in a folder or an installed package."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from isoflop.errors import UserError
from isoflop.families import (
    PATHS_VARIABLE,
    _external,
    _registry,
    add_family_folder,
    config_from_mapping,
    ensure_gated,
    family_digest,
    family_names,
    get_build,
    get_routing,
    get_spec,
    is_family,
)
from isoflop.model import build_model, next_token_loss
from isoflop.model.flop_gate import check_family, main
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import run_ledger
from isoflop.spec import LATER_SPEC_FIELDS, RunSpec
from made_family import HEAVY_SUM, TRUE_SUM, UNCOUNTED_SUM, write_family, write_low_rank_family
from made_shapes import rung_spec
from made_studies import micro


@pytest.fixture(autouse=True)
def _no_other_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Set, so that what a test adds is taken back after it.
    monkeypatch.setenv(PATHS_VARIABLE, "")


@pytest.fixture
def bilinear(tmp_path: Path) -> Path:
    folder = write_family(tmp_path / "bilinear")
    assert add_family_folder(folder) == "bilinear"
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("bilinear")
def test_a_family_in_a_folder_plans_counts_and_trains_a_step() -> None:
    assert "bilinear" in family_names()
    plan = make_plan(micro(archs=("mlp", "bilinear")))
    runs = [run for run in plan.runs if run.arch == "bilinear"]
    assert len(runs) == 2
    spec = runs[0].spec
    assert spec.config == {"hidden_width": 16, "mix": "product"}
    model = build_model(spec)
    assert sum(p.numel() for p in model.parameters()) == run_ledger(spec).num_params
    tokens = torch.randint(2, 256, (2, 8), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = next_token_loss(model(tokens), tokens)
    before.backward()
    optimizer.step()
    assert next_token_loss(model(tokens), tokens) < before


@pytest.mark.slow
@pytest.mark.usefixtures("bilinear")
def test_processes_that_a_study_starts_know_the_family_and_plan_without_torch() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from isoflop.families import get_spec, family_digest, ensure_gated\n"
        "get_spec('bilinear'); family_digest('bilinear'); ensure_gated('bilinear')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_family_is_not_known_without_its_path(tmp_path: Path) -> None:
    write_family(tmp_path / "bilinear")
    assert not is_family("bilinear")
    with pytest.raises(UserError, match="family = 'bilinear': must be one of .*mlp"):
        get_spec("bilinear")


def test_relative_paths_and_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bilinear: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    add_family_folder(Path("bilinear"))
    assert os.environ[PATHS_VARIABLE] == str(bilinear.resolve())
    write_family(tmp_path / "other_one")
    add_family_folder(Path("other_one"))
    assert {"bilinear", "other_one"} <= set(family_names())


@pytest.mark.parametrize(
    ("name", "remove", "message"),
    [
        ("bilinear", "spec.py", r"no spec\.py"),
        ("bilinear", "module.py", r"no module\.py"),
        ("bi-linear", None, "letters, digits and _"),
        ("_hidden", None, "letters, digits and _"),
        ("mlp", None, "a name no other family has"),
    ],
)
def test_an_impossible_folder_is_refused(
    tmp_path: Path, name: str, remove: str | None, message: str
) -> None:
    folder = write_family(tmp_path / name)
    if remove:
        (folder / remove).unlink()
    with pytest.raises(UserError, match=message):
        add_family_folder(folder)
    assert os.environ[PATHS_VARIABLE] == ""


@pytest.mark.usefixtures("bilinear")
def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a name no other family has"):
        add_family_folder(write_family(tmp_path / "elsewhere" / "bilinear"))


@pytest.mark.parametrize(
    ("extra", "mix", "message"),
    [
        ("2", TRUE_SUM, r"feedforward \(experts \+ router\) forward: torch counts"),
        ("0", UNCOUNTED_SUM, "not counted: aten::mv"),
        ("0", HEAVY_SUM, "feedforward"),
    ],
)
def test_a_lying_ledger_is_found(tmp_path: Path, extra: str, mix: str, message: str) -> None:
    add_family_folder(write_family(tmp_path / "liar", extra=extra, mix=mix))
    # What only one word does is seen when that word is to be planned.
    first, second, planned = check_family("liar", [{"hidden_width": 4096, "mix": "sum"}])
    assert planned.problem is not None
    assert re.match(message, planned.problem)
    assert (first.problem is None) == (second.problem is None) == (extra == "0")


def test_a_lying_ledger_is_refused_before_it_is_planned(tmp_path: Path) -> None:
    add_family_folder(write_family(tmp_path / "liar", mix="missing_name"))
    spec = rung_spec("liar", 1, "micro-v1", config={"hidden_width": 7, "mix": "sum"})
    with pytest.raises(UserError, match="run \\(NameError: name 'missing_name' is not ") as caught:
        ensure_gated("liar", spec)
    assert f"isoflop flops {tmp_path / 'liar'} --check" in str(caught.value)


BROKEN_SPECS = {
    "ladder raises": ("recipe.shape(size)", "recipe.width(size)", "ladder works (AttributeError"),
    "ledger raises": ("d_model * config.hidden_width", "1 // 0", "line 20 of spec.py"),
    "Config refuses": ('("product", "sum")', '("sum",)', "ladder works (ValueError: product"),
    "Config is no dataclass": ("@dataclass(frozen=True, kw_only=True)", "", "frozen dataclass"),
    "unknown component": ('"experts"', '"ffn"', "experts or router for component 'ffn'"),
    "unknown count": ("num_active_params=params", "num_active=params", "argument 'num_active'"),
    "a float": ("2 * params", "2.0 * params", "whole number (divide by //) for flops_per_token"),
    "not components": ("return (\n", "return params, (\n", "a tuple of Component"),
    "no such field": ('"hidden_width",)', '"width",)', "free_dimension 'width'"),
    "not a Config": ("return Config(", "return dict(", "a Config for what ladder returns"),
}


@pytest.mark.parametrize("name", BROKEN_SPECS)
def test_a_broken_spec_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    old, new, message = BROKEN_SPECS[name]
    folder = write_family(tmp_path / "broken")
    text = (folder / "spec.py").read_text()
    assert text.count(old) == 1
    (folder / "spec.py").write_text(text.replace(old, new))
    add_family_folder(folder)
    with pytest.raises(UserError) as caught:
        make_plan(micro(archs=("broken",)))
    assert message in str(caught.value)
    assert str(caught.value).startswith("family broken = 'spec.py': must be one ")


@pytest.mark.usefixtures("bilinear")
def test_a_plain_value_error_of_a_configuration_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"bilinear configuration = hidden_width=4, mix='dot'"):
        config_from_mapping("bilinear", {"hidden_width": 4, "mix": "dot"})


LOW_RANK = {"archs": ("low_rank",), "recipe": "micro-v2", "budgets": (10**11,), "max_epochs": 1e3}


def test_a_module_that_leaves_its_ledger_at_the_largest_rung_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_family_folder(write_low_rank_family(tmp_path / "low_rank"))
    assert all(check.problem is None for check in check_family("low_rank"))
    gated: list[RunSpec] = []
    monkeypatch.setattr(
        "isoflop.plan.planner.ensure_gated", lambda name, *specs: gated.extend(specs)
    )
    make_plan(micro(sizes=(2, 4, 10), **LOW_RANK))
    assert [spec.config["rank"] for spec in gated] == [3, 7]
    smallest, largest = (json.dumps(spec.to_json()) for spec in gated)
    assert main(["low_rank", smallest]) == 0
    assert main(["low_rank", smallest, largest]) == 1
    assert "feedforward (experts + router) forward: torch counts" in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_not_planned_and_what_passed_is_not_gated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add_family_folder(write_low_rank_family(tmp_path / "low_rank"))
    with pytest.raises(UserError, match="family = 'low_rank'.*torch counts"):
        make_plan(micro(sizes=(2, 10), **LOW_RANK))
    runs = make_plan(micro(sizes=(2, 9), **LOW_RANK)).runs
    _external._problems.cache_clear()
    monkeypatch.setattr(_external, "_run_gate", lambda name, specs: ("it was gated again",))
    assert make_plan(micro(sizes=(2, 9), **LOW_RANK)).runs == runs
    (tmp_path / folder / "more.py").write_text("")
    with pytest.raises(UserError, match="it was gated again"):
        make_plan(micro(sizes=(2, 9), **LOW_RANK))


@pytest.mark.slow
def test_a_changed_source_is_gated_again(bilinear: Path) -> None:
    ensure_gated("bilinear")
    write_family(bilinear, extra="1")
    with pytest.raises(UserError, match="torch counts"):
        ensure_gated("bilinear")


def test_a_family_that_never_comes_back_is_refused(
    bilinear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bilinear / "module.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(_external, "_TIMEOUT_S", 0.2)
    with pytest.raises(UserError, match=r"the gate took more than 0\.2 s"):
        ensure_gated("bilinear")


def test_built_in_families_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_external, "_problems", None)
    ensure_gated("sgatlin", rung_spec("sgatlin", 1, "micro-v1"))


def test_the_digest_is_of_the_sources_and_not_of_their_place(
    tmp_path: Path, bilinear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert family_digest("mlp") is None
    first = family_digest("bilinear")
    assert first is not None
    assert len(first) == 64
    (bilinear / "notes.txt").write_text("not a source")
    assert family_digest("bilinear") == first
    monkeypatch.setenv(PATHS_VARIABLE, str(write_family(tmp_path / "moved" / "bilinear")))
    assert family_digest("bilinear") == first
    (bilinear / "more.py").write_text("")
    monkeypatch.setenv(PATHS_VARIABLE, str(bilinear))
    assert family_digest("bilinear") != first


def test_broken_code_is_the_users_mistake(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "broken")
    (folder / "spec.py").write_text("import no_such_package")
    (folder / "module.py").write_text("x = 1")
    add_family_folder(folder)
    with pytest.raises(UserError, match="family broken = 'spec.py'.*no_such_package"):
        get_spec("broken")
    with pytest.raises(UserError, match="family broken = 'module.py': must be one with build"):
        get_build("broken")
    with pytest.raises(UserError, match="no_such_package"):
        ensure_gated("broken")
    half = write_family(tmp_path / "half")
    (half / "spec.py").write_text("Config = free_dimension = ledger = None")
    add_family_folder(half)
    with pytest.raises(UserError, match="one with ladder"):
        get_spec("half")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with an entry point, as an installer leaves it."""
    site = tmp_path / "site"
    package = write_family(site / "some_package" / "layers")
    (package / "__init__.py").write_text("")
    (site / "some_package" / "__init__.py").write_text("")
    info = site / "some_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[isoflop.families]\nbilinear_installed = some_package.layers\nmlp = some_package.layers\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    _registry._installed.cache_clear()
    yield package
    _registry._installed.cache_clear()


@pytest.mark.slow
def test_an_installed_package_brings_a_family(installed: Path) -> None:
    assert "bilinear_installed" in family_names()
    config = config_from_mapping("bilinear_installed", {"hidden_width": 6})
    assert sum(p.numel() for p in get_build("bilinear_installed")(config, 4).parameters()) == 72
    assert get_spec("mlp").__name__ == "isoflop.families.mlp.spec"
    (run,) = make_plan(micro(archs=("bilinear_installed",), sizes=(1,))).runs
    assert run.spec.family == "bilinear_installed"
    before = family_digest("bilinear_installed")
    write_family(installed, extra="1")
    assert family_digest("bilinear_installed") != before


@pytest.mark.usefixtures("bilinear")
def test_a_runs_identity_holds_the_familys_name_and_shape_only() -> None:
    config = {"hidden_width": 16, "mix": "product"}
    (built_in,) = make_plan(micro(archs=("mlp",), sizes=(1,))).runs
    spec = dataclasses.replace(built_in.spec, family="bilinear", config=config)
    fields = {f.name for f in dataclasses.fields(RunSpec)} - set(LATER_SPEC_FIELDS)
    assert set(spec.to_json()) == fields
    assert RunSpec.from_json(spec.to_json()) == spec
    assert run_ledger(spec).component("experts").num_params == 2 * 3 * spec.d_model * 16


def test_what_routing_returns_is_checked(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "bilinear")
    spec = folder / "spec.py"
    spec.write_text(spec.read_text() + "\n\ndef routing(config):\n    return config.hidden_width\n")
    add_family_folder(folder)
    with pytest.raises(UserError, match=r"spec.py: .*a Routing, or None,|Routing"):
        get_routing("bilinear", {"hidden_width": 16})


def test_a_family_that_says_nothing_of_routing_has_none(bilinear: Path) -> None:
    assert get_routing("bilinear", {"hidden_width": 16}) is None
