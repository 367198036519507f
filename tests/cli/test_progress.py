from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from isoflop.cli.progress import Estimator, Watcher
from isoflop.launch.job import Job, JobResult
from isoflop.launch.local import Session
from isoflop.launch.trunks import steps_to_train
from isoflop.launch.workers import Event
from isoflop.plan.planner import make_plan
from isoflop.plan.trunks import flops_of_steps
from isoflop.spec import shown_id
from made_siblings import Made
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
        Job(study_folder="f", run_id=run.run_id, data_folder="d") for run in plan.unique_runs
    )
    return Session(folder=Path("f"), plan=plan, jobs=jobs, num_workers=2, results={})


class Clock:
    """Seconds that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("isoflop.cli.progress.time.monotonic", lambda: self.now_s)


def shown(watcher: Watcher) -> str:
    screen = io.StringIO()
    Console(file=screen, width=160).print(watcher._table())
    return screen.getvalue()


@pytest.mark.parametrize("steps_before", [0, 100])
def test_rates_are_of_this_attempt(monkeypatch: pytest.MonkeyPatch, steps_before: int) -> None:
    clock = Clock(monkeypatch)
    session = _session()
    job = session.jobs[0]
    run = session.plan.unique_runs[0]
    with Watcher(session, Console(file=io.StringIO())) as watcher:
        watcher.on_event(Event(kind="start", job=job))
        clock.now_s += 7.0
        first = steps_before + 1
        watcher.on_event(Event(kind="step", job=job, step=first, steps=9, loss=5.0))
        assert "-" in shown(watcher).splitlines()[-1].split()
        clock.now_s += 2.0
        watcher.on_event(Event(kind="step", job=job, step=first + 20, steps=9, loss=5.0))
        # Twenty steps in two seconds; what the screen adds in waiting does not count.
        clock.now_s += 60.0
        row = shown(watcher).splitlines()[-1].split()
    assert row[-1] == f"{10 * run.spec.batch_size * run.spec.seq_len:,}"


def test_what_a_checkpoint_holds_is_neither_done_again_nor_credited_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    session = _session()
    runs = {run.run_id: run for run in session.plan.unique_runs}
    first, second = session.jobs
    steps = runs[first.run_id].spec.steps
    with Watcher(session, Console(file=io.StringIO())) as watcher:
        for job in (first, second):
            watcher.on_event(Event(kind="start", job=job))
        # The first begins half way, and does a quarter of its steps in 10 s.
        for step, wait_s in ((steps // 2 + 1, 0.0), (3 * steps // 4, 10.0)):
            clock.now_s += wait_s
            watcher.on_event(Event(kind="step", job=first, step=step, steps=steps))
        flops, other_flops = runs[first.run_id].flops, runs[second.run_id].flops
        done = flops * (3 * steps // 4 - steps // 2) / steps
        left_s = (flops - flops * (3 * steps // 4) / steps) * 10.0 / done
        # The second run's arch has no speed of its own yet, but has spent 10 s; two workers.
        assert watcher._eta_s() == pytest.approx((left_s + other_flops * 20.0 / done) / 2)
        clock.now_s += 10.0
        watcher.on_event(Event(kind="end", job=first, result=JobResult(status="done", loss=2.0)))
        arch = runs[first.run_id].arch
        assert watcher._estimator.todo_flops[arch] == pytest.approx(0.0, abs=1.0)
        before = flops * (steps // 2) / steps
        assert watcher._estimator.spent_flops[arch] == pytest.approx(flops - before)
        # Taken over by another process in the meantime, a run is whole again.
        watcher.on_event(Event(kind="step", job=second, step=31, steps=40))
        watcher.on_event(Event(kind="wait", job=second))
        assert watcher._estimator.todo_flops[runs[second.run_id].arch] == pytest.approx(
            runs[second.run_id].flops
        )


def test_what_is_waited_for_is_said_once_for_all_and_again_after_training() -> None:
    session = _session()
    screen = io.StringIO()
    first, second = session.jobs
    with Watcher(session, Console(file=screen, width=120)) as watcher:

        def tell(kind: str, job: Job, *, result: JobResult | None = None) -> str:
            before = len(screen.getvalue())
            watcher.on_event(Event(kind=kind, job=job, step=1, steps=40, result=result))
            return screen.getvalue()[before:]

        # One is looked at after the other.
        assert tell("start", first) + tell("wait", first) + tell("start", second) == ""
        words = "at work elsewhere: for results, or for heartbeats to stop"
        assert tell("wait", second) == f"waiting for 2 runs {words}\n"
        assert tell("start", second) + tell("wait", second) + tell("start", second) == ""
        assert tell("step", second) == ""
        said = tell("end", second, result=JobResult(status="done"))
        assert said.endswith(f"waiting for 1 run {words}\n")
        assert tell("start", first) + tell("wait", first) + tell("start", first) == ""
        assert "waiting" not in tell("end", first, result=JobResult(status="done"))


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
        watcher.on_event(Event(kind="end", job=first, result=JobResult(status="done", loss=2.5)))
        watcher.on_event(Event(kind="start", job=second))
        reason = "[non-finite] loss"
        watcher.on_event(
            Event(kind="end", job=second, result=JobResult(status="diverged", reason=reason))
        )
    text = screen.getvalue()
    assert f"[1/2] {first.run_id[:12]}" in text
    assert text.count("waiting for 1 run at work elsewhere") == 1
    assert "done  loss 2.5000" in text
    assert "diverged  ([non-finite] loss)" in text


def test_whoever_waits_for_a_run_at_work_says_so_and_begins_at_its_fork(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock(monkeypatch)
    made = Made(tmp_path)
    short, middle, long = made.runs
    jobs = {run.run_id: made.whole_job(run) for run in made.runs}
    left = steps_to_train(tmp_path, made.plan)
    session = Session(
        folder=tmp_path,
        plan=made.plan,
        jobs=tuple(jobs.values()),
        num_workers=2,
        results={},
        steps_left=left,
    )
    with Watcher(session, Console(file=io.StringIO())) as watcher:
        todo = watcher._estimator.todo_flops
        assert todo["mlp"] == pytest.approx(
            sum(flops_of_steps(run, left[run.run_id]) for run in made.runs)
        )
        for run in (short, middle):
            watcher.on_event(
                Event(kind="behind", job=jobs[run.run_id], longer=made.job(run).longer[0])
            )
        assert "waits" not in shown(watcher)
        watcher.on_event(Event(kind="start", job=jobs[long.run_id]))
        lines = [line for line in shown(watcher).splitlines() if "waits for" in line]
        forks = [
            f"waits for {shown_id(long.run_id)} to pass step {made.job(r).fork:,}"
            for r in (short, middle)
        ]
        assert all(fork in line for fork, line in zip(forks, lines, strict=True))
        watcher.on_event(Event(kind="start", job=jobs[short.run_id]))
        # It began at its first step after all, and is done whole.
        watcher.on_event(Event(kind="step", job=jobs[short.run_id], step=1, steps=9))
        assert shown(watcher).count("waits for") == 1
        clock.now_s += 9.0
        ended = JobResult(status="done", loss=2.0)
        watcher.on_event(Event(kind="end", job=jobs[short.run_id], result=ended))
        assert watcher._estimator.spent_flops["mlp"] == pytest.approx(short.flops)
        others = (middle, long)
        assert todo["mlp"] == pytest.approx(
            sum(flops_of_steps(run, left[run.run_id]) for run in others)
        )
