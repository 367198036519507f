from __future__ import annotations

import io

import pytest
from rich.console import Console

from isoflop.launch.execute import Ending, Job
from isoflop.launch.local import Session
from isoflop.launch.pool import Event
from isoflop.plan.planner import make_plan
from isoflop.render.progress import Estimator, Watcher
from made_studies import micro


def test_nothing_is_known_before_anything_is_done() -> None:
    estimator = Estimator(num_workers=2)
    estimator.plan("mlp", 100.0)
    assert estimator.eta_s({}) is None


def test_each_arch_has_a_speed_of_its_own() -> None:
    estimator = Estimator(num_workers=2)
    for arch in ("mlp", "mlp", "sgatlin", "sgatlin"):
        estimator.plan(arch, 100.0)
    estimator.finish("mlp", 100.0, 10.0)
    estimator.finish("sgatlin", 100.0, 50.0)
    assert estimator.eta_s({}) == pytest.approx((10 + 50) / 2)


def test_runs_under_way_count_with_what_they_have_done() -> None:
    estimator = Estimator(num_workers=1)
    estimator.plan("mlp", 100.0)
    assert estimator.eta_s({"mlp": [(25.0, 5.0)]}) == pytest.approx(15.0)


def test_an_arch_without_a_run_yet_takes_the_mean_speed() -> None:
    estimator = Estimator(num_workers=1)
    estimator.plan("mlp", 100.0)
    estimator.plan("peer", 100.0)
    estimator.finish("mlp", 100.0, 10.0)
    assert estimator.eta_s({}) == pytest.approx(10.0)


def _session() -> Session:
    plan = make_plan(micro(archs=("mlp", "peer"), sizes=(1,)))
    jobs = tuple(
        Job(
            study_folder="f",
            run_id=run.run_id,
            data_folder="d",
            keep_weights=False,
            device="cpu",
            num_threads=1,
        )
        for run in plan.unique_runs
    )
    return Session(plan=plan, jobs=jobs, num_workers=2, num_done_before=0)


@pytest.mark.parametrize("terminal", [True, False])
def test_every_ending_is_a_line_with_its_reason(terminal: bool) -> None:
    session = _session()
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120, height=20, highlight=False)
    first, second = session.jobs
    with Watcher(session, console) as watcher:
        for job in session.jobs:
            watcher.on_event(Event(kind="start", job=job))
        watcher.on_event(Event(kind="step", job=first, step=3, steps=40, loss=5.0))
        watcher.on_event(Event(kind="wait", job=second))
        watcher.on_event(Event(kind="end", job=first, ending=Ending(status="done", loss=2.5)))
        watcher.on_event(Event(kind="start", job=second))
        reason = "[non-finite] loss"
        watcher.on_event(
            Event(kind="end", job=second, ending=Ending(status="diverged", reason=reason))
        )
    text = screen.getvalue()
    assert f"[1/2] {first.run_id[:12]}" in text
    assert "done  loss 2.5000" in text
    assert "diverged  ([non-finite] loss)" in text
