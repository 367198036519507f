"""How the pool of workers ends when it is interrupted."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.connection import Connection

import pytest

from isoflop.launch import workers as module
from isoflop.launch.job import Job

JOB = Job(study_folder="s", run_id="r", data_folder="d")


def save(pipe: Connection, seconds: float) -> None:
    """A worker that takes so long to save after TERM."""
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(seconds), signal.raise_signal(9)))
    pipe.send("ready")
    time.sleep(1000)


def worker(seconds: float) -> module._Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=save, args=(theirs, seconds), daemon=True)
    process.start()
    assert ours.recv() == "ready"
    return module._Worker(process=process, pipe=ours, job=JOB)


@pytest.mark.parametrize("hurry", [False, True])
def test_how_many_runs_save_is_told_at_once_and_a_hurry_ends_them(hurry: bool) -> None:
    pool = [worker(0.0), worker(1000.0 if hurry else 1.0)]
    told: list[int] = []

    def on_stop(num_saving: int) -> bool:
        if not told:
            # Before anything is waited for.
            assert all(w.process.is_alive() for w in pool)
        told.append(num_saving)
        return hurry and num_saving == 1

    module._stop(pool, on_stop)
    assert told[0] == 2
    assert told[-1] == 1
    assert not any(w.process.is_alive() for w in pool)
