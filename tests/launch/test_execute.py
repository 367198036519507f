"""One run through its folder: attempts and their records, checkpoints, results, weights."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from isoflop.launch import attempt as attempting
from isoflop.launch.execute import execute
from isoflop.launch.job import Job, JobResult
from isoflop.launch.metrics import newest_by_step
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.weights import final_weights, prune_weights, remove_checkpoints
from isoflop.placement import Placement
from isoflop.plan.planner import Plan, make_plan
from isoflop.spec import RunSpec, run_id
from isoflop.train import loop
from isoflop.train.checkpoint import CheckpointStore
from made_data import MadeData
from made_studies import begun, micro
from made_training import made_spec, undisturbed

EVERY_STEP = Placement(checkpoint_every_s=0.0)


class Data(MadeData):
    identity = SimpleNamespace(data_id="made")


def job_in(folder: Path, spec: RunSpec | None = None, **others: Any) -> tuple[Job, RunFolder]:
    spec = spec or made_spec()
    run_folder = RunFolder(folder, run_id(spec))
    run_folder.write_spec(spec)
    values = {"study_folder": str(folder), "run_id": run_id(spec), "data_folder": "d"}
    return Job(**{**values, "placement": EVERY_STEP, **others}), run_folder


def go(job: Job, *, stop_after: int | None = None, **others: Any) -> JobResult:
    """Executes a job; it is asked to stop once this many steps are completed."""
    completed = 0

    def on_step(metrics: Any, steps: int) -> None:
        nonlocal completed
        completed = metrics.step + 1

    def should_stop() -> str | None:
        return "SIGUSR2" if stop_after is not None and completed >= stop_after else None

    return execute(job, Data(), **{"on_step": on_step, "should_stop": should_stop, **others})


def record(folder: RunFolder, number: int) -> dict[str, Any]:
    return json.loads((folder.path / "attempts" / f"{number:04d}.json").read_text())


def events(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [row for row in folder.metrics() if row.get("event") == kind]


def test_a_job_survives_json() -> None:
    job = Job(
        study_folder="f",
        run_id="0" * 64,
        data_folder="d",
        keep_weights="best",
        placement=Placement(micro_batch=2, checkpoint_every_s=None),
        sinks=("tensorboard",),
    )
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_an_interrupted_run_goes_on_and_every_attempt_has_its_record(tmp_path: Path) -> None:
    job, folder = job_in(tmp_path)
    assert go(job, stop_after=4) == JobResult(status="interrupted", reason="SIGUSR2")
    assert folder.result() is None
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["3", "4"]
    ending = go(job)
    wanted = undisturbed(made_spec())
    assert (ending.status, ending.loss) == ("done", wanted.outcome.loss)
    first, second = record(folder, 1), record(folder, 2)
    assert (first["exit_reason"], first["step_range"]) == ("interrupted: SIGUSR2", [0, 3])
    assert (second["exit_reason"], second["step_range"]) == ("done", [4, 9])
    assert first["start_s"] <= first["end_s"] <= second["start_s"] <= second["end_s"]
    assert second["details"]["device"] == "cpu"
    result = folder.result()
    assert result is not None
    assert result.wall_s == first["wall_s"] + second["wall_s"] == ending.wall_s
    assert (result.attempt, result.num_steps) == (2, 10)
    # The study keeps no weights.
    assert not folder.checkpoints.exists()
    losses = {step: row["loss"] for step, row in newest_by_step(folder.metrics()).items()}
    assert losses == {m.step: m.loss for m in wanted.steps}
    assert go(job) == ending
    assert len(folder.attempts()) == 2


def test_stopped_before_its_first_step_it_has_no_steps(tmp_path: Path) -> None:
    job, folder = job_in(tmp_path)
    assert go(job, stop_after=0).status == "interrupted"
    assert (record(folder, 1)["step_range"], folder.checkpoints.exists()) == (None, False)
    assert go(job).status == "done"


def test_lost_work_counts_as_time_spent(tmp_path: Path) -> None:
    job, folder = job_in(tmp_path, placement=Placement())

    def fail(metrics: Any, steps: int) -> None:
        if metrics.step == 6:
            raise RuntimeError("the machine is on fire")

    ending = go(job, on_step=fail)
    assert ending == JobResult(status="failed", reason="RuntimeError: the machine is on fire")
    spent = record(folder, 1)
    assert (spent["step_range"], spent["exit_reason"]) == ([0, 6], f"failed: {ending.reason}")
    assert "on fire" in (folder.path / "error-0001.txt").read_text()
    done = go(job)
    assert record(folder, 2)["step_range"] == [0, 9]
    assert done.wall_s == spent["wall_s"] + record(folder, 2)["wall_s"]


def test_a_process_that_was_succeeded_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempting, "HEARTBEAT_S", 0.01)
    job, folder = job_in(tmp_path, made_spec(steps=2000), placement=Placement())

    def on_step(metrics: Any, steps: int) -> None:
        if metrics.step == 3:
            (folder.path / "attempts" / "0002.json").write_text(
                (folder.path / "attempts" / "0001.json").read_text().replace(": 1,", ": 2,")
            )
        if metrics.step > 3:
            time.sleep(0.005)

    assert go(job, on_step=on_step).status == "held"
    assert record(folder, 1)["exit_reason"] == "superseded"
    assert folder.result() is None
    assert not folder.checkpoints.exists()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_cannot_be_written_is_in_the_heartbeat_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempting, "HEARTBEAT_S", 0.005)
    job, folder = job_in(tmp_path)
    folder.checkpoints.write_text("no folder")
    said: list[tuple[str, ...]] = []

    def on_step(metrics: Any, steps: int) -> None:
        if metrics.step not in (3, 6):
            return
        before, end_s = said[-1] if said else (), time.monotonic() + 30
        while (lease := folder.lease()) is None or lease.warnings == before:
            assert time.monotonic() < end_s
            time.sleep(0.002)
        said.append(lease.warnings)
        if metrics.step == 3:
            folder.checkpoints.unlink()

    assert go(job, on_step=on_step).status == "done"
    (failed,), after = said
    assert failed.startswith("cannot write the checkpoint of step 1: ")
    assert after == ()


@pytest.mark.parametrize("at_step", [2, 9])
@pytest.mark.parametrize("what", ["study", "run", "replaced"])
def test_a_folder_that_was_moved_is_not_made_again_and_goes_on_where_it_is(
    what: str, at_step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempting, "HEARTBEAT_S", 0.01)
    here, there = tmp_path / "here", tmp_path / "there"
    # Long enough to be stopped by its heartbeat; at the last step that has no time to.
    job, folder = job_in(here, keep_weights="all")
    moved, target = (
        (here, there)
        if what == "study"
        else (folder.path, there / folder.path.parent.name / folder.path.name)
    )

    def on_step(metrics: Any, steps: int) -> None:
        if metrics.step == at_step:
            target.parent.mkdir(parents=True, exist_ok=True)
            moved.rename(target)
            if what == "replaced":
                # Somebody has planned and begun the run again in the old place.
                RunFolder(here, job.run_id).write_spec(made_spec())
                assert RunFolder(here, job.run_id).claim({}) is not None
            time.sleep(0.2)

    ending = go(job, on_step=on_step)
    assert ending.status == "gone"
    assert str(folder.path) in (ending.reason or "")
    if what == "study":
        assert not here.exists()
    elif what == "run":
        assert not folder.path.exists()
    else:
        assert listing(folder.path).keys() == {"spec.json", "attempts/0001.json"}
    new = RunFolder(there, job.run_id)
    assert new.result() is None
    assert [a.exit_reason for a in new.attempts()] == [None]
    # Of this process, which still lives; so that it counts as killed.
    path = new.path / "attempts" / "0001.json"
    path.write_text(path.read_text().replace('"start_ticks": ', '"start_ticks": 1'))
    job, _ = job_in(there, keep_weights="all")
    wanted = undisturbed(made_spec())
    assert go(job).loss == wanted.outcome.loss
    (resumed,) = events(new, "resumed")
    assert resumed["step"] == at_step


def test_a_folder_that_was_away_for_a_moment_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempting, "HEARTBEAT_S", 0.01)
    job, folder = job_in(tmp_path)
    away = folder.path.with_name("away")

    def on_step(metrics: Any, steps: int) -> None:
        if metrics.step == 3:
            folder.path.rename(away)
            time.sleep(0.2)
            away.rename(folder.path)

    assert go(job, on_step=on_step).status == "gone"
    # It has stopped and says so: nothing waits for this process to end.
    assert record(folder, 1)["exit_reason"] == "interrupted: its folder was moved or removed"
    assert go(job).loss == undisturbed(made_spec()).outcome.loss
    assert record(folder, 2)["step_range"] == [4, 9]


def test_a_run_without_a_folder_is_not_begun(tmp_path: Path) -> None:
    job, folder = job_in(tmp_path)
    folder.path.rename(tmp_path / "elsewhere")
    assert go(job).status == "gone"
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_result_that_came_first_wins(tmp_path: Path) -> None:
    job, folder = job_in(tmp_path)

    def on_step(metrics: Any, steps: int) -> None:
        if metrics.step == 9:
            values = {"status": "done", "status_reason": None, "num_steps": 10}
            values |= {"loss": 1.0, "wall_s": 2.0}
            assert folder.write_result(folder.attempts()[0], values)

    assert go(job, on_step=on_step) == JobResult(status="done", loss=1.0, wall_s=2.0)
    assert record(folder, 1)["exit_reason"] == "superseded"


def test_a_damaged_checkpoint_is_one_line_and_costs_steps(tmp_path: Path) -> None:
    job, folder = job_in(tmp_path)
    go(job, stop_after=5)
    (folder.checkpoints / "5" / "weights.safetensors").write_bytes(b"short")
    assert go(job).loss == undisturbed(made_spec()).outcome.loss
    (row,) = events(folder, "checkpoint_damaged")
    assert (row["step"], row["attempt"]) == (5, 2)
    assert row["reason"] == "weights.safetensors: missing or cut off"
    assert record(folder, 2)["step_range"] == [4, 9]


def test_a_result_that_cannot_be_written_fails_and_the_next_attempt_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, folder = job_in(tmp_path)

    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_result", full)
        ending = go(job)
    assert ending.status == "failed"
    assert ending.reason == "disk: OSError: [Errno 28] No space left on device"
    assert ending.failed_by_disk
    # Checkpoints go when there is a result, never before.
    assert "10" in {p.name for p in folder.checkpoints.iterdir()}
    done = go(job)
    assert (done.status, done.loss) == ("done", undisturbed(made_spec()).outcome.loss)
    assert record(folder, 2)["step_range"] is None


def test_nothing_can_be_written_and_the_reason_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = job_in(tmp_path)

    def full(*_: Any, **__: Any) -> bool:
        raise OSError(28, "No space left on device")

    for name in ("write_result", "end_attempt"):
        monkeypatch.setattr(RunFolder, name, full)
    monkeypatch.setattr(attempting, "write_text_atomic", full)
    assert go(job) == JobResult(
        status="failed", reason="disk: OSError: [Errno 28] No space left on device"
    )


def test_a_heartbeat_outlives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempting, "HEARTBEAT_S", 0.001)
    job, _ = job_in(tmp_path)
    real, beats = RunFolder.beat, iter(range(10**6))
    went_on = threading.Event()

    def beat(self: RunFolder, *arguments: Any) -> None:
        number = next(beats)
        if 0 < number < 3:
            raise OSError(28, "No space left on device")
        real(self, *arguments)
        if number >= 3:
            went_on.set()

    monkeypatch.setattr(RunFolder, "beat", beat)
    assert go(job, on_step=lambda metrics, steps: went_on.wait(10) and None).status == "done"
    assert went_on.is_set()


def test_other_data_than_planned_are_refused(tmp_path: Path) -> None:
    job, _ = job_in(tmp_path, made_spec(data_id="other"))
    ending = go(job)
    assert ending.status == "failed"
    assert "the plan's other" in (ending.reason or "")


class TwoRanks:
    """What a rank sees of the other one, which agrees in everything."""

    size = 2

    def __init__(self, told: float = 1.0, *, is_main: bool = False) -> None:
        self.told = told
        self.is_main = is_main
        self.sent: list[float] = []

    def broadcast(self, value: float) -> float:
        self.sent.append(value)
        return value if self.is_main else self.told


def test_a_follower_neither_claims_nor_begins_without_a_word(tmp_path: Path) -> None:
    job, folder = job_in(tmp_path)
    assert go(job, ranks=TwoRanks(0.0)).status == "held"
    assert not (folder.path / "attempts").exists()


def test_the_main_rank_says_whether_to_begin_also_when_it_cannot_know(tmp_path: Path) -> None:
    job, folder = job_in(tmp_path)
    assert folder.claim({}) is not None
    main = TwoRanks(is_main=True)
    assert go(job, ranks=main).status == "held"
    (folder.path / "result.json").write_text("{")
    with pytest.raises(ValueError, match="result"):
        go(job, ranks=main)
    assert main.sent == [0.0, 0.0]


STUDY = micro(budgets=(5 * 10**8, 10**9), archs=("mlp", "moe"), sizes=(1, 2), seeds=(0, 1))


def finish(folder: Path, run: Any, loss: float | None) -> RunFolder:
    """A run with two checkpoints and a result: done, or diverged where there is no loss."""
    run_folder, attempt = begun(folder, run)
    status = "diverged" if loss is None else "done"
    steps = run.spec.steps
    values = {"status": status, "status_reason": None, "loss": loss, "num_steps": steps}
    assert run_folder.write_result(attempt, values)
    return run_folder


def kept(folder: Path, plan: Plan) -> set[str]:
    return {
        run.run_id
        for run in plan.unique_runs
        if final_weights(RunFolder(folder, run.run_id)) is not None
    }


@pytest.mark.parametrize("keep", ["none", "best", "all"])
def test_a_study_keeps_the_weights_that_it_says(keep: str, tmp_path: Path) -> None:
    plan = make_plan(micro(**{**_fields(STUDY), "keep_weights": keep}))
    runs = list(plan.unique_runs)
    losses = {run.run_id: 3.0 - 0.1 * number for number, run in enumerate(runs)}
    losses[runs[-1].run_id] = None
    unfinished = runs[0]
    wanted: dict[tuple[str, int], str] = {}
    for run in runs:
        loss = losses[run.run_id]
        if run is unfinished or loss is None:
            continue
        place = (run.arch, run.budget_flops)
        if place not in wanted or loss < losses[wanted[place]]:
            wanted[place] = run.run_id
    for run in runs[1:]:
        finish(tmp_path, run, losses[run.run_id])
        # After each end, as it happens while a study runs.
        prune_weights(tmp_path, plan)
    under_way = RunFolder(tmp_path, unfinished.run_id)
    (under_way.checkpoints / "5").mkdir(parents=True)
    prune_weights(tmp_path, plan)
    done = {run.run_id for run in runs[1:-1]}
    assert kept(tmp_path, plan) == {"none": set(), "best": set(wanted.values()), "all": done}[keep]
    # A run that has no result keeps its checkpoints, whatever the study says.
    assert (under_way.checkpoints / "5").exists()
    for rid in kept(tmp_path, plan):
        folder = RunFolder(tmp_path, rid)
        files = {str(p.relative_to(folder.checkpoints)) for p in folder.checkpoints.rglob("*.*")}
        last = folder.read_spec().steps
        assert files == {f"{last}/weights.safetensors", f"{last}/state.json"}
    before = sorted(tmp_path.rglob("*"))
    prune_weights(tmp_path, plan)
    assert sorted(tmp_path.rglob("*")) == before


def _fields(study: Any) -> dict[str, Any]:
    return {name: getattr(study, name) for name in ("budgets", "archs", "sizes", "seeds")}


def test_pruning_that_was_cut_off_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(micro(archs=("mlp",), sizes=(1,), keep_weights="none"))
    folder = finish(tmp_path, plan.runs[0], 2.0)
    (folder.checkpoints / str(plan.runs[0].spec.steps) / "weights.safetensors").unlink()
    prune_weights(tmp_path, plan)
    assert not folder.checkpoints.exists()


def test_checkpoints_never_go_before_the_result(tmp_path: Path) -> None:
    _, folder = job_in(tmp_path)
    (folder.checkpoints / "5").mkdir(parents=True)
    with pytest.raises(AssertionError):
        remove_checkpoints(folder)
    assert (folder.checkpoints / "5").exists()


@pytest.mark.parametrize("keep", ["best", "all"])
def test_kept_weights_are_the_final_ones(keep: str, tmp_path: Path) -> None:
    job, folder = job_in(tmp_path, keep_weights=keep, placement=Placement())
    assert go(job).status == "done"
    path = final_weights(folder)
    assert path == folder.checkpoints / "10" / "weights.safetensors"
    assert path is not None
    wanted = undisturbed(made_spec()).weights
    found = load_file(path)
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in wanted.items()
    }


def test_weights_that_cannot_be_kept_fail_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, folder = job_in(tmp_path, keep_weights="all", placement=Placement())
    (folder.path / "ckpt").write_text("no folder")
    ending = go(job)
    assert ending.status == "failed"
    assert "cannot write the checkpoint of step 10" in (ending.reason or "")
    assert folder.result() is None


def test_a_diverged_run_leaves_no_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, folder = job_in(tmp_path, keep_weights="all")
    go(job, stop_after=5)
    assert folder.checkpoints.exists()
    real: Callable[..., Any] = loop.gradients_of_batch
    monkeypatch.setattr(
        loop, "gradients_of_batch", lambda *a, **k: real(*a, **k)._replace(loss=float("inf"))
    )
    assert go(job).reason == "non-finite loss at step 5"
    assert not folder.checkpoints.exists()
    assert CheckpointStore(folder.checkpoints, run_id=job.run_id).newest() is None
