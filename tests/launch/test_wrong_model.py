"""A run whose model is not what its plan counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from isoflop.families import PATHS_VARIABLE, add_family_folder, family_digest
from isoflop.launch.execute import execute
from isoflop.launch.job import Job
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm.failures import kind_of_attempt
from isoflop.spec import run_id
from made_data import MadeData
from made_family import write_low_rank_family
from made_training import made_spec


class Data(MadeData):
    identity = SimpleNamespace(data_id="made")


def test_it_fails_in_one_line_and_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    add_family_folder(write_low_rank_family(tmp_path / "low_rank"))
    spec = dataclasses.replace(made_spec(), family="low_rank", config={"rank": 7})
    folder = RunFolder(tmp_path / "study", run_id(spec))
    folder.write_spec(spec)
    job = Job(
        study_folder=str(tmp_path / "study"),
        run_id=run_id(spec),
        data_folder="d",
        family_digest=family_digest("low_rank"),
    )
    ending = execute(job, Data())
    assert (ending.status, ending.failed_by_mistake) == ("failed", True)
    assert "a module that builds" in str(ending.reason)
    assert "\n" not in str(ending.reason)
    (attempt,) = folder.attempts()
    assert (attempt.exit_reason, kind_of_attempt(attempt)) == (f"failed: {ending.reason}", "code")
    assert folder.result() is None
