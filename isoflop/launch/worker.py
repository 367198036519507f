"""A long-lived worker process: imports torch once, then trains the jobs it is sent, one by one."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.launch.execute import Ending, Job, execute, failure_reason

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData
    from isoflop.train.loop import StepMetrics

# The parent redraws a few times a second; more messages would only cost time.
REPORT_EVERY_S = 0.25


def work(jobs: Connection) -> None:
    """Receives jobs until None comes; sends ("step", …) and ("end", …) messages back.

    SIGINT is the parent's business (a terminal sends it to the whole group); SIGTERM asks the run
    to stop at its next step; when the parent dies, the worker does too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    data: dict[str, TokenData] = {}
    while not stop.is_set():
        job = jobs.recv()
        if job is None:
            return
        jobs.send(("end", _run(job, data, jobs, stop)))


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(job: Job, data: dict[str, TokenData], jobs: Connection, stop: threading.Event) -> Ending:
    last_report_s = 0.0

    def report(metrics: StepMetrics, steps: int) -> None:
        nonlocal last_report_s
        now = time.monotonic()
        if now - last_report_s >= REPORT_EVERY_S:
            last_report_s = now
            jobs.send(("step", metrics.step + 1, steps, metrics.loss))

    try:
        opened = _opened(job.data_folder, data)
        return execute(job, opened, on_step=report, should_stop=stop.is_set)
    except Exception as error:
        # What fails outside the run itself (data, damaged records, a full disk) fails this job
        # only; the worker lives on.
        return Ending(status="failed", reason=failure_reason(error))


def _opened(folder: str, data: dict[str, TokenData]) -> TokenData:
    """The data of a folder; the shards are verified once per worker, not once per run."""
    from isoflop.data.windows import open_data

    if folder not in data:
        data[folder] = open_data(Path(folder))
    return data[folder]
