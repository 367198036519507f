"""`isoflop submit` as it is typed: which runs it sends, when, and how many at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from isoflop.cli import main
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import RunResult
from isoflop.launch.slurm.records import read_submissions
from slurm.made_scheduler import Scheduler, Sent, typed


def sent_runs(folder: Path) -> list[list[str]]:
    """By submission."""
    return [
        [run_id for array in submission.arrays for task in array.tasks for run_id in task]
        for submission in read_submissions(folder)
    ]


def test_only_the_runs_that_were_named_are_sent(taking: Scheduler, sent: Sent) -> None:
    swiglu = [run.run_id for run in sent.plan.unique_runs if run.arch == "swiglu"]
    (mlp, *_) = [run.run_id for run in sent.plan.unique_runs if run.arch == "mlp"]
    done = typed(sent, swiglu[0][:12], swiglu[1][:12], mlp[:12], "--archs", "swiglu")
    assert done.exit_code == 0, done.output
    assert "2 runs to send" in done.stdout
    (first,) = sent_runs(sent.folder)
    assert sorted(first) == sorted(swiglu)
    taking.queue(*(sent.line(f"100_{i}", "PENDING") for i in range(2)))
    assert "nothing to send: 0 runs complete, 1 at work" in typed(sent, swiglu[0][:12]).stdout
    wrong = typed(sent, "--archs", "swigul")
    assert wrong.exit_code == 2
    assert wrong.stderr == ("isoflop: --archs = swigul: must be one of mlp, swiglu; write swiglu\n")
    assert len(sent_runs(sent.folder)) == 1


def test_a_result_is_read_once_before_anything_is_sent(
    taking: Scheduler, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of hundreds of runs, that is what a dry run takes its time for.
    sent.result(0)
    read: list[str] = []

    def result(folder: RunFolder) -> RunResult | None:
        read.append(folder.run_id)
        return read_result(folder)

    read_result = RunFolder.result
    monkeypatch.setattr(RunFolder, "result", result)
    assert "3 runs to send" in typed(sent, "--dry-run").stdout
    assert read.count(sent.ids[0]) == 1


def test_max_submit_counts_tasks(taking: Scheduler, sent: Sent) -> None:
    # Four runs in two live tasks leave room for one of three.
    sent.submission("12", tasks=[[0, 1], [2]])
    taking.queue(sent.line("12_0", "RUNNING"), sent.line("12_1", "PENDING"))
    done = typed(sent, max_submit=3)
    assert done.exit_code == 0, done.output
    assert "sent 1 run " in done.stdout
    assert sent_runs(sent.folder)[1] == [sent.ids[3]]


def test_arrays_share_the_throttle_or_wait(taking: Scheduler, sent: Sent) -> None:
    taking.says("scontrol", "MaxArraySize = 2")
    looked = typed(sent, "--dry-run", throttle=3)
    assert looked.exit_code == 0, looked.output
    assert [text for text in looked.stdout.splitlines() if "--array" in text] == [
        "#SBATCH --array=0-1%2",
        "#SBATCH --array=0-1%1",
    ]
    assert "--dependency" not in looked.stdout
    looked = typed(sent, "--dry-run", throttle=1)
    assert "#SBATCH --dependency=afterany:JOB_OF_ARRAY_0\n" in looked.stdout
    assert "array 0" in looked.stdout.partition("after")[2]
    assert not list((sent.folder / ".launch").glob("*/submission.json"))
    assert typed(sent, throttle=1).exit_code == 0
    first, second = taking.scripts
    assert "--dependency" not in first
    assert "#SBATCH --dependency=afterany:100\n" in second
    assert [array.at_a_time for array in read_submissions(sent.folder)[0].arrays] == [1, 1]


def test_a_dependency_of_the_profile_stays(taking: Scheduler, sent: Sent) -> None:
    sent.submission("12", tasks=[[0]], throttle=1)
    taking.queue(sent.line("12", "RUNNING"))
    path = sent.folder.parent / "mine.toml"
    path.write_text(
        'name = "m"\nhardware = "cpu2"\nthrottle = 1\n[sbatch]\ndependency = "after:7"\n'
    )
    done = CliRunner().invoke(main, ["submit", str(sent.folder), "--cluster", str(path), "--yes"])
    assert done.exit_code == 0, done.output
    (script,) = taking.scripts
    assert script.count("--dependency") == 1
    assert "#SBATCH --dependency=after:7,afterany:12\n" in script


class Clock:
    """Time that passes only while somebody waits, and what happens meanwhile."""

    def __init__(self, *happenings: Any) -> None:
        self.happenings = list(happenings)

    def sleep(self, seconds: float) -> None:
        # submitit sleeps, too.
        if seconds == 7:
            self.happenings.pop(0)()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_watching_feeds_what_max_submit_held_back(
    taking: Scheduler, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def done(*indices: int) -> None:
        for index in indices:
            sent.result(sent.ids.index(sent_runs(sent.folder)[0][index]))

    def first_is_done() -> None:
        taking.queue(sent.line("100_1", "RUNNING"))
        done(0)

    def second_has_failed() -> None:
        # It is not fed: only what was held back is.
        taking.queue(sent.line("100_1", "FAILED"), sent.line("101", "RUNNING"))

    def both_run() -> None:
        lines = (sent.line(f"100_{i}", "RUNNING") for i in range(2))
        taking.says("squeue", "\n".join(lines))

    clock = Clock(
        lambda: taking.queue(sent.line("100_0", "RUNNING"), sent.line("100_1", "PENDING")),
        lambda: taking.says("squeue", error="slurm_load_jobs error: down", code=1),
        lambda: None,
        both_run,
        first_is_done,
        second_has_failed,
    )
    monkeypatch.setattr("isoflop.cli.submit.time.sleep", clock.sleep)
    found = typed(sent, "--watch", "--every", "7", max_submit=2)
    assert found.exit_code == 0, found.output
    assert clock.happenings == []
    first, second, third = sent_runs(sent.folder)
    assert [len(first), len(second), len(third)] == [2, 1, 1]
    assert sorted([*first, *second, *third]) == sorted(sent.ids)
    after = found.stdout.partition("Ctrl-C ends only the looking\n")[2].splitlines()
    assert [text.partition(" as submission")[0] for text in after] == [
        "the scheduler does not answer: slurm_load_jobs error: down; looking goes on",
        "the scheduler answers again",
        "sent 1 run",
        "1 run to send",
        "sent 1 run",
        "everything is sent",
    ]


def test_what_was_rejected_while_watching_is_not_called_sent(
    taking: Scheduler, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(*[lambda: taking.queue(sent.line("100_0", "RUNNING"))] * 2)
    monkeypatch.setattr("isoflop.cli.submit.time.sleep", clock.sleep)
    taking.refuses(1, "sbatch: error: AssocMaxSubmitJobLimit")
    found = typed(sent, "--watch", "--every", "7", max_submit=2)
    assert found.exit_code == 1, found.output
    assert "rejected, 1 run: sbatch: error: AssocMaxSubmitJobLimit\n" in found.stderr
    assert found.stdout.endswith(
        "everything else is sent; the same command sends what was rejected (1 run)\n"
    )


def test_ctrl_c_ends_only_the_watching(
    taking: Scheduler, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoflop.cli.submit.time.sleep", Clock(interrupt).sleep)
    found = typed(sent, "--watch", "--every", "7", max_submit=3)
    assert found.exit_code == 130
    assert found.stdout.endswith("1 run left for later; the same command goes on\n")
    assert not any(call.startswith("scancel") for call in taking.calls)
    assert len(sent_runs(sent.folder)) == 1


def test_one_array_takes_one_command_each(taking: Scheduler, sent: Sent) -> None:
    sent.submission("12", tasks=[[0]], throttle=1)
    assert typed(sent, throttle=2).exit_code == 0
    names = [call.split()[0] for call in taking.calls]
    assert (names.count("sbatch"), names.count("scontrol")) == (1, 1)
    # Before it is asked whether to send, and again under the lock.
    assert names.count("squeue") == 2
