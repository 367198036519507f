"""A long-lived worker process: imports torch once, then trains the jobs it is sent, one by one."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.errors import failure_reason
from isoflop.launch.execute import execute
from isoflop.launch.job import Ending, Job
from isoflop.launch.layout import num_gpus, on_own_device
from isoflop.launch.reporter import Reporter
from isoflop.launch.signals import StopFlag

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData


def work(jobs: Connection, number: int) -> None:
    """Receive jobs until None comes; sends ("step", …) and ("end", …) messages back.

    Args:
        jobs: the parent's end of talk.
        number: of this worker, from 0; on a machine with several GPUs it takes the one of its own.

    SIGINT is the parent's business (a terminal sends it to the whole group); SIGTERM and SIGUSR2
    ask the run to stop at its next step; when the parent dies, the worker does too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    should_stop = StopFlag((signal.SIGTERM, signal.SIGUSR2))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    data: dict[str, TokenData] = {}
    while should_stop.reason is None:
        job = jobs.recv()
        if job is None:
            return
        jobs.send(("end", _run(job, number, data, jobs, should_stop)))


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(
    job: Job, number: int, data: dict[str, TokenData], jobs: Connection, should_stop: StopFlag
) -> Ending:
    def tell(step: int, steps: int, loss: float) -> None:
        jobs.send(("step", step, steps, loss))

    try:
        if job.placement.num_ranks > 1:
            from isoflop.launch.torchrun import run_ranks

            ranks = job.placement.num_ranks
            return run_ranks(job, ranks, on_step=tell, should_stop=should_stop)
        opened = _opened(job.data_folder, data)
        placement = on_own_device(job.placement, number, num_gpus(job.placement))
        job = dataclasses.replace(job, placement=placement)
        return execute(job, opened, on_step=Reporter(tell), should_stop=should_stop)
    except Exception as error:
        # What fails outside the run itself (data, damaged records, a full disk) fails this job
        # only; the worker lives on.
        return Ending(status="failed", reason=failure_reason(error))


def _opened(folder: str, data: dict[str, TokenData]) -> TokenData:
    """Return the data of a folder; the shards are verified once per worker, not once per run."""
    from isoflop.data.windows import open_data

    if folder not in data:
        data[folder] = open_data(Path(folder))
    return data[folder]
