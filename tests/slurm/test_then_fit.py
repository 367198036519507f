"""`submit --then-fit`: the job that fits when all is over, from sbatch to its result."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main
from isoflop.data.prepare import prepare as prepare_data
from isoflop.launch.slurm import then_fit
from isoflop.launch.slurm.records import (
    FitOutcome,
    SentArray,
    read_fit,
    read_submissions,
    write_fit,
    write_submission,
)
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_studies import micro
from slurm.made_cluster import Cluster, wait_until
from slurm.made_scheduler import DOWN, Scheduler, Sent, typed
from slurm.made_slurm import SHORT, cluster_study


def isoflop(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def sent_with_fit(sent: Sent, fit_job: str | None = "13", rejected: str | None = None) -> None:
    """All four runs as array 12, and the job that fits."""
    sent.submission("12")
    (record,) = read_submissions(sent.folder)
    fit = SentArray(
        job_id=fit_job, tasks=((),), rejected=rejected, is_array=False, at_a_time=1, is_fit=True
    )
    write_submission(sent.folder, dataclasses.replace(record, arrays=(*record.arrays, fit)))


def test_the_last_job_waits_for_what_is_sent_and_what_is_there(
    taking: Scheduler, sent: Sent
) -> None:
    sent.submission("12", tasks=[[0]])
    taking.queue(sent.line("12", "RUNNING"))
    profile = {"gpus_per_node": 8, "gpu_type": "h100", "hardware": "h100"}
    looked = typed(sent, "--then-fit", "--dry-run", **profile)
    assert "#SBATCH --dependency=afterany:12:JOB_OF_ARRAY_0\n" in looked.stdout
    done = typed(sent, "--then-fit", **profile)
    assert done.exit_code == 0, done.output
    assert "sent 3 runs as submission" in done.stdout
    assert "job 101 fits when all runs are over\n" in done.stdout
    runs, fit = taking.scripts
    assert "#SBATCH --gres=gpu:h100:1\n" in runs
    assert "#SBATCH --dependency=afterany:12:100\n" in fit
    assert "gpu" not in fit.partition("#SBATCH --nodes")[2].partition("# ")[0]
    assert "--array" not in fit
    record = read_submissions(sent.folder)[1]
    assert [(a.job_id, a.is_fit, a.tasks == ((),)) for a in record.arrays] == [
        ("100", False, False),
        ("101", True, True),
    ]
    # It is no run, and it is not sent twice.
    taking.queue(
        sent.line("12", "RUNNING"),
        *(sent.line(f"100_{i}", "PENDING") for i in range(3)),
        sent.line("101", "PENDING", reason="Dependency"),
    )
    again = typed(sent, "--then-fit", **profile)
    assert "nothing to send: 0 runs complete, 4 at work or queued" in again.stdout
    assert len(taking.scripts) == 2
    # Asked for later, it comes alone; where nothing is to come, there is no need of it.
    taking.queue(sent.line("12", "RUNNING"), *(sent.line(f"100_{i}", "PENDING") for i in range(3)))
    assert "job 102 fits when all runs are over\n" in typed(sent, "--then-fit").stdout
    assert "#SBATCH --dependency=afterany:12:100\n" in taking.scripts[2]
    for index in range(4):
        sent.result(index)
    taking.queue()
    last = typed(sent, "--then-fit").stdout
    assert "nothing to send: 4 runs complete" in last
    assert f"nothing is to come; type: isoflop fit {sent.folder}\n" in last
    assert len(taking.scripts) == 3


def test_it_comes_after_what_max_submit_held_back(
    taking: Scheduler, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = typed(sent, "--then-fit", max_submit=4)
    assert left.exit_code == 0, left.output
    assert "sent 4 runs" in left.stdout
    assert "left for later: the job that fits\n" in left.stdout

    def sleep(seconds: float) -> None:
        if seconds == 9:
            taking.queue(*(sent.line(f"100_{i}", "RUNNING") for i in range(3)))

    taking.queue(*(sent.line(f"100_{i}", "PENDING") for i in range(4)))
    monkeypatch.setattr("isoflop.cli.submit.time.sleep", sleep)
    done = typed(sent, "--then-fit", "--watch", "--every", "9", max_submit=4)
    assert done.exit_code == 0, done.output
    assert "job 101 fits when all runs are over\n" in done.stdout
    assert "#SBATCH --dependency=afterany:100\n" in taking.scripts[1]


def test_a_rejected_fit_is_said_and_the_runs_go_on(taking: Scheduler, sent: Sent) -> None:
    words = "sbatch: error: Memory specification can not be satisfied"
    taking.refuses(1, words)
    done = typed(sent, "--then-fit")
    assert done.exit_code == 1
    assert "sent 4 runs" in done.stderr
    assert f"rejected, the job that fits: {words}\n" in done.stderr
    assert f"fit       rejected: {words}\n" in isoflop("status", sent.folder).stdout


def test_status_tells_of_it_and_cancel_ends_it(told: Scheduler, sent: Sent) -> None:
    sent_with_fit(sent)
    tasks = [sent.line(f"12_{i}", "RUNNING") for i in range(4)]
    told.queue(*tasks, sent.line("13", "PENDING", reason="Dependency"))
    status = isoflop("status", sent.folder)
    assert "fit       job 13 PENDING (Dependency), fits when all is over\n" in status.stdout
    # One query for it and all runs.
    assert [call for call in told.calls if call.startswith("squeue")] == [
        "squeue -h -r -t all -O "
        "JobArrayID:|,State:|,RestartCnt:|,exit_code:|,NodeList:|,Reason:|,Comment:| -j 12,13"
    ]
    assert isoflop("cancel", sent.folder, sent.ids[0], "--yes").exit_code == 0
    assert isoflop("cancel", sent.folder, "--yes").exit_code == 0
    one, everything = [call.split() for call in told.calls if call.startswith("scancel")]
    assert one[-1] == "12_0"
    assert everything[-1] == "13"
    assert "12_3" in everything
    for index in range(4):
        sent.result(index)
    told.queue(sent.line("13", "PENDING", reason="Resources"))
    status = isoflop("status", sent.folder)
    assert "all runs are over" not in status.stdout
    assert "13, which is to fit" in isoflop("cancel", sent.folder, "--yes").stdout


def test_a_submission_that_was_killed_before_it_has_no_job_that_fits(
    told: Scheduler, sent: Sent
) -> None:
    sent_with_fit(sent, fit_job=None)
    told.queue(*(sent.line(f"12_{i}", "RUNNING") for i in range(4)))
    wanted = "fit       not sent, since its submission was cut off: submit again, with --then-fit\n"
    assert wanted in isoflop("status", sent.folder).stdout
    told.says("squeue", error=DOWN, code=1)
    wanted = (
        "fit       not known, since its submission was cut off; the scheduler does not answer\n"
    )
    assert wanted in isoflop("status", sent.folder).stdout


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (FitOutcome(num_missing=0, exit_code=0), "job 13 made the fit"),
        (FitOutcome(num_missing=2, exit_code=None), "did not fit, since 2 runs have no result"),
        (FitOutcome(num_missing=0, exit_code=2), "job 13 could not fit (exit code 2)"),
    ],
)
def test_status_tells_what_it_did_without_asking(
    outcome: FitOutcome, said: str, told: Scheduler, sent: Sent
) -> None:
    sent_with_fit(sent)
    for index in range(4):
        sent.result(index)
    told.says("squeue", error=DOWN, code=1)
    assert "sent as job 13; the scheduler does not" in isoflop("status", sent.folder).stdout
    write_fit(sent.folder, "s1", outcome)
    (record,) = read_submissions(sent.folder)
    write_submission(sent.folder, dataclasses.replace(record, cluster_name="lab", user="me"))
    num_calls = len(told.calls)
    status = isoflop("status", sent.folder)
    assert (status.exit_code, said in status.stdout) == (0, True)
    assert "all runs are over: `isoflop fit" in status.stdout
    assert len(told.calls) == num_calls


@pytest.mark.parametrize("num_done", [3, 4])
def test_it_fits_when_every_run_has_a_result(
    num_done: int,
    sent: Sent,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sent_with_fit(sent)
    started: list[list[str]] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(then_fit.subprocess, "run", run)
    looks = iter([True, True, False])

    def is_any_live() -> bool:
        if live := next(looks):
            return live
        for index in range(num_done):
            sent.result(index)
        return False

    monkeypatch.setattr(then_fit.time, "sleep", lambda seconds: None)
    code = then_fit.fit_when_done(
        sent.folder, "s1", lambda: None, is_any_live=is_any_live, seen_after_s=0
    )
    if num_done == 4:
        assert started == [[sys.executable, "-m", "isoflop", "fit", str(sent.folder)]]
        assert (code, read_fit(sent.folder, "s1")) == (0, FitOutcome(num_missing=0, exit_code=0))
    else:
        missing = sent.ids[3][:12]
        said = f"isoflop: did not fit, since 1 run has no result: {missing}\n"
        assert (code, started, capfd.readouterr().out) == (1, [], said)
        assert read_fit(sent.folder, "s1") == FitOutcome(num_missing=1, exit_code=None)


def test_a_fit_that_is_stopped_records_nothing(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    sent_with_fit(sent)
    assert then_fit.fit_when_done(sent.folder, "s1", lambda: "SIGTERM", seen_after_s=60) == 75
    assert read_fit(sent.folder, "s1") is None


def test_watch_throttle_and_fit_on_a_cluster(slurm_cluster: Cluster, tmp_path: Path) -> None:
    study = cluster_study(slurm_cluster, tmp_path / "study", sizes=(1, 2, 3), budgets=(4 * SHORT,))
    sent = study.submit("--watch", "--every", "1", "--then-fit", throttle=1, max_submit=2)
    assert "1 run to send; a look every 1 s" in sent.stdout
    assert "fits when all runs are over" in sent.stdout
    submissions = read_submissions(study.folder)
    last = submissions[-1].submission_id
    wait_until(lambda: read_fit(study.folder, last), "the fit", seconds=400)
    assert read_fit(study.folder, last) == FitOutcome(num_missing=0, exit_code=0)
    assert (study.folder / "optima.parquet").exists()
    # One at a time, though two were sent at once.
    spans = sorted(
        (attempt.start_s, attempt.end_s)
        for index in range(3)
        for attempt in study.run_folder(index).attempts()
    )
    assert len(spans) == 3
    pairs = itertools.pairwise(spans)
    assert all(end is not None and end <= start for (_, end), (start, _) in pairs)
    status = isoflop("status", study.folder)
    assert " made the fit\n" in status.stdout


@pytest.mark.slow
def test_on_this_machine_a_process_waits_and_fits(tmp_path: Path) -> None:
    plan = make_plan(micro(archs=("mlp",), sizes=(1, 2), budgets=(2 * SHORT,)))
    folder = tmp_path / "it's a study"
    write_plan(plan, folder)
    prepare_data("sotu-embedded", "byte")
    sent = isoflop("submit", folder, "--cluster", "local", "--then-fit", "--yes")
    assert sent.exit_code == 0, sent.output
    assert "fits when all runs are over" in sent.stdout
    (record,) = read_submissions(folder)
    wait_until(lambda: read_fit(folder, record.submission_id), "the fit", seconds=400)
    assert read_fit(folder, record.submission_id) == FitOutcome(num_missing=0, exit_code=0)
    assert (folder / "optima.parquet").exists()
