"""Built-in studies and corpus are found from a wheel and from an editable install alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

PROBE = """
import json
from pathlib import Path
import isoflop, isoflop_kernels
from isoflop.data.catalog import identify
from isoflop.plan.planner import make_plan
from isoflop.resources import builtin, builtin_names
from isoflop.study import load_study
study = builtin("experiments", "quickstart.toml")
corpus = builtin("corpora", "sotu_1981_2026")
print(json.dumps({
    "package": isoflop.__file__,
    "kernels": isoflop_kernels.__file__,
    "study": str(study),
    "corpus": str(corpus),
    "studies": builtin_names("experiments"),
    "texts": len(list(corpus.glob("*.txt"))),
    "data_id": identify("sotu-embedded", "byte").data_id,
    "runs": [run.run_id for run in make_plan(load_study(study)).runs],
}))
"""


def probe(cwd: Path, **environment: str) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_a_wheel_carries_everything_and_a_checkout_finds_the_same(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    installed = probe(elsewhere, PYTHONPATH=str(site))
    checkout = probe(elsewhere)
    for name in ("package", "kernels", "study", "corpus"):
        assert Path(installed[name]).is_relative_to(site), name
        assert Path(checkout[name]).is_relative_to(REPOSITORY), name
    studies = sorted(path.name for path in (REPOSITORY / "experiments").glob("*.toml"))
    assert "quickstart.toml" in studies
    assert checkout["studies"] == studies == installed["studies"]
    assert checkout["texts"] == 39 == installed["texts"]
    assert installed["data_id"] == checkout["data_id"]
    assert installed["runs"] == checkout["runs"]


def test_a_wheel_holds_no_tests_and_names_its_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"isoflop", "isoflop_kernels", info}
    assert f"{info}/licenses/LICENSE" in names
    assert "isoflop/py.typed" in names
    assert "isoflop_kernels/py.typed" in names
