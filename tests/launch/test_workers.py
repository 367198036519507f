"""The pool of workers: what they are given, and how they end when they are interrupted."""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from isoflop.files import write_json_atomic
from isoflop.launch import workers as module
from isoflop.launch.job import Job, JobResult
from isoflop.launch.run_folder import RunFolder, Watch, watch_all
from made_siblings import Made

JOB = Job(study_folder="s", run_id="r", data_folder="d")


def save(pipe: Connection, waits: bool) -> None:
    """A worker that has saved at once after TERM, or when it is told to."""

    def on_term(*_: object) -> None:
        if waits:
            pipe.recv()
        signal.raise_signal(signal.SIGKILL)

    signal.signal(signal.SIGTERM, on_term)
    pipe.send("ready")
    time.sleep(1000)


def worker(waits: bool) -> module._Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=save, args=(theirs, waits), daemon=True)
    process.start()
    assert ours.recv() == "ready"
    return module._Worker(process=process, pipe=ours, job=JOB)


@pytest.mark.parametrize("hurry", [False, True])
def test_how_many_runs_save_is_told_at_once_and_a_hurry_ends_them(hurry: bool) -> None:
    pool = [worker(waits=False), worker(waits=True)]
    told: list[int] = []

    def on_stop(num_saving: int) -> bool:
        if not told:
            # Before anything is waited for.
            assert all(w.process.is_alive() for w in pool)
        if num_saving == 1 and 1 not in told and not hurry:
            pool[1].pipe.send("save")
        told.append(num_saving)
        return hurry and num_saving == 1

    module._stop(pool, on_stop)
    assert told[0] == 2
    assert 1 in told
    assert not any(w.process.is_alive() for w in pool)


class Thread(threading.Thread):
    """A worker of this process: it holds a run that is at work elsewhere, or ends it."""

    def __init__(self, answers: dict[str, list[str]], seen: list[tuple[str, Watch | None]]) -> None:
        self.ours, self._theirs = multiprocessing.Pipe()
        # Ready when it has ended.
        self.sentinel, self._end = multiprocessing.Pipe()
        super().__init__(target=self._work, args=(answers, seen))
        self.start()

    def _work(self, answers: dict[str, list[str]], seen: list[tuple[str, Watch | None]]) -> None:
        while (message := self._theirs.recv()) is not None:
            job, watch = message
            seen.append((job.run_id, watch))
            self.train(job)
            self._theirs.send(("end", JobResult(status=answers[job.run_id].pop(0))))
        self._end.close()

    def train(self, job: Job) -> None:
        """What it does with a job before it ends it."""


def test_whoever_showed_a_sign_of_life_is_watched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen, other = RunFolder(tmp_path, "a" * 64), RunFolder(tmp_path, "b" * 64)
    unseen.path.mkdir(parents=True)
    assert unseen.claim({}) is not None
    path = unseen.path / "attempts" / "0001.json"
    record = json.loads(path.read_text())
    write_json_atomic(path, record | {"holder": record["holder"] | {"boot_id": "before"}})
    watches = watch_all(tmp_path, [unseen.run_id, other.run_id])
    # A sign of life since.
    (unseen.path / "lease.json").write_text("{}")
    seen: list[tuple[str, Watch | None]] = []
    answers = {unseen.run_id: ["held", "done"], other.run_id: ["done"]}

    def start(index: int, inherited: object) -> module._Worker:
        thread = Thread(answers, seen)
        return module._Worker(process=thread, pipe=thread.ours)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_start_worker", start)
    jobs = [
        Job(study_folder=str(tmp_path), run_id=folder.run_id, data_folder="d")
        for folder in (unseen, other)
    ]
    kinds = [event.kind for event in module.run_jobs(jobs, 1, watches=watches)]
    assert kinds == ["start", "wait", "start", "end", "start", "end"]
    (run, first), without, (again, second) = seen
    assert (run, again) == (unseen.run_id, unseen.run_id)
    assert without == (other.run_id, None)
    assert first == watches[unseen.run_id]
    assert second is not None
    assert second.signs != watches[unseen.run_id].signs
    assert second.since_s > watches[unseen.run_id].since_s


class Trainer(Thread):
    """A worker whose long run leaves a fork on its way and ends after the short one."""

    made: Made
    alone: bool
    ended = threading.Event()

    def train(self, job: Job) -> None:
        short, _, long = self.made.runs
        if job.run_id == long.run_id:
            self.made.fork(long, self.made.job(short).fork)
            self._theirs.send(("step", self.made.job(short).fork + 1, long.spec.steps, 3.0))
            assert self.alone or self.ended.wait(60)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_branch_is_trained_beside_its_trunk_or_after_it(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path)
    short, _, long = made.runs
    answers = {run.run_id: ["done"] for run in made.runs}
    seen: list[tuple[str, Watch | None]] = []
    monkeypatch.setattr(Trainer, "made", made, raising=False)
    monkeypatch.setattr(Trainer, "alone", num_workers == 1, raising=False)
    monkeypatch.setattr(Trainer, "ended", threading.Event())

    def start(index: int, inherited: object) -> module._Worker:
        thread = Trainer(answers, seen)
        return module._Worker(process=thread, pipe=thread.ours)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_start_worker", start)
    jobs = [made.whole_job(run) for run in (short, long)]
    events = []
    for event in module.run_jobs(jobs, num_workers):
        events.append(event)
        if event.kind == "end":
            Trainer.ended.set()
    assert [run_id for run_id, _ in seen] == [long.run_id, short.run_id]
    ends = [event.job.run_id for event in events if event.kind == "end"]
    behind = [event for event in events if event.kind == "behind"]
    assert ends == (
        [long.run_id, short.run_id] if num_workers == 1 else [short.run_id, long.run_id]
    )
    assert [(e.job.run_id, e.longer and e.longer.run_id) for e in behind] == [
        (short.run_id, long.run_id)
    ]
