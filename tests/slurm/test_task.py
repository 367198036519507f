"""What becomes of a task, by how its runs ended and what it was told; nothing is trained."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from isoflop.files import read_json, write_json_atomic
from isoflop.launch import execute as executing
from isoflop.launch.callbacks import StopFlag
from isoflop.launch.job import Job, JobResult
from isoflop.launch.run_folder import RunFolder, Watch
from isoflop.launch.slurm import task
from isoflop.launch.slurm.failures import kind_of_job
from isoflop.launch.slurm.records import (
    NotRequeued,
    SentArray,
    Submission,
    jobs_file,
    not_requeued_file,
    read_not_requeued,
    submission_file,
    write_options,
    write_submission,
)
from isoflop.launch.slurm.scheduler import JobState, SchedulerError
from slurm.made_scheduler import DOWN

RUNS = ("a" * 64, "b" * 64)
SIGNAL_S = 100


class Told:
    """Results to come, and what the task did."""

    def __init__(self) -> None:
        self.results: dict[str, list[JobResult]] = {run_id: [] for run_id in RUNS}
        self.executed: list[str] = []
        self.watches: list[Watch | None] = []
        """What each was executed with."""
        self.requeued: list[str] = []
        self.delays_s: list[int] = []
        self.signal = "SIGUSR2"
        self.stop: str | None = None
        self.stop_after: int | None = None
        self.refusals: list[str] = []
        """The scheduler's messages to come, each instead of requeueing."""
        self.ended_after: int | None = None
        """Refusals after which SIGTERM comes."""
        self.waited: list[float] = []
        """Seconds that went by after each refusal."""
        self.now_s = 1e9

    def time(self) -> float:
        return self.now_s

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.waited:
            self.waited[-1] += seconds

    def requeue(self, job_id: str, *, delay_s: int = 0) -> None:
        if self.refusals:
            self.waited.append(0.0)
            raise SchedulerError("scontrol requeue", self.refusals.pop(0))
        self.requeued.append(job_id)
        self.delays_s.append(delay_s)

    def flag(self, numbers: Sequence[signal.Signals] = ()) -> Flag:
        return Flag(self, is_term=list(numbers) == [signal.SIGTERM])


class Flag:
    def __init__(self, told: Told, *, is_term: bool) -> None:
        self._told = told
        self._is_term = is_term

    def __call__(self) -> str | None:
        if not self._is_term:
            return self._told.stop
        return "SIGTERM" if len(self._told.waited) == self._told.ended_after else None

    @property
    def received_s(self) -> float | None:
        return None if self._told.stop is None else 1e9


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    jobs = {
        run_id: Job(study_folder=str(tmp_path), run_id=run_id, data_folder=str(tmp_path)).to_json()
        for run_id in RUNS
    }
    write_json_atomic(jobs_file(tmp_path, "s"), jobs)
    # It is the array's last task.
    write_submission(tmp_path, submission(("c" * 64,), ("d" * 64,), ("e" * 64,), RUNS))

    def execute(
        job: Job, data: object, *, watch: Watch | None = None, **others: object
    ) -> JobResult:
        told.executed.append(job.run_id)
        told.watches.append(watch)
        if told.stop_after == len(told.executed):
            told.stop = told.signal
        result = told.results[job.run_id].pop(0)
        if result.status == "failed":
            folder = RunFolder(tmp_path, job.run_id)
            folder.path.mkdir(parents=True, exist_ok=True)
            attempt = folder.claim({})
            assert attempt is not None
            folder.end_attempt(attempt, f"failed: {result.reason}")
        return result

    monkeypatch.setattr(executing, "execute", execute)
    monkeypatch.setattr("isoflop.data.windows.open_data", lambda folder: None)
    monkeypatch.setattr("isoflop.launch.slurm.scheduler.requeue", told.requeue)
    monkeypatch.setattr(task, "HELD_POLL_S", 0.0)
    monkeypatch.setattr(task, "StopFlag", told.flag)
    monkeypatch.setattr(task, "time", told)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    return told


def submission(*tasks: tuple[str, ...]) -> Submission:
    array = SentArray(job_id=None, tasks=tasks, rejected=None, is_array=len(tasks) > 1)
    return Submission(
        submission_id="s",
        created_at=0.0,
        profile={"name": "a", "hardware": "cpu2", "signal_s": SIGNAL_S},
        snapshot=None,
        cluster="slurm",
        arrays=(array,),
    )


def run(folder: Path) -> str:
    return task.run_task(str(folder), "s", "0")


def result(status: str) -> JobResult:
    return JobResult(status=status, reason=None if status == "done" else "because")


def test_all_done(told: Told, tmp_path: Path) -> None:
    told.results = {run_id: [result("done")] for run_id in RUNS}
    assert run(tmp_path) == "complete"
    assert told.executed == list(RUNS)
    assert told.requeued == []


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_runs_whose_holders_cannot_be_seen_are_watched_from_the_beginning_and_come_last(
    num_ranks: int, told: Told, tmp_path: Path
) -> None:
    first, second = RUNS
    folder = RunFolder(tmp_path, first)
    folder.path.mkdir(parents=True)
    assert folder.claim({}) is not None
    path = folder.path / "attempts" / "0001.json"
    record = read_json(path, "attempt")
    write_json_atomic(path, record | {"holder": record["holder"] | {"boot_id": "before"}})
    (folder.path / "lease.json").write_text("{}")
    told.results = {first: [result("held"), result("done")], second: [result("done")]}
    if num_ranks > 1:
        # All ranks have to begin the same run, and each looks for itself.
        jobs = read_json(jobs_file(tmp_path, "s"), "jobs")
        jobs[second]["placement"] |= {"num_ranks": 2, "parallel": "ddp"}
        write_json_atomic(jobs_file(tmp_path, "s"), jobs)
        made = task.ArrayTask(
            tmp_path, ("s", 0), RUNS, StopFlag(()), max_failures=3, signal_s=SIGNAL_S
        )
        assert made._in_order(RUNS) == [first, second]
        return
    assert run(tmp_path) == "complete"
    assert told.executed == [second, first, first]
    without, noted, anew = told.watches
    assert without is None
    assert noted is not None
    assert anew is not None
    # It was held, and so has shown a sign of life.
    assert (anew.signs, anew.since_s > noted.since_s) == (noted.signs, True)


@pytest.mark.parametrize(("signal", "requeued"), [("SIGUSR2", ["7_3"]), ("SIGTERM", [])])
def test_a_signal_ends_it_and_only_usr2_puts_it_back(
    signal: str, requeued: list[str], told: Told, tmp_path: Path
) -> None:
    told.results[RUNS[0]] = [result("interrupted")]
    told.stop_after, told.signal = 1, signal
    assert run(tmp_path) == ("to be continued" if requeued else "stopped by SIGTERM")
    # The second run was not begun.
    assert told.executed == [RUNS[0]]
    assert told.requeued == requeued


def test_usr2_after_the_last_run_is_nothing(told: Told, tmp_path: Path) -> None:
    told.results = {run_id: [result("done")] for run_id in RUNS}
    told.stop_after = 2
    assert run(tmp_path) == "complete"
    assert told.requeued == []


def test_what_would_fail_again_is_not_put_back(told: Told, tmp_path: Path) -> None:
    mistake = JobResult(status="failed", reason="UserError: family = 'mine': must be another")
    told.results = {RUNS[0]: [mistake], RUNS[1]: [result("done")]}
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path)
    assert told.executed == list(RUNS)
    assert told.requeued == []


def test_a_held_run_is_waited_for(told: Told, tmp_path: Path) -> None:
    told.results = {RUNS[0]: [result("held")] * 3 + [result("done")], RUNS[1]: [result("done")]}
    assert run(tmp_path) == "complete"
    assert told.executed == [RUNS[0]] * 4 + [RUNS[1]]


def test_time_is_up_while_it_waits(told: Told, tmp_path: Path) -> None:
    told.results[RUNS[0]] = [result("held")] * 2
    told.stop_after = 2
    run(tmp_path)
    assert told.requeued == ["7_3"]


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_a_run_that_is_held_on_and_on_costs_no_node(
    executor: str, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    monkeypatch.setattr(task, "HELD_POLL_S", 100.0)
    told.results = {RUNS[0]: [result("held")] * 100, RUNS[1]: [result("done")]}
    if executor == "slurm":
        assert run(tmp_path) == "held elsewhere, to be continued"
        assert (told.requeued, told.delays_s) == (["7_3"], [task.HELD_DELAY_S])
    else:
        assert run(tmp_path) == "held elsewhere"
        assert told.requeued == []
    # It was waited for, and the other run was trained.
    assert 1 < told.executed.count(RUNS[0]) < 10
    assert told.executed[-1] == RUNS[1]


def test_what_can_be_done_now_is_not_put_off_by_a_held_run(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "HELD_WAIT_S", 0.0)
    told.results = {RUNS[0]: [result("held")], RUNS[1]: [result("failed")]}
    assert run(tmp_path) == "to be continued"
    assert told.delays_s == [0]


@pytest.mark.parametrize("by", ["status", "import"])
def test_a_study_that_was_moved_ends_in_one_line(
    by: str,
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def move(*_: object, **__: object) -> JobResult:
        (tmp_path / ".launch").rename(tmp_path / "elsewhere")
        if by == "import":
            # As of what comes from the copy of the code.
            raise ModuleNotFoundError("No module named 'isoflop.train.memory'")
        return result("gone")

    monkeypatch.setattr(executing, "execute", move)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path)
    assert ended.value.code == task.FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} was moved or removed" in line
    assert told.requeued == []
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere"}


def test_a_run_whose_folder_was_removed_does_not_stop_the_others(
    told: Told, tmp_path: Path
) -> None:
    told.results = {RUNS[0]: [result("gone")], RUNS[1]: [result("done")]}
    with pytest.raises(SystemExit) as ended:
        run(tmp_path)
    assert ended.value.code == task.FAILED
    assert (told.executed, told.requeued) == (list(RUNS), [])


def test_failures_are_tried_again_until_the_run_is_parked(told: Told, tmp_path: Path) -> None:
    told.results = {RUNS[0]: [result("failed")] * 4, RUNS[1]: [result("done")] * 4}
    assert run(tmp_path) == "to be continued"
    assert run(tmp_path) == "to be continued"
    # The other run of the task is trained all the same.
    assert told.executed == list(RUNS) * 2
    with pytest.raises(SystemExit) as parked:
        run(tmp_path)
    assert parked.value.code == task.FAILED
    assert told.requeued == ["7_3"] * 2
    write_options(tmp_path, {RUNS[0]: {"attempts_forgiven": 3}})
    assert run(tmp_path) == "to be continued"


def test_a_disk_that_cannot_be_used_ends_the_task_and_is_not_tried_again(
    told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = JobResult(status="failed", reason="disk: OSError: [Errno 28] No space left on device")
    told.results = {RUNS[0]: [full] * 9, RUNS[1]: [result("done")] * 9}
    for _ in range(3):
        with pytest.raises(SystemExit) as ended:
            run(tmp_path)
        assert ended.value.code == task.DISK_FAILED
    # The task's other run would only meet the same disk.
    assert told.executed == [RUNS[0]] * 3
    assert told.requeued == []
    assert "free some space" in capsys.readouterr().err.splitlines()[-1]
    # The disk's failures park no run.
    told.results[RUNS[0]] = [result("failed")]
    assert run(tmp_path) == "to be continued"


def test_a_disk_that_takes_no_claim_ends_the_task_alike(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def execute(*_: object, **__: object) -> JobResult:
        raise OSError(30, "Read-only file system", "/a/0001.json")

    monkeypatch.setattr(executing, "execute", execute)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path)
    assert ended.value.code == task.DISK_FAILED
    assert "isoflop: cannot write /a/0001.json: Read-only file system" in capsys.readouterr().err


def test_a_diverged_run_is_not_tried_again(told: Told, tmp_path: Path) -> None:
    told.results = {RUNS[0]: [result("diverged")], RUNS[1]: [result("done")]}
    with pytest.raises(SystemExit) as ended:
        run(tmp_path)
    assert ended.value.code == task.FAILED
    assert told.requeued == []


def note(folder: Path) -> NotRequeued | None:
    return read_not_requeued(not_requeued_file(folder, "s", "7_3"))


def test_a_scheduler_that_is_away_is_asked_again_until_it_is_back(
    told: Told, tmp_path: Path
) -> None:
    told.results[RUNS[0]] = [result("interrupted")]
    told.stop_after = 1
    told.refusals = [DOWN] * 6
    assert run(tmp_path) == "to be continued"
    assert told.requeued == ["7_3"]
    assert [round(seconds) for seconds in told.waited] == [1, 2, 4, 8, 16, 30]
    assert note(tmp_path) is None


@pytest.mark.parametrize(("end_s", "wanted_s"), [(None, SIGNAL_S - 5), ("1000000300", 295)])
def test_it_is_asked_until_shortly_before_the_time_limit(
    end_s: str | None,
    wanted_s: float,
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if end_s is not None:
        monkeypatch.setenv("SLURM_JOB_END_TIME", end_s)
    told.results[RUNS[0]] = [result("interrupted")]
    told.stop_after = 1
    told.refusals = [DOWN] * 100
    with pytest.raises(SystemExit) as ended:
        run(tmp_path)
    assert ended.value.code == task.TO_BE_CONTINUED
    assert told.now_s - 1e9 == pytest.approx(wanted_s, abs=1)
    assert DOWN in capsys.readouterr().err
    left = note(tmp_path)
    assert left is not None
    assert (left.num_tries, left.message) == (len(told.waited), DOWN)
    # Requeued by hand, it starts again.
    told.results = {run_id: [result("done")] for run_id in RUNS}
    told.stop_after = None
    told.stop = None
    assert run(tmp_path) == "complete"
    assert note(tmp_path) is None


def test_what_time_does_not_change_is_not_asked_again(told: Told, tmp_path: Path) -> None:
    told.results = {RUNS[0]: [result("failed")], RUNS[1]: [result("done")]}
    told.refusals = ["Requested operation is presently disabled"] * 2
    with pytest.raises(SystemExit) as ended:
        run(tmp_path)
    assert ended.value.code == task.TO_BE_CONTINUED
    assert told.waited == [0.0]
    left = note(tmp_path)
    assert left is not None
    assert left.message == "Requested operation is presently disabled"


def test_a_job_that_is_cancelled_meanwhile_is_not_requeued(told: Told, tmp_path: Path) -> None:
    told.results[RUNS[0]] = [result("interrupted")]
    told.stop_after = 1
    told.refusals = [DOWN] * 3
    told.ended_after = 3
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert told.requeued == []


def test_a_failed_run_waits_for_a_scheduler_that_is_away(told: Told, tmp_path: Path) -> None:
    # No signal came: how much time there is is not known, and without a controller none ends it.
    told.results = {RUNS[0]: [result("failed")], RUNS[1]: [result("done")]}
    told.refusals = [DOWN] * 20
    assert run(tmp_path) == "to be continued"
    assert told.now_s - 1e9 > 2 * SIGNAL_S


@pytest.mark.parametrize("of", [submission_file, jobs_file])
def test_a_record_that_the_node_does_not_see_is_waited_for_elsewhere(
    of: Callable[[Path, str], Path],
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(task, "RECORD_WAIT_S", 0.0)
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    path = of(tmp_path, "s")
    hidden = path.rename(tmp_path / "hidden")
    for restarts in range(task.MAX_RECORD_TRIES):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        assert run(tmp_path) == "to be continued"
    assert told.requeued == ["7_3"] * task.MAX_RECORD_TRIES
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(task.MAX_RECORD_TRIES))
    with pytest.raises(SystemExit) as ended:
        run(tmp_path)
    assert ended.value.code == task.DISK_FAILED
    said = capsys.readouterr().err
    assert f"n2 does not see {path}" in said
    job = JobState(job_id="7_3", state="FAILED", exit_code=f"{task.DISK_FAILED}:0", node="n2")
    assert kind_of_job(job, said.splitlines()) == "disk"
    assert told.executed == []
    hidden.rename(path)
    told.results = {run_id: [result("done")] for run_id in RUNS}
    assert run(tmp_path) == "complete"


def test_on_this_machine_nothing_is_put_back(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    told.results[RUNS[0]] = [result("interrupted")]
    told.stop_after = 1
    assert run(tmp_path) == "stopped by SIGUSR2"
    assert told.requeued == []


def test_which_task_of_slurm_this_is() -> None:
    alone = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "9"}
    second = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_PROCID": "1"}
    found = task.SlurmTaskId.from_environment
    assert found(alone) == task.SlurmTaskId(job_id="9", is_main=True)
    assert found(alone | second) == task.SlurmTaskId(job_id="7_0", is_main=False)
    assert found({"SLURM_JOB_ID": "9"}) is None


@pytest.mark.parametrize(
    ("hosts", "known", "wanted"),
    [
        (["localhost", "other"], True, "localhost"),
        (["no-such-host.invalid"], True, "10.0.0.7"),
        (["no-such-host.invalid"], False, "no-such-host.invalid"),
    ],
)
def test_where_ranks_meet(hosts: list[str], known: bool, wanted: str) -> None:
    environ = {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"} if known else {}
    assert task.master_address(environ, hosts) == wanted
