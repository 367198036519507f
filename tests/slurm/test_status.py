"""Where runs stand: every combination of what the files say and what the scheduler says."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.cancel import cancel
from isoflop.cli.status import status
from isoflop.launch.slurm.cancel import to_cancel
from isoflop.launch.slurm.records import write_options
from isoflop.launch.slurm.retry import plan_retry
from isoflop.launch.slurm.scheduler import SchedulerError
from isoflop.launch.status import live_runs
from slurm.made_scheduler import ACCOUNTING, DOWN, Scheduler, Sent, accounted, line

OOM = "failed: out of memory: mlp, width 64, 2 layers; try a smaller --micro-batch (2)"


def invoke(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])  # type: ignore[arg-type]


def test_without_submissions_no_scheduler_is_asked(told: Scheduler, sent: Sent) -> None:
    sent.result(0)
    sent.attempt(1, OOM)
    states = [state.state for state in sent.status().states]
    assert states == ["done", "failed", "missing", "missing"]
    assert sent.state(1).kind == "oom"
    assert told.calls == []
    assert live_runs(sent.folder, sent.plan) == set()


def test_one_call_however_many_runs_and_submissions(told: Scheduler, sent: Sent) -> None:
    sent.submission("12", tasks=[[0], [1]])
    sent.submission("13", tasks=[[2], [3]], name="s2")
    told.queue(*(line(f"{job}_{i}", "PENDING") for job in (12, 13) for i in (0, 1)))
    status = sent.status()
    assert {state.state for state in status.states} == {"waiting"}
    assert status.queue.answer.calls == 1
    assert len(told.calls) == 1


def test_jobs_of_finished_runs_are_not_asked_for(told: Scheduler, sent: Sent) -> None:
    sent.submission("12", tasks=[[0, 1]])
    sent.submission("13", tasks=[[2, 3]], name="s2")
    sent.result(0)
    sent.result(1, "diverged")
    told.queue(line("13", "PENDING"))
    assert [state.state for state in sent.status().states] == [
        "done",
        "diverged",
        "waiting",
        "waiting",
    ]
    assert told.calls[0].endswith("-j 13,13")


@pytest.mark.parametrize("state", ["PENDING", "REQUEUED", "REQUEUE_FED"])
def test_a_job_in_the_queue_waits(state: str, told: Scheduler, sent: Sent) -> None:
    sent.submission()
    told.queue(line("12_0", state, reason="Resources"))
    found = sent.state()
    assert (found.state, found.reason) == ("waiting", f"job 12_0 {state} (Resources)")
    assert live_runs(sent.folder, sent.plan) == {sent.ids[0]}


@pytest.mark.parametrize("reason", ["JobHeldUser", "launch failed requeued held"])
def test_a_job_that_is_held_says_what_releases_it(reason: str, told: Scheduler, sent: Sent) -> None:
    sent.submission()
    told.queue(line("12_0", "PENDING", reason=reason))
    held = f"job 12_0 PENDING ({reason}), until `scontrol release 12_0`"
    assert sent.state().reason == held


def test_a_run_at_work_has_progress_rate_and_time_left(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    sent.attempt(0, None, job="12_0")
    sent.heartbeat(0, step=119)
    rows = [{"attempt": 1, "step": 10 * i, "wall_s": 2.0 * i} for i in range(12)]
    # The attempt before was faster; what it did is not this one's rate.
    sent.metrics(0, [{"attempt": 0, "step": 1, "wall_s": 0.1}, *rows])
    told.queue(line("12_0", "RUNNING", node="n2"))
    found = sent.state()
    steps = found.run.spec.steps
    assert (found.state, found.step, found.steps_per_s) == ("running", 119, 5.0)
    assert found.eta_s == (steps - 120) / 5
    output = invoke(status, sent.folder).output
    assert f"step 119 of {steps}, 5 steps/s" in output
    assert "left, job 12_0 on n2" in output


def test_a_result_is_a_result_whatever_the_scheduler_says(told: Scheduler, sent: Sent) -> None:
    sent.submission(tasks=[[0, 1]])
    sent.result(0)
    told.queue(line("12", "NODE_FAIL"))
    assert sent.state(0).state == "done"
    # Its task's other run has none.
    assert sent.state(1).state == "failed"


@pytest.mark.parametrize("lagging", ["NODE_FAIL", "PREEMPTED", "FAILED", "COMPLETED"])
def test_the_queue_is_right_where_accounting_lags(
    lagging: str, told: Scheduler, sent: Sent
) -> None:
    told.says("scontrol", ACCOUNTING)
    sent.submission(tasks=[[0], [1]])
    sent.attempt(0, None, job="12_0")
    told.queue(line("12_0", "PENDING", restarts=1, reason="BeginTime"))
    told.says("sacct", "\n".join(accounted(job, lagging) for job in ("12_0", "12_1")))
    found = sent.state(0)
    assert found.state == "requeued"
    assert found.reason == "job 12_0 PENDING (BeginTime), put back once"
    assert sent.ids[0] in live_runs(sent.folder, sent.plan)


def test_a_requeued_run_says_what_ended_its_attempt(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    sent.attempt(0, "interrupted: SIGUSR2", job="12_0")
    told.queue(line("12_0", "PENDING", restarts=2))
    found = sent.state()
    assert found.state == "requeued"
    assert found.reason == "job 12_0 PENDING, put back 2 times, before: interrupted: SIGUSR2"


def test_a_run_that_starts_again_is_still_the_requeued_one(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    sent.attempt(0, "interrupted: SIGTERM", job="12_0")
    told.queue(line("12_0", "RUNNING", restarts=1, node="n3"))
    assert (sent.state().state, sent.state().reason) == (
        "requeued",
        "job 12_0 RUNNING on n3, starting up",
    )


def test_an_orphan_that_still_writes_does_not_hide_the_requeue(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    sent.attempt(0, None, job="12_0")
    sent.heartbeat(0, step=5)
    told.queue(line("12_0", "PENDING", restarts=1))
    found = sent.state()
    assert (found.state, found.reason) == (
        "requeued",
        "its earlier process has not stopped yet",
    )


def test_a_local_run_of_what_is_also_in_the_queue_is_running(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    sent.attempt(0, None)
    sent.heartbeat(0, step=5)
    told.queue(line("12_0", "PENDING"))
    assert sent.state().state == "running"


def test_runs_that_share_a_task_wait_for_their_turn(told: Scheduler, sent: Sent) -> None:
    sent.submission(tasks=[[0, 1, 2], [3]])
    sent.attempt(0, None, job="12_0")
    sent.heartbeat(0, step=5)
    told.queue(line("12_0", "RUNNING", node="n1"), line("12_1", "PENDING"))
    assert sent.state(0).state == "running"
    found = sent.state(1)
    assert found.state == "waiting"
    assert found.reason == "job 12_0 RUNNING on n1, one of its 3 runs"


@pytest.mark.parametrize(
    ("state", "status_code", "said", "kind", "reason"),
    [
        ("OUT_OF_MEMORY", 0x0089, "", "oom", "job 12_0 ended OUT_OF_MEMORY on n2 by signal 9"),
        ("FAILED", 9, "slurmstepd: error: Detected 1 oom-kill event(s)", "oom", "by signal 9"),
        ("FAILED", 256, "StepId exceeded memory limit (620 > 100), being killed", "oom", "code 1"),
        ("NODE_FAIL", 0, "", "node", "job 12_0 ended NODE_FAIL on n2"),
        ("BOOT_FAIL", 0, "", "node", "BOOT_FAIL"),
        ("FAILED", 256, "RuntimeError: No CUDA GPUs are available", "node", "with exit code 1"),
        ("TIMEOUT", 15, "", "time", "job 12_0 ended TIMEOUT"),
        ("FAILED", 768, "Segmentation fault", "code", "job 12_0 ended FAILED"),
        # Where nothing can be written, the exit code alone says it.
        ("FAILED", 74 << 8, "", "disk", "exit code 74 (a file system that cannot be used)"),
        ("FAILED", 78 << 8, "isoflop: module load x failed", "code", "(its modules or setup)"),
        ("FAILED", 256, "OSError: [Errno 30] Read-only file system: '/a'", "disk", "code 1"),
    ],
)
def test_a_death_without_a_record_is_classified(
    state: str,
    status_code: int,
    said: str,
    kind: str,
    reason: str,
    told: Scheduler,
    sent: Sent,
) -> None:
    sent.submission()
    sent.attempt(0, None, job="12_0")
    sent.log("12_0", f"starting\n{said}\n\n")
    told.queue(line("12_0", state, status=status_code, node="n2"))
    found = sent.state()
    assert (found.state, found.kind) == ("failed", kind)
    assert found.reason is not None
    assert reason in found.reason
    assert found.log_lines[-1] == (said or "starting")
    assert live_runs(sent.folder, sent.plan) == set()


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (OOM, "oom"),
        ("failed: RuntimeError: CUDA error: uncorrectable ECC error encountered", "node"),
        ("failed: disk: OSError: [Errno 28] No space left on device", "disk"),
        ("failed: lost contact with another rank of this run: it died or stalled", "rank"),
        ("failed: ZeroDivisionError: division by zero", "code"),
    ],
)
def test_a_recorded_failure_is_classified_by_its_words(
    reason: str, kind: str, told: Scheduler, sent: Sent
) -> None:
    sent.submission()
    sent.attempt(0, reason, job="12_0")
    (sent.run(0).path / "error-0001.txt").write_text("Traceback\n" * 9 + "LastError: here\n")
    told.queue(line("12_0", "FAILED", status=256, node="n2"))
    found = sent.state()
    assert (found.state, found.kind, found.reason) == ("failed", kind, reason)
    assert found.log_lines == ("Traceback",) * 4 + ("LastError: here",)
    assert "| LastError: here" in invoke(status, sent.folder).output


def test_parked_runs_say_so_until_they_are_forgiven(told: Scheduler, sent: Sent) -> None:
    sent.submission(max_failures=2)
    sent.attempt(0, "failed: ValueError: x", job="12_0")
    sent.attempt(0, "interrupted: SIGTERM", job="12_0", number=2)
    sent.attempt(0, "failed: ValueError: x", job="12_0", number=3)
    told.queue(line("12_0", "FAILED", status=256))
    assert sent.state().reason == "parked after 2 failures; failed: ValueError: x"
    write_options(sent.folder, {sent.ids[0]: {"attempts_forgiven": 1}})
    assert sent.state().reason == "failed: ValueError: x"


def test_a_death_after_a_retry_is_not_told_by_the_old_failure(told: Scheduler, sent: Sent) -> None:
    sent.attempt(0, "failed: ValueError: x", job="12_0", age_s=900)
    sent.submission("13", name="s2", age_s=100)
    told.queue(line("13_0", "NODE_FAIL", node="n1"))
    assert sent.state().kind == "node"


def test_a_job_that_dies_before_its_run_begins_is_told_by_its_own_output(
    told: Scheduler, sent: Sent
) -> None:
    sent.attempt(0, "failed: out of memory", job="12_0", node="n2", age_s=900)
    (sent.run(0).path / "error-0001.txt").write_text("OutOfMemoryError: of an earlier job\n")
    sent.submission("13", name="s2", age_s=100)
    sent.log("13_0", "python: No such file or directory\n", name="s2")
    told.queue(line("13_0", "FAILED", status=512, node="n1"))
    found = sent.state()
    assert (found.state, found.kind) == ("failed", "code")
    assert found.log_lines == ("python: No such file or directory",)
    sent.log("13_0", "CUDA unknown error\n", name="s2")
    assert sent.state().kind == "node"
    # The node of the job, and not that of the attempt before it.
    assert plan_retry(sent.folder, sent.status(), "node", 1).excluded_nodes == ("n1",)


def test_cancelled_jobs_are_missing_even_when_the_queue_forgot(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    told.queue(line("12_0", "RUNNING"), line("12_1", "PENDING"), line("12_2", "PENDING"))
    done = invoke(cancel, sent.folder, sent.ids[1][:12], sent.ids[2][:12], "--yes")
    assert done.exit_code == 0, done.output
    assert "2 runs end" in done.output
    assert told.calls[-1] == "scancel -v 12_1 12_2"
    told.queue(line("12_0", "RUNNING"), line("12_1", "COMPLETING"))
    assert sent.state(1).reason == "job 12_1 is being cancelled"
    told.queue(line("12_0", "RUNNING"), line("12_1", "CANCELLED", status=15))
    for index in (1, 2):
        found = sent.state(index)
        assert (found.state, found.reason) == ("missing", f"job 12_{index} was cancelled")


def test_gone_without_a_result_is_lost_after_a_grace_time(told: Scheduler, sent: Sent) -> None:
    sent.submission(age_s=30)
    told.queue()
    assert sent.state().state == "waiting"
    sent.submission(age_s=90)
    found = sent.state()
    assert (found.state, found.kind) == ("lost", "lost")
    assert found.reason == "job 12_0 is gone and left no result"
    # A process whose heartbeat stopped a moment ago may still be heard of.
    sent.attempt(0, None, job="12_0", age_s=500)
    sent.heartbeat(0, step=3, age_s=300)
    assert sent.state().state == "lost"


def test_accounting_says_what_became_of_a_forgotten_job(told: Scheduler, sent: Sent) -> None:
    told.says("scontrol", ACCOUNTING)
    told.says(
        "sacct", accounted("12_0", "OUT_OF_MEMORY", "0:125") + "\n" + accounted("12_1", "COMPLETED")
    )
    sent.submission(tasks=[[0], [1]])
    told.says("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    status = sent.status()
    assert sent.state(0).kind == "oom"
    found = sent.state(1)
    assert found.state == "lost"
    assert found.reason == "job 12_1 ended COMPLETED on n2 without a result"
    assert status.queue.answer.calls == 2


def test_accounting_that_fails_leaves_the_verdict_to_the_files(told: Scheduler, sent: Sent) -> None:
    told.says("scontrol", ACCOUNTING)
    told.says("sacct", error="Problem talking to the database", code=1)
    sent.submission()
    told.queue()
    status = sent.status()
    assert sent.state().state == "lost"
    assert status.unreachable is None


def test_a_controller_that_is_down_leaves_what_the_files_know(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    sent.result(0)
    sent.attempt(1, None, job="12_1")
    sent.heartbeat(1, step=7)
    sent.attempt(2, "failed: ValueError: x", job="12_2")
    told.says("squeue", error=DOWN, code=1)
    assert [s.state for s in sent.status().states] == ["done", "running", "failed", "unknown"]
    done = invoke(status, sent.folder)
    assert done.exit_code == 3
    assert DOWN in done.output
    assert "sent as job 12_3; the scheduler does not answer" in done.output
    with pytest.raises(SchedulerError, match="Unable to contact"):
        live_runs(sent.folder, sent.plan)
    with pytest.raises(SchedulerError, match="Unable to contact"):
        to_cancel(sent.folder, sent.plan, None)


def test_a_rejected_submission_says_why(told: Scheduler, sent: Sent) -> None:
    sent.submission(None, rejected="sbatch: error: invalid partition specified: x")
    found = sent.state()
    assert found.state == "missing"
    assert found.reason == "rejected: sbatch: error: invalid partition specified: x"
    assert live_runs(sent.folder, sent.plan) == set()
    assert told.calls == []


def test_jobs_of_a_submission_that_was_cut_off_are_found_by_their_comment(
    told: Scheduler, sent: Sent
) -> None:
    sent.submission(None)
    told.queue(
        line("40_1", "PENDING", comment=sent.comment()),
        line("41_2", "PENDING", comment=sent.comment("another")),
    )
    assert sent.state(1).state == "waiting"
    assert sent.state(1).job is not None
    assert live_runs(sent.folder, sent.plan) == {sent.ids[1]}
    assert sent.state(2).reason == "its submission was cut off; submit again"
    assert f"-u {os.getuid()}" in told.calls[0]
    assert [task.job_id for task in to_cancel(sent.folder, sent.plan, None).tasks] == ["40_1"]
