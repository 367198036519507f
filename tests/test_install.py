"""A wheel carries all that a checkout has, and is enough for a stranger in an empty folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from analysis.made_runs import curve, parabola, spaced
from docs.shell import blocks
from isoflop import __version__
from isoflop.files import write_json_atomic
from isoflop.launch.run_folder import RESULT_SCHEMA_VERSION, RunFolder
from isoflop.plan.artefact import read_plan
from isoflop.tables import RUNS, read_table

REPOSITORY = Path(__file__).resolve().parents[1]

PROBE = """
import json
from pathlib import Path
import isoflop, isoflop_kernels
from isoflop.data.catalog import identify
from isoflop.plan.planner import make_plan
from isoflop.resources import builtin, builtin_names
from isoflop.study.file import load_study
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


def build(target: str, source: Path, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", REPOSITORY, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    rebuilt = build("wheel", tmp_path / f"isoflop-{__version__}", tmp_path / "again")
    assert contents(rebuilt) == contents(wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """Somebody with a Python of their own, in an empty folder, who has no checkout."""

    programs: Path
    home: Path

    def run(self, program: str, *arguments: str) -> str:
        """What a program prints; it must end well."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.home,
            env=kept | {"ISOFLOP_DATA_DIR": str(self.home / "data"), "COLUMNS": "80"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout


@pytest.fixture
def stranger(wheel: Path, tmp_path: Path) -> Stranger:
    home = tmp_path / "home"
    home.mkdir()
    # With the newest pip, which finds versions in a third of the time.
    venv.create(tmp_path / "python", with_pip=True, upgrade_deps=True)
    someone = Stranger(programs=tmp_path / "python" / "bin", home=home)
    constraints = REPOSITORY / "constraints.txt"
    # Few of torch's modules are imported: they are compiled then.
    options = ("--quiet", "--no-compile", "--constraint", str(constraints))
    someone.run("pip", "install", *options, str(wheel))
    return someone


# Installs torch and trains five runs.
@pytest.mark.slow
def test_a_stranger_installs_the_wheel_and_ends_the_quick_start(stranger: Stranger) -> None:
    assert stranger.run("isoflop", "--version").strip() == f"isoflop, version {__version__}"
    assert "plan.json" in stranger.run("isoflop", "plan", "--budgets", "1e17,1e18")
    for block in blocks(REPOSITORY / "kernels" / "README.md", "python"):
        stranger.run("python", "-c", block.text)

    write_table(stranger.home / "runs.csv")
    stranger.run("isoflop", "fit", "runs.csv", "--out", "fitted", "--n-boot", "50")
    assert (stranger.home / "fitted" / "optima.parquet").is_file()

    folder = stranger.home / "results" / "quickstart"
    begin_quick_start(folder)
    assert "5 runs to train, 70 complete already" in stranger.run("isoflop", "quickstart")
    assert (folder / "plots" / "isoflop_profiles.png").is_file()
    stranger.run("isoflop", "report", "results/quickstart")
    assert (folder / "report.html").is_file()
    assert "all runs are over" in stranger.run("isoflop", "status", "results/quickstart")


def begin_quick_start(folder: Path) -> None:
    """The quick start as if cut off before its last runs, one of each family.

    Whole, it takes as long as a third of all tests, and what is new in a wheel is in each run.
    """
    rows = read_table(REPOSITORY / "results" / "quickstart" / "runs.parquet", RUNS)
    plan = read_plan(REPOSITORY / "results" / "quickstart")
    specs = {run.run_id: run.spec for run in plan.runs}
    cheapest = {row["arch"]: row["run_id"] for row in sorted(rows, key=lambda r: -r["wall_s"])}
    for row in rows:
        if row["run_id"] not in cheapest.values():
            result = row | {
                "schema_version": RESULT_SCHEMA_VERSION,
                "attempt": 1,
                "num_steps": row["steps"],
            }
            run_folder = RunFolder(folder, row["run_id"])
            run_folder.write_spec(specs[row["run_id"]])
            write_json_atomic(run_folder.path / "result.json", result)


def write_table(path: Path) -> None:
    """A family's losses at two budgets, as a csv of its own columns."""
    rows = [
        row | {"flops": budget}
        for budget, best in ((1e17, 1e7), (1e18, 3e7))
        for row in curve(parabola(best, floor=3.0), spaced(best), "dense", budget)
    ]
    with path.open("w", newline="") as file:
        columns = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss")
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
