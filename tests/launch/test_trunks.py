"""Who begins where another run passed, by the files of a study alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from isoflop.files import write_json_atomic
from isoflop.launch.job import TrunkJob
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt
from isoflop.launch.trunks import (
    forks_in,
    inherited,
    is_needed,
    remove_fork,
    starts,
    steps_to_train,
    superfluous_forks,
    trunk_jobs,
    usable_forks,
    waits_for,
)
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import PlannedRun
from made_studies import micro


class Made:
    """A study of one trunk of three runs, in a folder."""

    def __init__(self, folder: Path, **changes: object) -> None:
        budgets = (10**10, 2 * 10**10, 4 * 10**10)
        plan = make_plan(
            micro(recipe="micro-v3", budgets=budgets, sizes=(2,), archs=("mlp",), **changes)
        )
        self.folder = folder
        self.plan = plan
        self.runs: tuple[PlannedRun, ...] = plan.runs
        self.jobs: dict[str, TrunkJob] = trunk_jobs(plan)
        for run in self.runs:
            self.of(run).write_spec(run.spec)

    def of(self, run: PlannedRun) -> RunFolder:
        return RunFolder(self.folder, run.run_id)

    def job(self, run: PlannedRun) -> TrunkJob:
        return self.jobs[run.run_id]

    def fork(self, run: PlannedRun, step: int) -> Path:
        path = self.of(run).forks / str(step)
        path.mkdir(parents=True)
        return path

    def begin(self, run: PlannedRun) -> Attempt:
        attempt = self.of(run).claim({})
        assert attempt is not None
        return attempt

    def longer(self, run: PlannedRun, *coming: PlannedRun, retries: bool = False) -> str | None:
        """The run that another one waits for."""
        ids = {other.run_id for other in coming}
        job = self.job(run)
        found = waits_for(self.folder, run.run_id, job, ids.__contains__, retries=retries)
        return None if found is None else found.run_id

    def finish(self, run: PlannedRun, status: str = "done", num_steps: int | None = None) -> None:
        attempt = self.begin(run)
        values = {
            "status": status,
            "status_reason": None,
            "loss": 3.0 if status == "done" else None,
            "num_steps": run.spec.steps if num_steps is None else num_steps,
        }
        assert self.of(run).write_result(attempt, values)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_each_run_knows_the_others_of_its_trunk(made: Made) -> None:
    short, middle, long = made.runs
    assert [other.run_id for other in made.job(middle).siblings] == [short.run_id, long.run_id]
    assert [other.run_id for other in made.job(short).longer] == [long.run_id, middle.run_id]
    assert [other.run_id for other in made.job(long).shorter] == [short.run_id, middle.run_id]
    assert made.job(long).longer == made.job(short).shorter == ()


def test_a_run_begins_at_the_latest_fork_that_is_not_past_its_own(made: Made) -> None:
    short, middle, long = made.runs
    early, late = made.job(short).fork, made.job(middle).fork
    made.fork(long, early)
    made.fork(long, late)
    (made.of(long).forks / ".7.1-abc.tmp").mkdir()
    assert [fork.step for fork in forks_in(made.of(long))] == [early, late]
    assert [fork.step for fork in usable_forks(made.folder, made.job(middle))] == [late, early]
    assert [fork.step for fork in usable_forks(made.folder, made.job(short))] == [early]
    # What a shorter one kept serves a longer one.
    kept = made.fork(short, early)
    assert kept in [fork.path for fork in usable_forks(made.folder, made.job(long))]


def test_a_fork_is_needed_while_the_run_that_begins_there_has_no_result(made: Made) -> None:
    short, middle, long = made.runs
    paths = {run.run_id: made.fork(long, made.job(run).fork) for run in (short, middle)}
    assert list(superfluous_forks(made.folder, made.jobs)) == []
    assert not is_needed(made.folder, made.job(long), made.job(short).fork + 1)
    made.finish(short)
    assert list(superfluous_forks(made.folder, made.jobs)) == [paths[short.run_id]]
    # Whether the run that begins there is done cannot be said.
    (made.of(middle).path / "result.json").write_text("{")
    assert list(superfluous_forks(made.folder, made.jobs)) == [paths[short.run_id]]
    remove_fork(paths[short.run_id])
    remove_fork(paths[short.run_id])
    assert [fork.step for fork in forks_in(made.of(long))] == [made.job(middle).fork]


def test_the_last_fork_stays_where_the_study_keeps_trunks(tmp_path: Path) -> None:
    made = Made(tmp_path, keep_trunks=True)
    short, _, long = made.runs
    made.fork(long, made.job(long).fork)
    for run in made.runs:
        made.finish(run)
    assert list(superfluous_forks(made.folder, made.jobs)) == []
    assert not is_needed(made.folder, made.job(short), made.job(short).fork)


@pytest.mark.parametrize("which", [0, 2])
def test_a_divergence_is_inherited_where_it_lies_before_both_forks(made: Made, which: int) -> None:
    other, middle = made.runs[which], made.runs[1]
    in_common = min(made.job(other).fork, made.job(middle).fork)
    made.finish(other, "diverged", in_common - 1)
    found = inherited(made.folder, made.job(middle))
    assert found is not None
    assert found.run_id == other.run_id


@pytest.mark.parametrize("which", [0, 2])
def test_a_divergence_after_a_fork_is_not(made: Made, which: int) -> None:
    other, middle = made.runs[which], made.runs[1]
    made.finish(other, "diverged", min(made.job(other).fork, made.job(middle).fork))
    assert inherited(made.folder, made.job(middle)) is None


def test_what_is_yet_to_be_executed_begins_where_a_longer_run_is_going_to_pass(made: Made) -> None:
    short, middle, long = made.runs
    after = {run.run_id: run.spec.steps - made.job(run).fork for run in (short, middle)}
    assert steps_to_train(made.folder, made.plan) == {long.run_id: long.spec.steps, **after}
    # It has passed the first fork and left nothing there; the middle one is yet to pass it.
    ckpt = made.of(long).checkpoints
    (ckpt / str(made.job(short).fork + 1)).mkdir(parents=True)
    found = starts(made.folder, made.plan)
    assert found[long.run_id].step == made.job(short).fork + 1
    assert (found[middle.run_id].step, found[middle.run_id].is_there) == (
        made.job(middle).fork,
        False,
    )
    assert found[short.run_id].step == 0
    # The middle one goes on from a checkpoint of its own: nobody is going to pass the short's.
    (made.of(middle).checkpoints / "7").mkdir(parents=True)
    (made.of(middle).checkpoints / ".9.1-ab.tmp").mkdir()
    found = starts(made.folder, made.plan)
    assert found[middle.run_id].num_left == middle.spec.steps - 7
    assert found[short.run_id].sibling == middle.run_id


def test_a_done_trunk_saves_what_it_has_left_and_nothing_else(made: Made) -> None:
    short, middle, long = made.runs
    made.finish(long)
    # The middle one is trained whole, and the short one begins on its way.
    left = {middle.run_id: middle.spec.steps, short.run_id: short.spec.steps - made.job(short).fork}
    assert steps_to_train(made.folder, made.plan) == left
    made.fork(long, made.job(short).fork)
    found = starts(made.folder, made.plan)
    assert found[middle.run_id].step == found[short.run_id].step == made.job(short).fork
    assert found[middle.run_id].is_there
    assert found[middle.run_id].sibling == long.run_id
    made.finish(middle)
    made.finish(short)
    assert starts(made.folder, made.plan) == {}


def test_nobody_counts_on_a_run_that_failed_diverged_or_is_not_trained(made: Made) -> None:
    short, middle, long = made.runs
    alone = starts(made.folder, made.plan, {short.run_id})
    assert alone[short.run_id].step == 0
    assert steps_to_train(made.folder, made.plan, {short.run_id, middle.run_id})[middle.run_id] == (
        middle.spec.steps
    )
    # It is at work in this process, whoever else is trained.
    attempt = made.of(long).claim({})
    assert attempt is not None
    assert starts(made.folder, made.plan, {short.run_id})[short.run_id].sibling == long.run_id
    made.of(long).end_attempt(attempt, "failed: no memory")
    assert starts(made.folder, made.plan)[middle.run_id].step == 0
    assert starts(made.folder, made.plan)[short.run_id].sibling == middle.run_id
    # Damaged, it is nobody's trunk, and is not trained itself.
    (made.of(middle).path / "result.json").write_text("{")
    found = starts(made.folder, made.plan)
    assert middle.run_id not in found
    assert found[short.run_id].step == 0


def test_a_divergence_in_what_is_common_leaves_no_step(made: Made) -> None:
    short, middle, long = made.runs
    made.finish(long, "diverged", made.job(short).fork)
    assert steps_to_train(made.folder, made.plan) == {
        middle.run_id: 0,
        short.run_id: short.spec.steps,
    }


def test_a_kept_state_stays_for_a_longer_run_that_is_planned_later(tmp_path: Path) -> None:
    made = Made(tmp_path, keep_trunks=True)
    short, middle, long = made.runs
    # As if the study had been planned with two budgets, and then with the third.
    kept = made.fork(middle, made.job(middle).fork)
    for run in (short, middle):
        made.finish(run)
    assert starts(made.folder, made.plan)[long.run_id].step == made.job(middle).fork
    assert list(superfluous_forks(made.folder, made.jobs)) == []
    made.fork(long, made.job(long).fork)
    made.finish(long)
    assert list(superfluous_forks(made.folder, made.jobs)) == [kept.parent]


def test_a_run_without_another_keeps_its_state_where_trunks_are_kept(tmp_path: Path) -> None:
    one = {"recipe": "micro-v3", "archs": ("mlp",), "sizes": (1,)}
    (run,) = make_plan(micro(**one, keep_trunks=True)).runs
    job = trunk_jobs(make_plan(micro(**one, keep_trunks=True)))[run.run_id]
    assert job.siblings == ()
    assert is_needed(tmp_path, job, job.fork)
    assert trunk_jobs(make_plan(micro(**one))) == {}


def test_a_run_waits_for_the_longest_that_is_coming(made: Made) -> None:
    short, middle, long = made.runs
    assert made.longer(long, short, middle) is None
    assert made.longer(short) is None
    assert made.longer(short, middle) == middle.run_id
    assert made.longer(short, middle, long) == long.run_id
    # One that is done passes no more, nor does one that failed, unless it is tried again.
    made.of(long).end_attempt(made.begin(long), "failed: out of memory")
    assert made.longer(short, middle, long) == middle.run_id
    assert made.longer(short, middle, long, retries=True) == long.run_id
    made.finish(middle)
    assert made.longer(short, middle, long) is None


def test_it_waits_no_more_once_its_own_fork_is_there(made: Made) -> None:
    short, middle, long = made.runs
    fork = made.fork(long, made.job(short).fork)
    assert made.longer(short, long) is None
    assert made.longer(middle, long) == long.run_id
    remove_fork(fork)
    (made.of(long).forks / f".{made.job(short).fork}.7-abc.tmp").mkdir()
    assert made.longer(short, long) == long.run_id
    # An earlier one is not waited for either, if it can go on from a state of its own.
    (made.of(short).checkpoints / "3").mkdir(parents=True)
    assert made.longer(short, long) is None


@pytest.mark.parametrize(("past", "waits"), [(0, True), (1, False)])
@pytest.mark.parametrize("by", ["heartbeat", "checkpoint", "fork"])
def test_whoever_is_past_the_fork_and_did_not_leave_it_is_not_waited_for(
    made: Made, by: str, past: int, waits: bool
) -> None:
    short, _, long = made.runs
    completed = made.job(short).fork + past
    if by == "heartbeat":
        # It tells the last step; its predecessor's says nothing.
        first = made.begin(long)
        made.of(long).beat(first, long.spec.steps - 1, long.spec.steps)
        made.of(long).end_attempt(first, "interrupted: SIGTERM")
        second = made.begin(long)
        assert made.longer(short, long) == long.run_id
        made.of(long).beat(second, completed - 1, long.spec.steps)
    elif by == "checkpoint":
        (made.of(long).checkpoints / str(completed)).mkdir(parents=True)
    elif past:
        made.fork(made.runs[1], completed)
    assert (made.longer(short, long) == long.run_id) == waits


def test_a_heartbeat_of_a_killed_process_says_nothing(made: Made) -> None:
    short, _, long = made.runs
    attempt = made.begin(long)
    path = made.of(long).path / "attempts" / "0001.json"
    record = json.loads(path.read_text())
    write_json_atomic(path, record | {"holder": record["holder"] | {"start_ticks": 0}})
    made.of(long).beat(attempt, long.spec.steps - 1, long.spec.steps)
    # It goes on from its first step.
    assert made.longer(short, long) == long.run_id


def test_a_divergence_that_is_inherited_is_not_waited_for(made: Made) -> None:
    short, middle, long = made.runs
    made.finish(middle, "diverged", made.job(short).fork - 1)
    assert made.longer(short, long) is None


@pytest.mark.parametrize("file", ["result.json", "lease.json", "attempts/0001.json"])
def test_of_a_damaged_run_nothing_is_expected(made: Made, file: str) -> None:
    short, middle, long = made.runs
    fork = made.fork(long, made.job(middle).fork)
    made.begin(long)
    (made.of(long).path / file).write_text("{")
    assert made.longer(short, long, retries=True) is None
    assert inherited(made.folder, made.job(short)) is None
    assert fork not in superfluous_forks(made.folder, made.jobs)
