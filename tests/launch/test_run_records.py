"""What the records of a run's folder may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.files import write_json_atomic
from isoflop.launch.run_folder import RunFolder
from isoflop.placement import Placement
from isoflop.plan.planner import make_plan
from made_studies import micro, set_value

RUN = make_plan(micro(archs=("mlp",), sizes=(1,))).runs[0]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path, RUN.run_id)
    made.write_spec(RUN.spec)
    return made


@pytest.mark.parametrize(
    "damage",
    [
        {"attempt": "1"},
        {"attempt": 0},
        {"heartbeat_s": None},
        {"heartbeat_s": 1e18},
        {"step": -1},
        {"step": 1.5},
        {"steps": [40]},
    ],
)
def test_a_damaged_lease_is_named(folder: RunFolder, damage: dict[str, Any]) -> None:
    (key,) = damage
    lease = {"attempt": 1, "heartbeat_s": 1.0, "step": 3, "steps": 40}
    write_json_atomic(folder.path / "lease.json", lease | damage)
    with pytest.raises(UserError, match=f"lease.json: {key} = "):
        folder.lease()
    write_json_atomic(folder.path / "lease.json", {})
    with pytest.raises(UserError, match="lease.json: attempt = None: must be given"):
        folder.lease()


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("number",), 2),
        (("start_s",), "now"),
        (("end_s",), True),
        (("exit_reason",), {"a": 1}),
        (("step_range",), [1]),
        (("wall_s",), "3"),
        # Signals go to it: -1 is every process that there is.
        (("holder", "pid"), -1),
        (("holder", "pid"), 2**22 + 1),
        (("holder", "start_ticks"), "7"),
        (("details",), []),
        (("details", "slurm"), "12_3"),
        (("details", "slurm", "job_id"), "../../12"),
        (("details", "slurm", "restart_count"), 2),
        (("details", "placement", "micro_batch"), "x"),
    ],
)
def test_a_damaged_attempt_is_named(
    folder: RunFolder, keys: tuple[str, ...], value: object
) -> None:
    placement = {"device": "cpu", "micro_batch": 2}
    folder.claim({"device": "cpu", "placement": placement, "slurm": {"job_id": "12"}})
    (attempt,) = folder.attempts()
    assert (attempt.job_id, attempt.details.placement) == ("12", Placement(micro_batch=2))
    path = folder.path / "attempts" / "0001.json"
    record = json.loads(path.read_text())
    set_value(*keys, to=value)(record)
    write_json_atomic(path, record)
    with pytest.raises(UserError, match=f"0001.json: {'.'.join(keys)}.* = "):
        folder.attempts()
    with pytest.raises(UserError, match=r"0001\.json"):
        folder.end_attempt(attempt, "done")
    assert json.loads(path.read_text()) == record


def test_a_record_of_an_earlier_version_is_read(folder: RunFolder) -> None:
    assert folder.claim({}) is not None
    path = folder.path / "attempts" / "0001.json"
    record = json.loads(path.read_text())
    del record["wall_s"]
    write_json_atomic(path, record)
    assert folder.attempts()[0].wall_s is None


@pytest.mark.parametrize(
    ("slurm", "job"),
    [
        ({"job_id": "14", "array_job_id": "12", "array_task_id": "0"}, "12_0"),
        ({"job_id": "14"}, "14"),
        (None, None),
    ],
)
def test_a_job_is_named_as_the_scheduler_names_it(
    slurm: dict[str, str] | None, job: str | None, folder: RunFolder
) -> None:
    details = {} if slurm is None else {"slurm": slurm | {"node": "n1", "restart_count": "2"}}
    folder.claim(details)
    (attempt,) = folder.attempts()
    assert attempt.job_id == job
    assert (attempt.node, attempt.restarts) == (("n1", 2) if slurm else (None, 0))
