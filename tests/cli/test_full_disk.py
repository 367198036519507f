"""Every verb on a disk that is full or read-only: one line, exit code 3, and all as it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from analysis.made_runs import curve, parabola, spaced
from isoflop.cli import main
from isoflop.data.prepare import prepare
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_disk import Disk, mounted
from made_studies import micro

pytestmark = pytest.mark.slow
COLUMNS = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """With a planned study, its data, a table of runs, and what was fitted of them before."""
    with mounted(tmp_path_factory.mktemp("full") / "disk", "16m") as made:
        write_plan(make_plan(micro(archs=("mlp",), sizes=(1,))), made.folder / "study")
        data = prepare("sotu-embedded", "byte")
        shutil.copytree(data, made.folder / "data" / data.name)
        rows = [
            row | {"flops": budget}
            for budget in (1e17, 1e18)
            for row in curve(parabola(1e7), spaced(1e7), "dense", budget)
        ]
        lines = [",".join(str(row[name]) for name in COLUMNS) for row in rows]
        (made.folder / "runs.csv").write_text("\n".join([",".join(COLUMNS), *lines]))
        done = verb("fit", made.folder / "runs.csv", "--out", made.folder / "fit", "--n-boot", "0")
        assert done.exit_code == 0, done.output
        yield made


def verb(*arguments: str | Path, **environ: str) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env=environ)


VERBS = {
    "plan": "plan --budgets 1e16 --out DISK/new",
    "extend": "extend DISK/study --seeds 7",
    "run": "run DISK/study --workers 1",
    "submit": "submit DISK/study --cluster local --yes",
    "fit": "fit DISK/runs.csv --out DISK/fit --n-boot 9",
    "report": "report DISK/runs.csv --out DISK/fit --n-boot 9",
    "prepare": "data prepare synthetic:1 --tokens 1e4",
    "export": "data export sotu-embedded --out DISK/all.parquet",
}


@pytest.mark.parametrize(
    ("state", "command"),
    [
        *(("full", command) for command in VERBS.values()),
        *(("read-only", VERBS[name]) for name in ("plan", "run", "submit", "fit")),
    ],
)
def test_a_verb_that_cannot_write_says_so_in_one_line(
    state: str, command: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_DATA_DIR", str(disk.folder / "data"))
    before = disk.files()
    if state == "full":
        disk.fill()
    else:
        disk.remount("ro")
    try:
        done = verb(*command.replace("DISK", str(disk.folder)).split())
    finally:
        if state == "full":
            disk.free()
        else:
            disk.remount("rw")
    assert done.exit_code == 3, (done.output, done.exception)
    # Progress of what was computed before may stand above.
    line = done.stderr.splitlines()[-1]
    words = "No space left on device" if state == "full" else "Read-only file system"
    assert line.startswith(f"isoflop: cannot write {disk.folder}/")
    assert f": {words}; " in line
    assert " free; " in line
    assert "Traceback" not in done.output
    assert disk.files() == before


@pytest.mark.parametrize("command", ["status", "show", "logs"])
def test_a_verb_that_looks_needs_no_room(command: str, disk: Disk) -> None:
    disk.fill()
    disk.remount("ro")
    try:
        done = verb(command, disk.folder / "study", *(["0"] if command == "logs" else []))
    finally:
        disk.remount("rw")
        disk.free()
    assert done.exit_code in ((2,) if command == "logs" else (0,)), done.output
