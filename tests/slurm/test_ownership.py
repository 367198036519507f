"""Which jobs are a study's own: by comment and cluster, not by number, as far as one sees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.cancel import cancel
from isoflop.launch.slurm import scheduler
from isoflop.launch.slurm.cancel import cancel as cancel_found
from isoflop.launch.slurm.cancel import to_cancel
from isoflop.launch.slurm.records import comment_of, read_submissions
from isoflop.launch.slurm.submit import submit
from isoflop.launch.status import live_work
from isoflop.plan.planner import Plan
from slurm.made_sbatch import CPU, Pretended, typed, write_profile
from slurm.made_scheduler import ACCOUNTING, Scheduler, Sent, accounted, line

STRANGER = comment_of("20990101-000000-abcdef", 0)
HERE = "ClusterName = here\nSlurmUser = slurm(64030)\n"
PRIVATE = f"{HERE}PrivateData = usage,jobs\n"


def invoke(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])  # type: ignore[arg-type]


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user of no name, who is neither root nor SLURM's own."""
    monkeypatch.setattr(os, "getuid", lambda: 61234)


@pytest.mark.parametrize("comment", [STRANGER, comment_of("s1", 1), "(null)"])
def test_a_number_that_another_job_has_now_is_not_ours(
    comment: str, told: Scheduler, sent: Sent
) -> None:
    sent.submission("12", cluster_name="here")
    told.says("scontrol", HERE)
    told.queue(*(line(f"12_{i}", "RUNNING", node="n1", comment=comment) for i in range(4)))
    found = sent.state(0)
    assert (found.state, found.kind, found.job) == ("lost", "lost", None)
    assert found.reason is not None
    assert "the scheduler has given its number to another job" in found.reason
    # It may be sent again, and the other job goes on.
    assert live_work(sent.folder, sent.plan).run_ids == set()
    done = invoke(cancel, sent.folder, "--yes")
    assert (done.exit_code, "nothing to cancel" in done.output) == (0, True)
    assert not any(call.startswith("scancel") for call in told.calls)


def test_a_number_that_changes_hands_while_a_person_thinks_is_not_cancelled(
    told: Scheduler, sent: Sent
) -> None:
    sent.submission("12", tasks=[[0], [1]])
    told.queue(line("12_0", "RUNNING"), line("12_1", "PENDING"))
    found = to_cancel(sent.folder, sent.plan, None)
    assert len(found.tasks) == 2
    told.queue(line("12_0", "RUNNING", comment=STRANGER), line("12_1", "PENDING"))
    cancel_found(sent.folder, found)
    assert [call for call in told.calls if call.startswith("scancel")] == ["scancel -v 12_1"]


@pytest.mark.parametrize("lines", [[], [line("12_0", "RUNNING", comment=STRANGER)]])
def test_what_was_sent_to_another_cluster_is_unknown_here(
    lines: list[str], told: Scheduler, sent: Sent
) -> None:
    sent.submission("12", tasks=[[0]], cluster_name="there")
    sent.submission("13", tasks=[[1]], name="s2", cluster_name="here")
    told.says("scontrol", HERE)
    told.queue(*lines, line("13", "PENDING"))
    found = sent.state(0)
    words = "sent to cluster there, this is here"
    assert (found.state, found.reason) == ("unknown", f"sent as job 12; {words}")
    assert sent.state(1).state == "waiting"
    live = live_work(sent.folder, sent.plan)
    assert live.run_ids == set(sent.ids[:2])
    assert live.hidden == {sent.ids[0]: f"job 12, {words}"}
    refused = invoke(cancel, sent.folder, sent.ids[0][:12], "--yes")
    assert refused.exit_code == 1
    assert f"{sent.ids[0][:12]} cannot be cancelled from here: job 12, {words}" in refused.output
    assert not any(call.startswith("scancel") for call in told.calls)
    # Its files decide.
    sent.attempt(0, None, job="12")
    sent.heartbeat(0, step=3)
    assert sent.state(0).state == "running"
    sent.result(0)
    assert sent.state(0).state == "done"


@pytest.mark.parametrize("job_id", ["12", None])
@pytest.mark.usefixtures("as_user")
def test_a_job_of_another_user_that_is_not_visible_is_not_gone(
    job_id: str | None, told: Scheduler, sent: Sent
) -> None:
    sent.submission(job_id, tasks=[[0]], cluster_name="here", user="root")
    told.says("scontrol", PRIVATE)
    told.says("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    found = sent.state(0)
    assert found.state == "unknown"
    assert found.reason is not None
    assert "not visible to you, submitted by root" in found.reason
    assert live_work(sent.folder, sent.plan).hidden.keys() == {sent.ids[0]}
    if job_id is None:
        # Both users' jobs are asked for.
        assert told.calls[0].endswith("-u 61234,0")


@pytest.mark.parametrize(
    ("config", "user"),
    [(HERE, "root"), (PRIVATE, "61234"), (f"{PRIVATE}SlurmUser = 61234", "root")],
)
@pytest.mark.usefixtures("as_user")
def test_a_job_that_would_be_visible_is_gone(
    config: str, user: str, told: Scheduler, sent: Sent
) -> None:
    sent.submission("12", tasks=[[0]], cluster_name="here", user=user)
    told.says("scontrol", config)
    told.queue()
    assert sent.state(0).state == "lost"
    assert live_work(sent.folder, sent.plan).run_ids == set()


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({"comment": comment_of("s1", 0), "name": "any", "age_s": 9e6}, "failed"),
        ({"comment": STRANGER}, "lost"),
        ({"comment": ""}, "failed"),
        ({"comment": "", "user": "eve"}, "lost"),
        ({"comment": "", "name": "isoflop-micro|x"}, "lost"),
        ({"comment": "", "age_s": 9e6}, "lost"),
    ],
)
def test_accounting_is_believed_about_our_own_jobs_only(
    row: dict[str, object], state: str, told: Scheduler, sent: Sent
) -> None:
    told.says("scontrol", f"{HERE}{ACCOUNTING}")
    sent.submission("12", tasks=[[0]], cluster_name="here", user="ada", job_name="isoflop-micro")
    told.queue()
    told.says("sacct", accounted("12", "OUT_OF_MEMORY", **row))  # type: ignore[arg-type]
    assert sent.state(0).state == state


def test_a_process_of_this_machine_is_no_job_of_its_number(told: Scheduler, sent: Sent) -> None:
    sent.submission("12", tasks=[[0]], cluster="local")
    sent.submission("12", tasks=[[1]], name="s2", cluster_name="here")
    told.queue(line("12", "RUNNING", node="n1", comment=comment_of("s2", 0)))
    assert [sent.state(i).state for i in range(2)] == ["missing", "waiting"]
    # All that was sent is visible, so the cluster's name is not asked for.
    assert {call.split()[0] for call in told.calls} == {"squeue"}


def test_nothing_is_sent_beside_jobs_of_another_cluster(
    slurm: Pretended, study: tuple[Path, Plan]
) -> None:
    folder, _ = study
    slurm.config(MaxArraySize=1001, ClusterName="there")
    assert submit(folder, CPU).num_sent == 3
    (record,) = read_submissions(folder)
    assert record.cluster_name == "there"
    assert (record.user, record.job_name) == (scheduler.user_name(), "isoflop-micro")
    # The same folder, from a machine of another cluster, whose jobs have the same numbers.
    slurm.config(MaxArraySize=1001, ClusterName="here")
    slurm.queue(*(f"100_{i}|RUNNING|0|0|n1|None|{STRANGER}|" for i in range(3)))
    for cluster in (write_profile(folder), "local"):
        found = typed(folder, "--cluster", cluster, "--yes")
        assert found.exit_code == 1
        assert "nothing to send: 0 runs complete, 0 at work or queued" in found.stdout
        assert found.stdout.count("sent to cluster there, this is here") == 3
    assert len(slurm.scripts) == 1
