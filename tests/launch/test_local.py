"""A session before it begins."""

from __future__ import annotations

import json
from pathlib import Path

from isoflop.data.prepare import prepare
from isoflop.files import write_json_atomic
from isoflop.launch.local import begin, open_session
from isoflop.launch.run_folder import RunFolder
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_studies import micro


def test_runs_that_have_to_be_watched_come_last(tmp_path: Path) -> None:
    plan = make_plan(micro(archs=("mlp",), sizes=(1, 2)))
    write_plan(plan, tmp_path)
    prepare("sotu-embedded", "byte")
    begin(tmp_path, plan, [run.run_id for run in plan.unique_runs])
    runs = sorted(plan.unique_runs, key=lambda run: -run.flops)
    ids = [run.run_id for run in runs]
    folders = [RunFolder(tmp_path, run_id) for run_id in ids]
    for folder in folders:
        assert folder.claim({}) is not None
    # At work where it can be seen.
    session = open_session(tmp_path)
    assert (session.watches, [job.run_id for job in session.jobs]) == ({}, ids)
    path = folders[0].path / "attempts" / "0001.json"
    record = json.loads(path.read_text())
    write_json_atomic(path, record | {"holder": record["holder"] | {"boot_id": "before"}})
    session = open_session(tmp_path)
    assert list(session.watches) == ids[:1]
    assert [job.run_id for job in session.jobs] == [*ids[1:], ids[0]]
    folders[0].end_attempt(folders[0].attempts()[0], "interrupted: SIGTERM")
    session = open_session(tmp_path)
    assert (session.watches, [job.run_id for job in session.jobs]) == ({}, ids)
