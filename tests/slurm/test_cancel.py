"""`isoflop cancel`: what ends with what, and what is left alone."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.cancel import cancel
from isoflop.files import write_json_atomic
from isoflop.launch.process import ProcessIdentity
from isoflop.launch.slurm.records import array_folder, cancelled_jobs, comment_of, record_cancelled
from isoflop.launch.slurm.scheduler import SchedulerError
from isoflop.launch.status import live_runs
from slurm.made_scheduler import Scheduler, Sent, line


def invoke(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])  # type: ignore[arg-type]


def test_runs_that_share_a_job_are_named_before_they_are_cancelled(
    told: Scheduler, sent: Sent
) -> None:
    sent.submission(tasks=[[0, 1, 2, 3]])
    told.queue(line("12", "RUNNING"))
    refused = invoke(cancel, sent.folder, sent.ids[0][:12])
    assert "4 runs end" in refused.output
    assert "3 of them only because they share a job with these" in refused.output
    assert refused.exception is not None
    assert "--yes" in str(refused.exception)
    assert not any(call.startswith("scancel") for call in told.calls)


REFUSED = """scancel: Terminating job 12_0
scancel: Terminating job 12_1
scancel: Terminating job 12_2
scancel: error: Kill job error on job id 12_1: Access/permission denied
scancel: error: Kill job error on job id 12_2: Invalid job id specified"""


@pytest.mark.parametrize("code", [0, 210])
def test_only_what_scancel_took_is_recorded(code: int, told: Scheduler, sent: Sent) -> None:
    sent.submission(tasks=[[0], [1], [2]])
    told.queue(*(line(f"12_{i}", "RUNNING") for i in range(3)))
    # Its exit code does not tell of jobs that it does not know.
    told.says("scancel", error=REFUSED, code=code)
    done = invoke(cancel, sent.folder, "--yes")
    assert done.exit_code == 1
    assert "not ended, job 12_1: Access/permission denied\n" in done.output
    assert "not ended, job 12_2: Invalid job id specified\n" in done.output
    assert "asked for" in done.output
    assert cancelled_jobs(sent.folder) == {"12_0"}


def test_nothing_is_recorded_where_scancel_fails(told: Scheduler, sent: Sent) -> None:
    sent.submission(tasks=[[0]])
    told.queue(line("12", "RUNNING"))
    told.says(
        "scancel", error="scancel: error: Kill job error on job id 12: Access/permission denied"
    )
    done = invoke(cancel, sent.folder, "--yes")
    assert (done.exit_code, "asked for" in done.output) == (1, False)
    told.says("scancel", error="scancel: fatal: Could not establish a configuration source", code=1)
    done = invoke(cancel, sent.folder, "--yes")
    assert isinstance(done.exception, SchedulerError)
    assert cancelled_jobs(sent.folder) == set()


def test_a_job_that_is_ending_already_is_no_failure(told: Scheduler, sent: Sent) -> None:
    sent.submission(tasks=[[0]])
    told.queue(line("12", "COMPLETING"))
    error = "scancel: error: Kill job error on job id 12: Job/step already completing or completed"
    told.says("scancel", error=error)
    done = invoke(cancel, sent.folder, "--yes")
    assert done.exit_code == 0
    assert "already completing" in done.output
    assert cancelled_jobs(sent.folder) == set()


def test_runs_are_cancelled_by_arch(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    told.queue(*(line(f"12_{i}", "PENDING") for i in range(4)))
    done = invoke(cancel, sent.folder, "--archs", "swiglu", "--yes")
    assert done.exit_code == 0, done.output
    archs = {run.run_id: run.arch for run in sent.plan.unique_runs}
    wanted = [f"12_{i}" for i in range(4) if archs[sent.ids[i]] == "swiglu"]
    assert len(wanted) == 2
    (call,) = [call for call in told.calls if call.startswith("scancel")]
    assert [word for word in call.split()[1:] if not word.startswith("-")] == wanted


def test_nothing_to_cancel_is_said(told: Scheduler, sent: Sent) -> None:
    done = invoke(cancel, sent.folder, "--yes")
    assert done.exit_code == 0
    assert "nothing to cancel" in done.output


def test_processes_of_this_machine_are_followed_and_cancelled(told: Scheduler, sent: Sent) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    process, other, elsewhere = (subprocess.Popen(command) for _ in range(3))
    identity = ProcessIdentity.of(process.pid)
    try:
        sent.submission(str(process.pid), tasks=[[0]], cluster="local", process=identity)
        # Numbers that other processes have got since; and one of another container.
        reused = replace(ProcessIdentity.of(other.pid), start_ticks=1)
        sent.submission(str(other.pid), tasks=[[1]], cluster="local", name="s2", process=reused)
        unseen = replace(ProcessIdentity.of(elsewhere.pid), pid_namespace=1)
        pid = str(elsewhere.pid)
        sent.submission(pid, tasks=[[2]], cluster="local", name="s3", process=unseen)
        assert live_runs(sent.folder, sent.plan) == {sent.ids[0]}
        assert sent.state(0).state == "waiting"
        assert sent.state(1).state == "missing"
        assert sent.state(2).reason == f"process {pid} cannot be seen from here"
        assert invoke(cancel, sent.folder, "--yes").exit_code == 0
        assert process.wait(10) == -15
        assert other.poll() is None
        assert elsewhere.poll() is None
        assert sent.state(0).reason == f"process {process.pid} was cancelled"
        assert told.calls == []
        # A later submission whose process gets the same number, and is gone, too.
        again = replace(identity, start_ticks=2)
        pid = str(process.pid)
        sent.submission(pid, tasks=[[0]], cluster="local", name="s4", process=again, age_s=1.0)
        assert sent.state(0).reason == f"process {pid} ended before this run began"
        assert cancelled_jobs(sent.folder) == {comment_of("s1", 0)}
    finally:
        for child in (process, other, elsewhere):
            child.kill()
            child.wait()


def test_a_process_that_0_1_0_started_is_found_by_its_folder(told: Scheduler, sent: Sent) -> None:
    # Its record has the number alone, which the process of another folder may have got since.
    code = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen([*code, str(array_folder(sent.folder.resolve(), "s1", 0))])
    other = subprocess.Popen([*code, str(array_folder(sent.folder.resolve(), "s1", 1))])
    try:
        sent.submission(str(process.pid), tasks=[[0]], cluster="local")
        sent.submission(str(other.pid), tasks=[[1]], cluster="local", name="s2")
        assert live_runs(sent.folder, sent.plan) == {sent.ids[0]}
        assert [sent.state(number).state for number in (0, 1)] == ["waiting", "missing"]
        assert invoke(cancel, sent.folder, "--yes").exit_code == 0
        assert process.wait(10) == -15
        assert other.poll() is None
        assert told.calls == []
    finally:
        for child in (process, other):
            child.kill()
            child.wait()


def test_what_0_1_0_cancelled_by_its_number_stays_cancelled(sent: Sent) -> None:
    # Its records do not say which process had the number.
    sent.submission("4194300", tasks=[[0]], cluster="local")
    record_cancelled(sent.folder, ["4194300"])
    assert sent.state(0).reason == "process 4194300 was cancelled"


def test_the_number_of_another_container_is_never_signalled(sent: Sent) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        sent.attempt(0, None)
        sent.heartbeat(0, step=1)
        path = sent.run(0).path / "attempts" / "0001.json"
        unseen = replace(ProcessIdentity.of(child.pid), host=platform.node(), pid_namespace=1)
        write_json_atomic(path, json.loads(path.read_text()) | {"holder": unseen.to_json()})
        done = invoke(cancel, sent.folder, "--yes")
        assert f"runs on {platform.node()}, without a job and not visible from here" in done.output
        assert child.poll() is None
        # The same process, where it is known to be that one.
        seen = replace(unseen, pid_namespace=ProcessIdentity.of_this_process().pid_namespace)
        write_json_atomic(path, json.loads(path.read_text()) | {"holder": seen.to_json()})
        assert "1 run ends" in invoke(cancel, sent.folder, "--yes").output
        assert child.wait(10) == -15
    finally:
        child.kill()
        child.wait()
