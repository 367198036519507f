"""Studies with a trainer of one's own through the launchers: sessions, workers, verbs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from isoflop.cli import main
from isoflop.cli.logs import logs
from isoflop.errors import UserError
from isoflop.launch.collect import collected_rows
from isoflop.launch.job import Job
from isoflop.launch.local import Session, begin, open_session
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.status import study_status
from isoflop.launch.train_job import train_job
from isoflop.launch.weights import superfluous_weights
from isoflop.launch.workers import run_jobs
from isoflop.placement import Placement
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import Plan, make_plan
from made_commands import made_job
from made_trainer import SCRIPT, own_study


def planned(folder: Path, script: str = SCRIPT, **trainer: Any) -> tuple[Path, Plan]:
    plan = make_plan(own_study(folder / "code", script=script, **trainer))
    write_plan(plan, folder / "study")
    return folder / "study", plan


def train(session: Session) -> tuple[Job, RunFolder]:
    """Begins a session's first job as `isoflop run` does, and trains it here."""
    job = session.jobs[0]
    begin(session.folder, session.plan, [job.run_id])
    train_job(job)
    return job, RunFolder(session.folder, job.run_id)


def test_a_run_finds_its_data_beside_a_copy_of_its_code(tmp_path: Path) -> None:
    script = f"import os\nprint(os.getcwd(), open('data').read())\n{SCRIPT}".replace(
        '"n_params": n_params}', '"n_params": n_params, "metrics": {"acc": 0.5}}'
    )
    result = {"unit": "nats_per_token"}
    folder, plan = planned(tmp_path, script, result=result, code_files=["*.py"])
    (tmp_path / "code" / "data").write_text("tokens")
    session = open_session(folder)
    assert not (folder / ".launch").exists()
    job, run_folder = train(session)
    (row,) = (row for row in collected_rows(folder, plan) if row["run_id"] == job.run_id)
    assert (row["status"], row["metric_acc"], row["n_attempts"]) == ("done", 0.5, 1)
    assert job.trainer is not None
    printed = f"{job.trainer.code_folder} tokens"
    assert run_folder.command_log(1).read_text() == f"{printed}\n"
    shown = CliRunner().invoke(logs, [str(folder), job.run_id[:8]]).output
    assert printed in shown
    assert job.trainer.code_folder.startswith(str(folder / ".launch" / "code"))


def test_a_script_imports_the_module_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verbs keep that from processes of isoflop, and from no command of the user's."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "beside.py").touch()
    folder, plan = planned(tmp_path, f"import beside\n{SCRIPT}")
    run_id = plan.unique_runs[0].run_id
    result = CliRunner().invoke(main, ["run", str(folder), run_id, "--workers", "1"])
    assert result.exit_code == 0, result.output


def test_a_misread_result_is_read_again_and_nothing_trained_anew(tmp_path: Path) -> None:
    def plan_again(**result: str) -> Path:
        return planned(tmp_path, result={"unit": "bits_per_byte", **result})[0]

    folder = plan_again(loss="val_loss")
    _, run_folder = train(open_session(folder))
    assert run_folder.result() is None
    assert "'val_loss': must be" in (run_folder.attempts()[-1].exit_reason or "")
    plan_again(loss="loss")
    train(open_session(folder))
    result = run_folder.result()
    assert result is not None
    assert result.bits_per_byte is not None
    assert [attempt.exit_reason for attempt in run_folder.attempts()][1:] == ["done"]
    assert list((run_folder.path / "reported").iterdir()) == [run_folder.reported(1)]
    # What is recorded was read in one way.
    assert plan_again(loss="loss") == folder
    with pytest.raises(UserError, match=r"trainer\.result = another one: must be what the results"):
        plan_again(loss="val_loss")


def test_code_that_changed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder, _ = planned(tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    code = tmp_path / "code" / "train.py"
    code.write_text(f"{SCRIPT}\n# edited\n")
    with pytest.raises(UserError, match=r"changed: train\.py"):
        open_session(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    code.write_text(SCRIPT)
    train(open_session(folder))
    # Runs that are planned go on with the copy.
    code.write_text("edited")
    _, run_folder = train(open_session(folder))
    assert run_folder.result() is not None


def test_what_says_nothing_to_a_command_is_refused(tmp_path: Path) -> None:
    folder, _ = planned(tmp_path)
    with pytest.raises(UserError, match="micro_batch = 4: must be left out"):
        open_session(folder, options={"micro_batch": 4})
    session = open_session(folder, options={"ranks": 2, "workers": 1})
    assert {job.placement.num_ranks for job in session.jobs} == {2}


def test_a_failure_is_shown_with_the_end_of_what_the_command_printed(tmp_path: Path) -> None:
    script = "raise SystemExit('torch.OutOfMemoryError: CUDA out of memory')"
    folder, plan = planned(tmp_path, script)
    job, _ = train(open_session(folder))
    status = study_status(folder, plan)
    (state,) = (state for state in status.states if state.run.run_id == job.run_id)
    assert (state.state, state.kind) == ("failed", "oom")
    assert state.log_lines == ("torch.OutOfMemoryError: CUDA out of memory",)
    assert "exit code 1; its log ends: torch.OutOfMemory" in (state.reason or "")


@pytest.mark.parametrize("keep", ["all", "none"])
def test_what_a_command_keeps_stays_as_long_as_it_is_needed(keep: str, tmp_path: Path) -> None:
    script = f"import os; open(os.environ['ISOFLOP_CHECKPOINT_DIR'] + '/model', 'w')\n{SCRIPT}"
    study = own_study(tmp_path / "code", script=script)
    plan = make_plan(dataclasses.replace(study, keep_weights=keep))
    write_plan(plan, tmp_path / "study")
    folder = tmp_path / "study"
    _, run_folder = train(open_session(folder))
    assert (run_folder.trainer / "model").exists() == (keep == "all")
    # A kill may have come before it was removed; the other runs have no result yet.
    for run in plan.unique_runs:
        RunFolder(folder, run.run_id).trainer.mkdir(parents=True, exist_ok=True)
    found = list(superfluous_weights(folder, plan))
    assert found == ([run_folder.trainer] if keep == "none" else [])


def test_workers_share_gpus_and_give_what_the_shell_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """echo "$OMP_NUM_THREADS $CUDA_VISIBLE_DEVICES" > $ISOFLOP_CHECKPOINT_DIR/seen
    [ $ISOFLOP_ATTEMPT = 2 ] || { touch $ISOFLOP_CHECKPOINT_DIR/x; exit 75; }
    exit 77"""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-4,6,7")
    placement = Placement(device="cuda", parallel="ddp", num_ranks=2)
    job, folder = made_job(tmp_path, script, resume="native", placement=placement)
    events = list(run_jobs([job], 1))
    assert [event.kind for event in events] == ["start", "end"]
    assert events[-1].result is not None
    assert events[-1].result.status == "diverged"
    assert (folder.trainer / "seen").read_text() == "5 3,GPU-4\n"
    assert len(folder.attempts()) == 2
