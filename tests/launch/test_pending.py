"""Which job of a session is next, and which wait for longer runs of their trunks."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.launch.job import Job, Sibling, TrunkJob
from isoflop.launch.pending import Pending
from isoflop.launch.run_folder import RunFolder
from made_siblings import Made


def taken(pending: Pending) -> list[str]:
    """All runs that may begin now, each given to a worker."""
    found = []
    while (job := pending.next()) is not None:
        found.append(job.run_id)
    return found


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def jobs(made: Made) -> list[Job]:
    """Of a short, a middle and a long run."""
    return [made.whole_job(run) for run in made.runs]


def ids(*jobs: Job) -> list[str]:
    return [job.run_id for job in jobs]


def told(pending: Pending) -> list[tuple[str, str]]:
    return [(job.run_id, longer.run_id) for job, longer in pending.news()]


def test_branches_begin_as_the_trunk_passes_their_forks(made: Made, jobs: list[Job]) -> None:
    short, middle, long = jobs
    # In whatever order they are given.
    pending = Pending(jobs)
    assert taken(pending) == ids(long)
    assert told(pending) == [(job.run_id, long.run_id) for job in (short, middle)]
    assert pending
    made.fork(made.runs[2], made.job(made.runs[0]).fork)
    # It is passed when the next step is done.
    pending.see_step(long.run_id, made.job(made.runs[0]).fork)
    assert taken(pending) == []
    pending.see_step(long.run_id, made.job(made.runs[0]).fork + 1)
    assert taken(pending) == ids(short)
    assert told(pending) == []
    made.fork(made.runs[2], made.job(made.runs[1]).fork)
    pending.see_step(long.run_id, made.runs[2].spec.steps)
    assert taken(pending) == ids(middle)
    assert not pending


def test_when_a_trunk_ends_without_a_fork_the_next_longest_takes_its_place(
    made: Made, jobs: list[Job]
) -> None:
    short, middle, long = jobs
    pending = Pending([long, middle, short])
    assert taken(pending) == ids(long)
    made.of(made.runs[2]).end_attempt(made.begin(made.runs[2]), "failed: no memory")
    pending.end(long.run_id)
    assert taken(pending) == ids(middle)
    assert told(pending)[-1] == (short.run_id, middle.run_id)
    pending.end(middle.run_id)
    assert taken(pending) == ids(short)


def test_a_run_that_failed_before_the_session_is_tried_first(made: Made, jobs: list[Job]) -> None:
    short, _, long = jobs
    made.of(made.runs[2]).end_attempt(made.begin(made.runs[2]), "failed: no memory")
    pending = Pending([short, long])
    assert taken(pending) == ids(long)
    # Until it fails again, which its end tells and not its record.
    pending.look_again()
    assert taken(pending) == []
    pending.end(long.run_id)
    assert taken(pending) == ids(short)


def test_a_trunk_that_is_not_of_the_session_is_waited_for_while_it_is_at_work(
    made: Made, jobs: list[Job]
) -> None:
    short, middle, _ = jobs
    long = made.runs[2]
    attempt = made.begin(long)
    pending = Pending([middle, short])
    assert taken(pending) == []
    made.fork(long, made.job(made.runs[0]).fork)
    # It is looked at when that is asked for.
    assert taken(pending) == []
    pending.look_again()
    assert taken(pending) == ids(short)
    made.of(long).end_attempt(attempt, "interrupted: SIGTERM")
    pending.look_again()
    assert taken(pending) == ids(middle)


def test_without_its_trunk_a_branch_begins_at_once(made: Made, jobs: list[Job]) -> None:
    short, middle, _ = jobs
    assert taken(Pending([short])) == ids(short)
    assert taken(Pending([short, middle])) == ids(middle)


def test_a_held_job_comes_after_those_that_are_ready(made: Made, jobs: list[Job]) -> None:
    short, middle, long = jobs
    pending = Pending([long, middle, short])
    assert taken(pending) == ids(long)
    attempt = made.begin(made.runs[2])
    pending.hold(long)
    made.fork(made.runs[2], made.job(made.runs[0]).fork)
    assert taken(pending) == []
    pending.look_again()
    assert taken(pending) == ids(short, long)
    # It was tried, and is held again; its process dies, and the session goes on with it.
    pending.hold(long)
    pending.end(short.run_id)
    made.of(made.runs[2]).end_attempt(attempt, "interrupted: SIGTERM")
    pending.look_again()
    assert taken(pending) == ids(long)
    assert pending


def test_of_those_that_wait_only_those_of_runs_at_work_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair(number: int) -> tuple[Job, Job]:
        short, long = (
            Sibling(run_id=f"{2 * number + i:064x}", steps=100 + 100 * i, fork=80 + 80 * i)
            for i in (0, 1)
        )
        first, second = (
            Job(
                study_folder=str(tmp_path),
                run_id=own.run_id,
                data_folder="d",
                trunk=TrunkJob(steps=own.steps, fork=own.fork, siblings=(other,)),
            )
            for own, other in ((short, long), (long, short))
        )
        return first, second

    looks: list[str] = []
    attempts = RunFolder.attempts

    def counted(folder: RunFolder) -> object:
        looks.append(folder.run_id)
        return attempts(folder)

    monkeypatch.setattr(RunFolder, "attempts", counted)
    pairs = [pair(number) for number in range(100)]
    pending = Pending([job for which in (0, 1) for job in (p[which] for p in pairs)])
    for number in (0, 1):
        job = pending.next()
        assert job is not None
        assert job.run_id == pairs[number][1].run_id
    # One look at the longer run of each.
    assert len(looks) == 100
    looks.clear()
    for _ in range(5):
        pending.look_again()
        pending.see_step(pairs[0][1].run_id, 50)
        job = pending.next()
        assert job is not None
        pending.end(job.run_id)
    assert len(looks) <= 5 * (2 + 1)
