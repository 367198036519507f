"""The limit on submitted tasks: what counts, and what is said of the rest."""

from __future__ import annotations

import dataclasses

from isoflop.cli.submit import report_lines, total_lines
from isoflop.data.prepare import prepare as prepare_data
from isoflop.launch.slurm.outcome import SubmitReport
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.submit import num_left_of, prepare
from isoflop.launch.status import live_work
from slurm.made_scheduler import Scheduler, Sent, line

PROFILE = ClusterProfile(name="cpu", hardware="cpu2", runs_per_task=8)


def test_the_limit_counts_tasks_and_not_their_runs(told: Scheduler, sent: Sent) -> None:
    prepare_data("sotu-embedded", "byte")
    sent.submission(tasks=[[0, 1], [2]])
    told.queue(line("12_0", "RUNNING"), line("12_1", "CANCELLED"))
    live = live_work(sent.folder, sent.plan)
    assert (live.run_ids, live.queue.num_live_tasks) == (frozenset(sent.ids[:2]), 1)
    limited = dataclasses.replace(PROFILE, max_submit=2)
    ready = prepare(sent.folder, limited)
    # One of the two is taken, and the two runs that are left share the other.
    assert (len(ready.runs), ready.num_tasks, num_left_of(ready)) == (2, 1, 0)
    assert not any("later" in text for text in total_lines(ready))
    full = dataclasses.replace(ready, profile=dataclasses.replace(PROFILE, max_submit=1))
    left = "2 runs of them left for later (max_submit = 1, 1 task in the queue)"
    assert left in list(total_lines(full))


def test_what_is_left_is_said_with_what_fills_the_queue(sent: Sent) -> None:
    report = SubmitReport(
        submission_id=None,
        arrays=(),
        num_done=0,
        num_live=9,
        parked=(),
        left=("a", "b", "c", "d"),
        num_tasks=10,
    )
    (said,) = report_lines(report, sent.folder)
    left = "left for later by max_submit, with 10 tasks in the queue: 4 runs; submit again"
    assert said == f"{left}, or with --watch, to send them"
