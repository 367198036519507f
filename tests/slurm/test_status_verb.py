"""`isoflop status`: what it prints, as a table, as JSON and while it watches."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.status import status
from isoflop.launch.collect import STATES, runs_row
from slurm.made_scheduler import Scheduler, Sent, line


def invoke(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])  # type: ignore[arg-type]


def test_json_tells_every_run(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    sent.result(0)
    told.queue(line("12_1", "PENDING", restarts=1, reason="Priority"), line("12_2", "RUNNING"))
    values = json.loads(invoke(status, sent.folder, "--json").output)
    assert values["counts"] == {"done": 1, "requeued": 1, "waiting": 1, "lost": 1}
    assert values["scheduler_calls"] == 1
    assert values["scheduler_unreachable"] is None
    by_id = {run["run_id"]: run for run in values["runs"]}
    assert by_id[sent.ids[0]]["loss"] == 1.5
    requeued = by_id[sent.ids[1]]
    assert (requeued["job"], requeued["restarts"], requeued["eta_s"]) == ("12_1", 1, None)


def test_watch_asks_once_a_refresh_and_ends_with_the_last_run(
    told: Scheduler, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent.submission(tasks=[[0]])
    told.queue(line("12", "PENDING"))
    refreshes = iter(("PENDING", "RUNNING", "done"))

    sleep = time.sleep

    def next_refresh(seconds: float) -> None:
        if seconds != 7:
            # Waiting for squeue to end.
            return sleep(seconds)
        state = next(refreshes)
        if state == "done":
            sent.result(0)
        told.queue(line("12", state))

    monkeypatch.setattr(time, "sleep", next_refresh)
    done = invoke(status, sent.folder, "--watch", "--every", 7)
    assert done.exit_code == 0, done.output
    # The last look has no job left to ask for.
    assert [call.split()[0] for call in told.calls] == ["squeue"] * 3


def test_the_table_of_runs_knows_no_scheduler_s_words(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    told.queue(line("12_1", "PENDING", restarts=1), line("12_2", "PENDING"))
    sent.attempt(3, None, job="12_3")
    statuses = {state.state: runs_row(state)["status"] for state in sent.status().states}
    assert statuses == {"lost": "missing", "requeued": "missing", "waiting": "missing"}
    assert set(statuses) <= set(STATES)


def test_many_waiting_runs_do_not_flood_the_terminal(
    told: Scheduler, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoflop.cli.status._MAX_LINES", 2)
    sent.submission()
    told.queue(*(line(f"12_{i}", "PENDING") for i in range(4)))
    output = invoke(status, sent.folder).output
    assert output.count("PENDING") == 2
    assert "waiting   … and 2 more; --json tells all" in output


def test_what_several_runs_have_in_common_is_said_once(told: Scheduler, sent: Sent) -> None:
    sent.submission(None, rejected="sbatch: error: no such partition")
    output = invoke(status, sent.folder).output
    assert "missing   4 runs: rejected: sbatch: error: no such partition\n" in output
    sent.submission("13", name="s2", age_s=100)
    told.queue(*(line(f"13_{i}", "FAILED", status=256) for i in range(4)))
    for index in range(4):
        sent.log(f"13_{index}", "python: No such file or directory\n", name="s2")
    output = invoke(status, sent.folder).output
    assert output.count("| python: No such file or directory") == 1
    assert output.count("| (the same as above)") == 3
    assert "code: job 13_3 ended FAILED with exit code 1" in output


def test_status_says_what_to_do_next_where_nothing_is_going_on(told: Scheduler, sent: Sent) -> None:
    folder = sent.folder
    assert f"`isoflop run {folder}`, or `submit`, trains" in invoke(status, folder).output
    sent.submission()
    told.queue(*(line(f"12_{i}", "PENDING") for i in range(4)))
    assert "isoflop" not in invoke(status, folder).output
    told.queue(line("12_0", "FAILED", status=256))
    sent.attempt(0, "failed: ValueError: x", job="12_0")
    for index in (1, 2, 3):
        sent.result(index)
    assert f"`isoflop retry {folder} --failed KIND`" in invoke(status, folder).output
    sent.result(0, "diverged")
    assert f"all runs are over: `isoflop fit {folder}`" in invoke(status, folder).output
