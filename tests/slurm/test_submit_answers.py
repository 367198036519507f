"""An sbatch whose answer is lost: the array may have been taken, and is not sent twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.launch.slurm import executors
from isoflop.launch.slurm.records import array_folder, read_submissions
from isoflop.launch.slurm.submit import submit
from isoflop.launch.status import study_status
from isoflop.plan.planner import Plan
from slurm.made_sbatch import CPU, Pretended, typed, write_profile

TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
LOST_ANSWERS = (
    TIMED_OUT,
    "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller",
    "sbatch: error: slurm_receive_msg: Connection reset by peer",
    "sbatch: error: of which nobody has heard",
)


@pytest.mark.parametrize("words", [*LOST_ANSWERS, None])
def test_an_array_whose_answer_was_lost_is_found_by_its_comment(
    words: str | None, slurm: Pretended, study: tuple[Path, Plan]
) -> None:
    folder, _ = study
    slurm.config(MaxArraySize=2)
    if words is None:
        (slurm.folder / "kill-0").touch()
    else:
        slurm.refuse(0, words)
    slurm.queue(*(f"55_{i}|PENDING|0|0||None|@0|" for i in range(2)))
    report = submit(folder, CPU)
    assert (report.num_sent, report.job_ids, report.rejected) == (3, ["55", "101"], {})
    assert [array.job_id for array in read_submissions(folder)[0].arrays] == ["55", "101"]


@pytest.mark.parametrize("squeue_answers", [True, False])
def test_an_answer_that_is_lost_is_no_rejection(
    squeue_answers: bool,
    slurm: Pretended,
    study: tuple[Path, Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = study
    monkeypatch.setattr(executors, "_LOOK_EVERY_S", 0.0)
    slurm.config(MaxArraySize=2)
    slurm.refuse(0, TIMED_OUT)
    squeue = (slurm.folder / "squeue").read_text()
    if not squeue_answers:
        (slurm.folder / "squeue").write_text("#!/bin/bash\necho not now >&2\nexit 1\n")
    found = typed(folder, "--cluster", write_profile(folder), "--yes")
    assert found.exit_code == 3
    assert f"no answer about 3 runs: {TIMED_OUT}" in found.stderr
    # Nothing was sent beside it, and nothing that it needs was removed.
    assert len(slurm.scripts) == 1
    (record,) = read_submissions(folder)
    assert [(a.job_id, a.rejected) for a in record.arrays] == [(None, None)] * 2
    assert list(array_folder(folder, record.submission_id, 0).iterdir())
    # The controller had taken it; the array after it was never sent.
    (slurm.folder / "squeue").write_text(squeue)
    slurm.queue(*(f"55_{i}|RUNNING|0|0|n1|None|@0|" for i in range(2)))
    report = submit(folder, CPU)
    assert (report.num_sent, report.num_live) == (1, 2)
    # Its number is known from now on, though the queue forgets it and its comment.
    assert [a.job_id for a in read_submissions(folder)[0].arrays] == ["55", None]
    slurm.queue()
    states = study_status(folder, study[1]).states
    assert sum("job 55_" in str(state.reason) for state in states) == 2
