"""`isoflop submit` as it is typed: which runs it sends, when, and how many at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main
from isoflop.data.prepare import prepare as prepare_data
from isoflop.launch.slurm.records import comment_of, read_submissions
from slurm.made_scheduler import Scheduler, Sent, line


@pytest.fixture
def taking(told: Scheduler, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """A scheduler that takes jobs."""
    told.takes_jobs()
    told.queue()
    monkeypatch.setattr("submitit.core.core.PicklingExecutor._throttle", lambda self: None)
    prepare_data("sotu-embedded", "byte")
    return told


def typed(sent: Sent, *arguments: str, **profile: Any) -> Result:
    path = sent.folder.parent / "mine.toml"
    values = {"name": "mine", "hardware": "cpu2", **profile}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    options = ("--cluster", str(path), "--yes", *arguments)
    return CliRunner().invoke(main, ["submit", str(sent.folder), *options])


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
    comment = comment_of(read_submissions(sent.folder)[0].submission_id, 0)
    taking.queue(*(line(f"100_{i}", "PENDING", comment=comment) for i in range(2)))
    assert "nothing to send: 0 runs complete, 1 at work" in typed(sent, swiglu[0][:12]).stdout
    wrong = typed(sent, "--archs", "swigul")
    assert wrong.exit_code == 2
    assert wrong.stderr == ("isoflop: --archs = swigul: must be one of mlp, swiglu; write swiglu\n")
    assert len(sent_runs(sent.folder)) == 1
