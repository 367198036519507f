"""Who begins where another run passed, by the files of a study alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from isoflop.files import write_json_atomic
from isoflop.launch.clean import leftovers, remove
from isoflop.launch.collect import runs_row, shared, study_states
from isoflop.launch.trunks import (
    forks_in,
    inherited,
    is_needed,
    prune_forks,
    remove_fork,
    starts,
    steps_to_train,
    superfluous_forks,
    trunk_jobs,
    usable_forks,
)
from isoflop.numbers import format_flops
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from isoflop.plan.trunks import flops_of_steps
from isoflop.spec import shown_id
from made_siblings import Made
from made_studies import micro


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


def test_what_the_last_run_leaves_behind_is_no_state(made: Made) -> None:
    short, middle, long = made.runs
    forks = {run.run_id: made.fork(long, made.job(run).fork) for run in (short, middle)}
    made.fork(middle, made.job(short).fork)
    # Of a writer that was killed, and what goes with the forks.
    half = made.of(long).forks / f".{made.job(short).fork}.7-abc.tmp"
    half.mkdir()
    (made.of(long).forks / "shared.jsonl").touch()
    made.finish(short)
    prune_forks(made.folder, short.run_id, made.job(short))
    assert not forks[short.run_id].exists()
    assert forks[middle.run_id].exists()
    assert not forks_in(made.of(middle))
    # While the long one may be at work, its half is not another's to remove.
    assert half.exists()
    made.finish(long)
    prune_forks(made.folder, long.run_id, made.job(long))
    assert not half.exists()
    assert forks[middle.run_id].exists()
    made.finish(middle, "diverged", made.job(middle).fork)
    prune_forks(made.folder, middle.run_id, made.job(middle))
    assert not made.of(long).forks.exists()
    assert not made.of(middle).forks.exists()
    assert made.of(long).result() is not None


def test_records_of_a_divergence_stay_until_it_is_inherited(made: Made) -> None:
    short, middle, long = made.runs
    for run in (middle, long):
        made.of(run).forks.mkdir(parents=True)
        (made.of(run).forks / "shared.jsonl").touch()
        made.finish(run, "diverged", 3)
        prune_forks(made.folder, run.run_id, made.job(run))
    assert (made.of(middle).forks / "shared.jsonl").exists()
    assert (made.of(long).forks / "shared.jsonl").exists()
    made.finish(short, "diverged", 3)
    prune_forks(made.folder, short.run_id, made.job(short))
    assert not any(made.of(run).forks.exists() for run in made.runs)


def test_whoever_ends_last_leaves_what_the_longest_keeps(tmp_path: Path) -> None:
    made = Made(tmp_path, keep_trunks=True)
    short, _, long = made.runs
    kept = made.fork(long, made.job(long).fork)
    for run in reversed(made.runs):
        made.finish(run)
    prune_forks(made.folder, short.run_id, made.job(short))
    assert kept.exists()
    prune_forks(made.folder, long.run_id, made.job(long))
    assert kept.exists()


def test_nothing_is_removed_through_a_link(made: Made, tmp_path: Path) -> None:
    short, _, long = made.runs
    outside = tmp_path / "outside"
    (outside / str(made.job(short).fork)).mkdir(parents=True)
    made.of(long).forks.symlink_to(outside)
    made.finish(short)
    prune_forks(made.folder, short.run_id, made.job(short))
    assert (outside / str(made.job(short).fork)).exists()


def test_clean_shows_forks_that_nobody_needs(made: Made) -> None:
    write_plan(made.plan, made.folder)
    short, middle, long = made.runs
    fork = made.fork(long, made.job(short).fork)
    (fork / "weights.safetensors").write_bytes(b"12345")
    made.fork(long, made.job(middle).fork)
    assert leftovers(made.folder, made.plan) == []
    made.finish(short)
    (found,) = leftovers(made.folder, made.plan)
    assert (found.path, found.size_bytes) == (fork, 5)
    assert remove(made.folder, made.plan, [found]) == [found]
    assert [fork.step for fork in forks_in(made.of(long))] == [made.job(middle).fork]


def test_who_waits_and_for_whom_follows_from_the_files(made: Made) -> None:
    short, middle, long = made.runs

    def told() -> list[tuple[str, str | None]]:
        return [(s.state, s.reason) for s in study_states(made.folder, made.plan)]

    assert told() == [("missing", None)] * 3
    made.begin(long)
    waits = [
        f"waits for {shown_id(long.run_id)} to pass step {made.job(run).fork:,}"
        for run in (short, middle)
    ]
    assert told() == [("waiting", waits[0]), ("waiting", waits[1]), ("running", None)]
    made.fork(long, made.job(short).fork)
    assert told()[0] == ("missing", None)
    # A row of runs.parquet says missing, as long as there is no result.
    assert [runs_row(s)["status"] for s in study_states(made.folder, made.plan)] == ["missing"] * 3
    made.of(long).end_attempt(made.of(long).attempts()[0], "failed: no memory")
    assert told()[1] == ("missing", None)


def test_what_was_shared_is_told_of_finished_runs(made: Made) -> None:
    short, _, _ = made.runs
    for run in made.runs:
        made.finish(run)
    results = {run.run_id: made.of(run).result() for run in made.runs}
    assert shared(made.plan, results) is None
    fork = made.job(short).fork
    results[short.run_id] = dataclasses.replace(results[short.run_id], trunk_steps=fork)
    found = shared(made.plan, results)
    assert found is not None
    every = sum(run.flops for run in made.runs)
    assert (found.num_runs, found.num_begun_at_forks) == (3, 1)
    assert (found.flops, found.flops_spent) == (every, every - flops_of_steps(short, fork))
    assert str(found) == (
        f"1 of 3 runs began from a state of another one: {format_flops(found.flops_spent, 3)} of "
        f"{format_flops(found.flops, 3)} FLOPs executed"
    )
