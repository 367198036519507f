"""What `isoflop status` makes of unusual words of the scheduler, and of its silence."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.status import status
from isoflop.launch.slurm.failures import num_failures
from isoflop.launch.slurm.retry import plan_retry
from isoflop.launch.status import live_runs
from slurm.made_scheduler import ACCOUNTING, DOWN, Scheduler, Sent, line

CANCELLED = "slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-01-01T00:00:00"


def invoke(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])  # type: ignore[arg-type]


def test_a_job_that_could_not_requeue_itself_has_a_kind_of_its_own(
    told: Scheduler, sent: Sent
) -> None:
    sent.submission(tasks=[[0, 1], [2], [3]])
    sent.attempt(0, "interrupted: SIGUSR2", job="12_0")
    for job in ("12_0", "12_1", "12_2"):
        sent.not_requeued(job, DOWN, age_s=100)
    told.queue(
        line("12_0", "FAILED", status=75 << 8, node="n2"),
        line("12_1", "CANCELLED", status=15),
        line("12_2", "RUNNING", node="n1"),
    )
    reason = f"job 12_0 asked 3 times to be requeued: {DOWN}; submit again to go on"
    # The run that was not begun, too.
    for index in (0, 1):
        found = sent.state(index)
        assert (found.state, found.kind, found.reason) == ("failed", "requeue", reason)
    assert sent.state(2).reason == "job 12_1 was cancelled"
    trying = sent.state(3)
    assert trying.state == "requeued"
    assert trying.reason == f"job 12_2 RUNNING on n1, tries to be requeued: {DOWN}"
    assert (
        f"requeue: job 12_0 asked 3 times to be requeued: {DOWN}"
        in invoke(status, sent.folder).output
    )
    # Both plain submit and retry go on; nothing is left out or counted.
    assert live_runs(sent.folder, sent.plan) == {sent.ids[3]}
    planned = plan_retry(sent.folder, sent.status(), "requeue", 1)
    assert planned.run_ids == sent.ids[:2]
    assert planned.excluded_nodes == ()
    assert num_failures(sent.run(0), {}) == 0
    told.queue()
    assert sent.state(0).reason == reason
    told.says("squeue", error=DOWN, code=1)
    assert sent.state(0).state == "unknown"


def test_a_record_of_no_requeue_is_over_once_the_run_began_again(
    told: Scheduler, sent: Sent
) -> None:
    sent.submission(tasks=[[0]])
    sent.not_requeued("12", DOWN, age_s=600)
    sent.attempt(0, None, job="12", age_s=500)
    told.queue(line("12", "NODE_FAIL", node="n2"))
    assert sent.state(0).kind == "node"


@pytest.mark.parametrize(
    ("said", "state", "kind"),
    [
        ("slurmstepd: error: Detected 1 oom-kill event(s)", "failed", "oom"),
        ("srun: error: n1: task 0: Exited with exit code 1", "failed", "code"),
        (
            f"{CANCELLED} DUE TO TIME LIMIT ***",
            "failed",
            "time",
        ),
        (
            f"{CANCELLED} ***",
            "lost",
            "lost",
        ),
        ("starting", "lost", "lost"),
    ],
)
def test_where_accounting_is_dead_the_output_tells(
    said: str, state: str, kind: str, told: Scheduler, sent: Sent
) -> None:
    told.says("scontrol", ACCOUNTING)
    told.says("sacct", error="Problem talking to the database", code=1)
    sent.submission(tasks=[[0], [1]])
    sent.attempt(0, None, job="12_0")
    sent.log("12_0", f"isoflop: begin\n{said}\n")
    sent.attempt(1, "failed: ValueError: x", job="12_1")
    told.queue()
    found = sent.state(0)
    assert (found.state, found.kind) == (state, kind)
    assert found.reason is not None
    assert "accounting does not answer: Problem talking to the database" in found.reason
    # What the run itself recorded needs no accounting.
    assert (sent.state(1).state, sent.state(1).reason) == ("failed", "failed: ValueError: x")


def test_accounting_that_is_behind_makes_no_job_live(told: Scheduler, sent: Sent) -> None:
    told.says("scontrol", ACCOUNTING)
    told.says("sacct", "12|RUNNING|0:0|n2")
    sent.submission(tasks=[[0]])
    told.queue()
    assert sent.state(0).state == "lost"


@pytest.mark.parametrize(
    ("state", "wanted", "reason"),
    [
        ("SUSPENDED", "waiting", " at step 93 of {}: it goes on when it is resumed"),
        ("STOPPED", "waiting", " at step 93 of {}: it goes on when it is continued"),
        ("RESIZING", "running", None),
        ("COMPLETING", "running", None),
    ],
)
def test_a_run_whose_job_stands_still_has_no_rate(
    state: str, wanted: str, reason: str | None, told: Scheduler, sent: Sent
) -> None:
    sent.submission()
    sent.attempt(0, None, job="12_0")
    sent.heartbeat(0, step=93)
    sent.metrics(0, [{"attempt": 1, "step": i, "wall_s": float(i)} for i in range(93)])
    told.queue(line("12_0", state, node="n2"))
    found = sent.state()
    assert found.state == wanted
    assert (found.steps_per_s is None) == (found.eta_s is None) == (wanted == "waiting")
    if reason is None:
        assert f"job 12_0 {state} on n2" in invoke(status, sent.folder).output
    else:
        steps = found.run.spec.steps
        assert found.reason == f"job 12_0 {state} on n2" + reason.format(steps)
    assert live_runs(sent.folder, sent.plan) == {sent.ids[0]}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("COMPLETING", "job 12_0 COMPLETING on n2, its processes are ending"),
        ("STAGE_OUT", "job 12_0 STAGE_OUT on n2, it has ended, and its files are being copied"),
        ("SUSPENDED", "job 12_0 SUSPENDED on n2, it goes on when it is resumed"),
        ("CONFIGURING", "job 12_0 CONFIGURING, its nodes are being made ready"),
    ],
)
def test_a_job_without_a_process_is_told_as_what_it_is(
    state: str, said: str, told: Scheduler, sent: Sent
) -> None:
    sent.submission()
    told.queue(line("12_0", state, node="n2"))
    assert (sent.state().state, sent.state().reason) == ("waiting", said)


def test_a_log_that_slurm_could_not_open_is_said(told: Scheduler, sent: Sent) -> None:
    sent.submission(tasks=[[0]])
    # As squeue has it, recorded; sacct has 0:53.
    told.queue(line("12", "FAILED", status=4021, node="n1", reason="JobLaunchFailure"))
    found = sent.state()
    assert found.reason is not None
    assert "SLURM could not open its log or its folder" in found.reason
    assert "signal" not in found.reason


def test_a_running_run_says_since_when_it_is_silent_and_what_it_cannot_write(
    told: Scheduler, sent: Sent
) -> None:
    sent.submission()
    told.queue(*(line(f"12_{i}", "RUNNING", node="n2") for i in range(3)))
    full = "cannot write the checkpoint of step 7: [Errno 28] No space left on device"
    for index, age_s, warnings in ((0, 95.0, ()), (1, 10.0, (full,)), (2, 1.0, ())):
        sent.attempt(index, None, job=f"12_{index}")
        sent.heartbeat(index, step=7, age_s=age_s, warnings=warnings)
    said = invoke(status, sent.folder).output.splitlines()
    running = [i for i, text in enumerate(said) if text.startswith("running   ")]
    assert ["no sign of life for 1m35s" in said[i] for i in running] == [True, False, False]
    assert said[running[1] + 1] == f"          ! {full}"
    assert sum(" ! " in text for text in said) == 1
    # A heartbeat of an attempt before is no news.
    sent.heartbeat(1, step=7, number=2, warnings=(full,))
    assert sent.state(1).warnings == ()
