from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.families import config_from_mapping, get_spec
from isoflop.files import canonical_json
from isoflop.plan.planner import make_plan
from isoflop.recipe import MICRO_V1
from isoflop.spec import LATER_FIELDS, RunSpec, run_id
from isoflop.study import PAPER_ARCHS, Hypothesis, Study, Variant
from made_studies import micro

SPEC = RunSpec(
    family="sgatlin",
    config={"num_channels": 4, "router": "product_dense"},
    d_model=32,
    n_layers=2,
    n_heads=2,
    vocab_size=256,
    seq_len=128,
    batch_size=16,
    steps=1000,
    data_id="abc",
    tokenizer_hash="def",
    seed=0,
    recipe="micro-v1",
    precision="fp32",
)


def test_the_id_is_frozen() -> None:
    # Ids name results on people's disks: this value may only change with a schema version.
    assert run_id(SPEC) == "5a56ebca62ef2c5d787364be14a42826b3eb9aab64af7b4deae0efb8dd186daa"


@given(st.randoms(use_true_random=False))
def test_order_folder_and_environment_never_change_an_id(shuffler: random.Random) -> None:
    values = list(SPEC.to_json().items())
    shuffler.shuffle(values)
    config = list(SPEC.config.items())
    shuffler.shuffle(config)
    before = Path.cwd()
    os.environ["ISOFLOP_TEST_NOISE"] = str(shuffler.random())
    try:
        os.chdir("/")
        again = RunSpec.from_json(dict(values) | {"config": dict(config)})
        assert run_id(again) == run_id(SPEC)
    finally:
        os.chdir(before)
        del os.environ["ISOFLOP_TEST_NOISE"]


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(RunSpec)])
def test_every_identity_field_changes_the_id(name: str) -> None:
    value: Any = getattr(SPEC, name)
    if name == "config":
        changed: Any = {**value, "num_channels": 5}
    elif isinstance(value, bool):
        changed = not value
    else:
        changed = value + (1 if isinstance(value, int) else "x")
    assert run_id(dataclasses.replace(SPEC, **{name: changed})) != run_id(SPEC)


def test_a_spec_survives_json() -> None:
    assert RunSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 10.0}, "spec.steps = 10.0: must be a whole number; restore the file"),
        ({"gpu": 1}, "spec.gpu = 1: must be a known key .*; restore the file"),
    ],
)
def test_a_damaged_spec_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    values = SPEC.to_json()
    with pytest.raises(UserError, match=message):
        RunSpec.from_json(values | change)
    del values["seed"]
    with pytest.raises(UserError, match="spec.seed = None: must be given; restore the file"):
        RunSpec.from_json(values)


@pytest.mark.parametrize(
    "value", [1.5, {"a": {1: 2}}, {"a": object()}, {"a": (1, 2)}, float("nan")]
)
def test_what_has_no_canonical_form_raises(value: Any) -> None:
    with pytest.raises(TypeError, match="no canonical form"):
        canonical_json(value)


def _ids(study: Study) -> set[str]:
    return {run.run_id for run in make_plan(study).runs}


HYPOTHESIS = Hypothesis(id="H1", claim="better", decide="multiplier > 1")
VARIANTS = tuple(Variant(arch=f"my/{arch}", family=arch, overrides={}) for arch in PAPER_ARCHS)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {"keep_weights": "all"},
        {"hypotheses": (HYPOTHESIS,)},
        {"archs": tuple(reversed(PAPER_ARCHS))},
        {"sizes": (2, 1)},
        {"seeds": (1, 0)},
        {"sizes": {10**10: {"default": (1, 2)}}},
        {"archs": tuple(v.arch for v in VARIANTS), "variants": VARIANTS},
        {"max_epochs": 100.0},
        {"tolerance": 0.5},
    ],
)
def test_what_a_study_is_called_and_how_it_is_ordered_never_changes_an_id(
    changes: dict[str, Any],
) -> None:
    assert _ids(micro(**({"seeds": (0, 1)} | changes))) == _ids(micro(seeds=(0, 1)))


_PLAN = """
import platform, socket, sys
socket.gethostname = platform.node = lambda: sys.argv[1]
from isoflop.plan.planner import make_plan
from isoflop.study import paper_study
print(*(run.run_id for run in make_plan(paper_study((10**17,))).runs))
"""


def test_host_paths_environment_and_git_state_never_change_an_id(tmp_path: Path) -> None:
    def ids(host: str, folder: Path, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", _PLAN, host],
            cwd=folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    plain, repository = tmp_path / "plain", tmp_path / "repository"
    (repository / ".git").mkdir(parents=True)
    (repository / ".git" / "HEAD").write_text("ref: refs/heads/dirty\n")
    plain.mkdir()
    here = ids("laptop", plain, PYTHONHASHSEED="1", LANG="C", TZ="UTC")
    there = ids(
        "node17",
        repository,
        PYTHONHASHSEED="2",
        LANG="tr_TR.UTF-8",
        TZ="Asia/Tokyo",
        HOME=str(repository),
        ISOFLOP_DATA_DIR=str(repository / "data"),
        CUDA_VISIBLE_DEVICES="3",
        SLURM_JOB_ID="99",
        GIT_DIR=str(repository / ".git"),
        PYTHONOPTIMIZE="1",
    )
    assert here == there
    assert len(here.split()) == 25


@pytest.mark.parametrize("family", PAPER_ARCHS)
def test_every_field_of_every_configuration_changes_the_id(family: str) -> None:
    config = dataclasses.asdict(get_spec(family).ladder(MICRO_V1, 2))
    later = LATER_FIELDS.get(family, {})
    spec = dataclasses.replace(SPEC, family=family, config=config)
    ids = {run_id(spec)}
    for name, value in config.items():
        other = value + 1 if isinstance(value, int) else f"{value}x"
        ids.add(run_id(dataclasses.replace(spec, config=config | {name: other})))
        without = {key: kept for key, kept in config.items() if key != name}
        ids.add(run_id(dataclasses.replace(spec, config=without)))
    # A later field at its old meaning may as well be absent.
    assert len(ids) == 1 + 2 * len(config) - len(later)


@pytest.mark.parametrize("family", LATER_FIELDS)
def test_a_later_field_at_its_default_is_no_part_of_a_run(family: str) -> None:
    config = get_spec(family).ladder(MICRO_V1, 2)
    whole = dataclasses.asdict(config)
    later = LATER_FIELDS[family]
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in later}
    assert defaults == later
    earlier = {name: value for name, value in whole.items() if name not in later}
    spec = dataclasses.replace(SPEC, family=family, config=earlier)
    spelled_out = RunSpec.from_json(spec.to_json() | {"config": whole})
    assert spelled_out == spec
    assert spelled_out.to_json() == spec.to_json()
    assert config_from_mapping(family, spec.config) == config
    # Only in the family that gained it.
    other = dataclasses.replace(SPEC, family="other", config=earlier)
    assert run_id(dataclasses.replace(other, config=whole)) != run_id(other)


@pytest.mark.parametrize(
    ("study", "num_runs"), [("facts_tiny", 15), ("cpu_reference", 180), ("quickstart", 75)]
)
def test_the_ids_of_committed_runs_stay(study: str, num_runs: int) -> None:
    committed = Path(__file__).parents[1] / "results" / study / "plan.json"
    runs = json.loads(committed.read_text())["runs"]
    assert len(runs) == num_runs
    for run in runs:
        spec = RunSpec.from_json(run["spec"])
        assert run_id(spec) == run["run_id"]
        assert spec.to_json() == run["spec"]
        resolved = dataclasses.asdict(config_from_mapping(spec.family, spec.config))
        assert run_id(dataclasses.replace(spec, config=resolved)) == run["run_id"]


specs = st.builds(
    RunSpec,
    **{
        f.name: st.dictionaries(st.text(max_size=2), st.integers(0, 2) | st.text(max_size=2))
        if f.name == "config"
        else {
            "bool": st.booleans(),
            "Count": st.integers(1, 3),
            "Annotated[int, Ge(0)]": st.integers(0, 2),
            "str": st.sampled_from(["", "0", "1", "a"]),
        }[str(f.type)]
        for f in dataclasses.fields(RunSpec)
    },
)


@given(specs, specs)
def test_two_specs_share_an_id_only_if_they_are_one(first: RunSpec, second: RunSpec) -> None:
    assert (run_id(first) == run_id(second)) == (first == second)
    assert run_id(RunSpec.from_json(json.loads(json.dumps(first.to_json())))) == run_id(first)
