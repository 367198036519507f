"""Runs that share a trunk on a cluster: in which order they are sent, and who waits for whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.cli.submit import total_lines
from isoflop.data.prepare import prepare as prepare_data
from isoflop.launch.job import Job
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm import waiting
from isoflop.launch.slurm.records import record_cancelled, waited_file
from isoflop.launch.slurm.submit import Prepared, arrays_of, prepare
from isoflop.launch.slurm.waiting import LONGEST_DELAY_S, Waiting
from isoflop.launch.trunks import trunk_jobs
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.trunks import trunks_of
from isoflop.spec import shown_id
from made_studies import micro
from slurm.made_sbatch import CPU, Pretended
from slurm.made_scheduler import DOWN, Scheduler, Sent


def fail(folder: RunFolder) -> None:
    """A failed attempt, as a task records it."""
    attempt = folder.claim({})
    assert attempt is not None
    folder.end_attempt(attempt, "failed: CodeError: it does not work")


@pytest.fixture
def trunk(tmp_path: Path) -> tuple[Path, Plan]:
    """One trunk of three runs, and a run of another size that shares nothing."""
    budgets = (10**10, 2 * 10**10, 4 * 10**10)
    sizes = {budget: {"mlp": (1, 2) if budget == budgets[0] else (1,)} for budget in budgets}
    plan = make_plan(micro(archs=("mlp",), sizes=sizes, recipe="micro-v3", budgets=budgets))
    write_plan(plan, tmp_path / "trunk")
    prepare_data("sotu-embedded", "byte")
    return tmp_path / "trunk", plan


def hours(prepared: Prepared, *, shares: dict[str, float]) -> float:
    """Of these shares of runs' steps."""
    found = prepared.estimate.runs
    return sum(share * (found[run_id].gpu_hours or 0) for run_id, share in shares.items())


def test_branches_come_last_and_cost_what_they_execute(
    slurm: Pretended, trunk: tuple[Path, Plan]
) -> None:
    folder, plan = trunk
    (shared,) = trunks_of(plan)
    (alone,) = {run.run_id for run in plan.runs} - {run.run_id for run in shared.runs}
    left = {run.run_id: 1 - fork / run.spec.steps for run, fork in shared.branches}
    prepared = prepare(folder, CPU)
    first, second = arrays_of(prepared)
    assert {i for task in first.tasks for i in task} == {alone, shared.longest.run_id}
    # The shortest can begin first.
    assert second.tasks == tuple((run.run_id,) for run, _ in shared.branches)
    wanted = hours(prepared, shares={alone: 1.0, shared.longest.run_id: 1.0, **left})
    assert prepared.gpu_hours == pytest.approx(wanted)
    whole = hours(prepared, shares=dict.fromkeys(prepared.runs, 1.0))
    assert prepared.gpu_hours_saved == pytest.approx(whole - wanted)
    assert "2 of them begin from a state of another run" in "\n".join(total_lines(prepared))


def test_a_branch_whose_trunk_is_not_sent_is_a_run_as_any_other(
    slurm: Pretended, trunk: tuple[Path, Plan]
) -> None:
    folder, plan = trunk
    (shared,) = trunks_of(plan)
    short, middle, longest = (run.run_id for run in shared.runs)
    alone = prepare(folder, CPU, only=[short])
    assert alone.gpu_hours == hours(alone, shares={short: 1.0})
    assert alone.runs[short].begins_at_once
    # The middle one is the trunk of what is sent without the longest.
    two = prepare(folder, CPU, only=[short, middle])
    assert [run_id for run_id, run in two.runs.items() if run.begins_at_once] == [middle]
    # One that failed is waited for by nobody.
    run_folder = RunFolder(folder, longest)
    run_folder.write_spec(shared.longest.spec)
    fail(run_folder)
    retried = prepare(folder, CPU)
    waiting = [run_id for run_id, run in retried.runs.items() if not run.begins_at_once]
    assert waiting == [short]
    # What it left before is there for all.
    for fork in shared.forks[:2]:
        (run_folder.forks / str(fork)).mkdir(parents=True)
    left = {run.run_id: 1 - fork / run.spec.steps for run, fork in shared.branches}
    there = prepare(folder, CPU, only=[short, middle])
    assert all(run.begins_at_once for run in there.runs.values())
    assert there.gpu_hours == pytest.approx(hours(there, shares=left))


SHORT, MIDDLE, LONG = 0, 1, 2


class Branch:
    """The task of a branch, of the submission s2, as it begins again and again."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        budgets = (10**10, 2 * 10**10, 4 * 10**10)
        made = micro(archs=("mlp",), sizes=(1,), recipe="micro-v3", budgets=budgets)
        self.sent = Sent(folder, make_plan(made))
        self.trunks = trunk_jobs(self.sent.plan)
        for index, run in enumerate(self.sent.plan.unique_runs):
            self.sent.run(index).write_spec(run.spec)
        # Where its own submission's record is.
        waited_file(folder, "s2", "7_3").parent.mkdir(parents=True)
        self.now_s = 1e9
        self.stop: str | None = None
        monkeypatch.setattr(waiting, "time", self)

        self.left_s = 0.0

    def time(self) -> float:
        return self.now_s

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def task(self, *indices: int, requeues: bool = True, array: int = 1) -> Waiting:
        folder, ids = self.sent.folder, [self.sent.ids[i] for i in indices or (SHORT,)]
        jobs = {
            i: Job(study_folder=str(folder), run_id=i, data_folder="", trunk=self.trunks[i])
            for i in ids
        }
        notes = waited_file(folder, "s2", "7_3") if requeues else None
        return Waiting(jobs, folder, ("s2", array), notes, lambda: self.stop)

    def first(self, *indices: int, requeues: bool = True, array: int = 1) -> int | None:
        """Which of its runs the task begins with; None: it gives its node back."""
        made = self.task(*indices, requeues=requeues, array=array)
        found = made.first([self.sent.ids[i] for i in indices or (SHORT,)])
        return None if found is None else self.sent.ids.index(found)


@pytest.fixture
def branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Branch:
    return Branch(tmp_path / "a study", monkeypatch)


@pytest.mark.parametrize(
    ("state", "reason", "waits"),
    [
        ("RUNNING", "None", True),
        ("PENDING", "Resources", True),
        ("PENDING", "BeginTime", True),
        # It waits for other arrays: for the very one that waits here, perhaps.
        ("PENDING", "Dependency", False),
        ("PENDING", "JobHeldUser", False),
        ("PENDING", "BadConstraints", False),
        ("COMPLETED", "None", False),
        ("CANCELLED", "None", False),
        ("", "", False),
    ],
)
def test_a_run_waits_while_the_queue_is_going_to_have_a_longer_one_trained(
    state: str, reason: str, waits: bool, branch: Branch, told: Scheduler
) -> None:
    branch.sent.submission("12", tasks=[[LONG]])
    told.queue(*[branch.sent.line("12", state, reason=reason)] * bool(state))
    assert (branch.first() is None) == waits
    assert len(told.calls) == 1


@pytest.mark.parametrize(("array", "waits"), [(-1, False), (0, True), (1, True)])
def test_an_array_behind_earlier_ones_of_its_submission_is_waited_for_by_later_ones(
    array: int, waits: bool, branch: Branch, told: Scheduler
) -> None:
    branch.sent.submission("13", tasks=[[LONG]], name="s2")
    told.queue(branch.sent.line("13", "PENDING", reason="Dependency"))
    assert (branch.first(array=array) is None) == waits


def test_a_longer_run_that_failed_or_was_never_sent_keeps_nobody(
    branch: Branch, told: Scheduler
) -> None:
    assert branch.first() == SHORT
    branch.sent.submission("12", tasks=[[LONG]])
    told.queue(branch.sent.line("12", "PENDING"))
    assert branch.first() is None
    branch.sent.attempt(LONG, "failed: CodeError: it does not work")
    assert branch.first() == SHORT


def test_a_live_process_without_a_job_is_waited_for(branch: Branch, told: Scheduler) -> None:
    attempt = branch.sent.run(LONG).claim({})
    assert attempt is not None
    assert branch.first() is None
    # It was not told how far it is: the task stayed for a while first.
    assert branch.now_s - 1e9 == pytest.approx(waiting.NEAR_S, abs=5)
    branch.sent.run(LONG).end_attempt(attempt, "interrupted: SIGTERM")
    assert branch.first() == SHORT
    assert told.calls == []


def test_while_the_scheduler_does_not_answer_what_was_sent_is_coming(
    branch: Branch, told: Scheduler
) -> None:
    told.says("squeue", error=DOWN, code=1)
    branch.sent.submission("12", tasks=[[LONG]], rejected="no such partition", name="s0")
    assert branch.first() == SHORT
    branch.sent.submission("12", tasks=[[LONG]])
    assert branch.first() is None
    # No node is kept for it.
    assert branch.now_s == 1e9
    record_cancelled(branch.sent.folder, ["12"])
    assert branch.first() == SHORT


def test_where_it_begins_at_once_the_next_one_is_asked_for(branch: Branch, told: Scheduler) -> None:
    branch.sent.submission("12", tasks=[[LONG]])
    told.queue(branch.sent.line("12", "RUNNING", node="n1"))
    # Of a task of both, the longer of the two waits, and the shorter for it.
    assert branch.first(SHORT, MIDDLE) is None
    assert len(told.calls) == 1
    fork = branch.trunks[branch.sent.ids[SHORT]].fork
    (branch.sent.run(LONG).forks / str(fork)).mkdir(parents=True)
    assert branch.first(MIDDLE, SHORT) == SHORT
    assert branch.first(MIDDLE) is None
    (branch.sent.run(LONG).forks / str(fork)).rmdir()
    # A longer one of the task itself is tried first, and then keeps the shorter one no more.
    assert branch.first(SHORT, LONG) == LONG
    assert branch.task(SHORT, LONG).first([branch.sent.ids[SHORT]]) == branch.sent.ids[SHORT]


def test_a_fork_that_is_near_is_waited_for_and_a_far_one_is_not(
    branch: Branch, told: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = branch.trunks[branch.sent.ids[SHORT]].fork
    assert branch.sent.run(LONG).claim({}) is not None
    branch.sent.heartbeat(LONG, step=0)

    def rate(*_: object) -> float:
        return fork / (branch.left_s or 1)

    monkeypatch.setattr(waiting, "steps_per_s", rate)
    branch.left_s = 3600.0
    task = branch.task()
    assert task.first([branch.sent.ids[SHORT]]) is None
    assert branch.now_s == 1e9
    assert task.give_back() == LONGEST_DELAY_S
    branch.left_s = 300.0
    task = branch.task()
    assert task.first([branch.sent.ids[SHORT]]) is None
    assert task.give_back() == 300
    # From here on it is near, and passes the fork while the task looks.
    branch.left_s = 100.0

    def sleep(seconds: float) -> None:
        branch.now_s += seconds
        if branch.now_s > 1e9 + 50:
            (branch.sent.run(LONG).forks / str(fork)).mkdir(parents=True, exist_ok=True)

    branch.sleep = sleep  # type: ignore[method-assign]
    assert branch.first() == SHORT
    assert 1e9 + 50 < branch.now_s < 1e9 + 60
    assert told.calls == []


def test_a_task_that_is_to_stop_stays_no_longer(branch: Branch) -> None:
    assert branch.sent.run(LONG).claim({}) is not None
    branch.stop = "SIGUSR2"
    assert branch.first(requeues=False) is None
    assert branch.now_s == 1e9


def test_nothing_waits_for_ever_and_no_task_goes_round_in_circles(
    branch: Branch, told: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    most_s = 2 * 3600.0
    monkeypatch.setattr(waiting, "MAX_STILL_S", most_s)
    branch.sent.submission("12", tasks=[[LONG]])
    told.queue(branch.sent.line("12", "PENDING", reason="Priority"))
    branch.sent.attempt(LONG, "interrupted: SIGTERM")
    delays = []
    for number in range(100):
        if number in (1, 2):
            branch.sent.heartbeat(LONG, step=number)
        task = branch.task()
        if task.first([branch.sent.ids[SHORT]]) is not None:
            break
        delays.append(task.give_back())
        branch.now_s += delays[-1]
    # One for each time that the longer one got on, then none for longer than that.
    assert delays[:8] == [60, 60, 60, 120, 240, 480, 960, 1200]
    assert most_s <= sum(delays[2:]) < most_s + LONGEST_DELAY_S
    # A note that is damaged ends no task.
    waited_file(branch.sent.folder, "s2", "7_3").write_text("{")
    assert branch.first() is None


def test_on_this_machine_a_task_stays_until_it_may_begin(
    branch: Branch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MAX_STILL_S", 300.0)
    assert branch.sent.run(LONG).claim({}) is not None
    assert branch.first(requeues=False) == SHORT
    assert branch.now_s - 1e9 == pytest.approx(300, abs=5)


def test_status_says_whom_a_run_waits_for_and_up_to_which_step(
    branch: Branch, told: Scheduler
) -> None:
    sent = branch.sent
    sent.submission("12", tasks=[[LONG], [SHORT]])
    told.queue(
        sent.line("12_0", "PENDING", reason="BeginTime"),
        sent.line("12_1", "PENDING", reason="BeginTime", restarts=1),
    )
    fork = branch.trunks[sent.ids[SHORT]].fork
    found = sent.state(SHORT)
    words = f"waits for run {shown_id(sent.ids[LONG])} to pass step {fork} (now 0)"
    assert (found.state, str(found.reason).endswith(words)) == ("requeued", True)
    assert "waits for run" not in str(sent.state(LONG).reason)
    told.queue(sent.line("12_1", "PENDING", reason="BeginTime", restarts=1))
    assert "waits for run" not in str(sent.state(SHORT).reason)
