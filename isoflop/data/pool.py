"""Runs one function over many tasks in several processes, results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from isoflop.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
State = TypeVar("State")

TASKS_PER_WORKER = 2
"""Tasks taken ahead of the next result, for each process: what bounds memory."""

_work: Callable[[Any], Any]
"""In a worker: the function, with its state."""


def ordered_map(
    function: Callable[[State, Task], Result], state: State, tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """Yield ``function(state, task)`` of each task, in order; raise an error in its task's turn.

    Processes end when the iterator is closed, and by themselves when this process is killed.

    Args:
        function: importable by name.
        state: pickled once per process.
        tasks: taken as they are needed.
        workers: processes; with 1 everything is done in this one.

    Raises:
        UserError: a process died.
    """
    if workers <= 1:
        for task in tasks:
            yield function(state, task)
        return
    # Fresh processes inherit nothing: this one alone has the end that keeps them alive.
    context = multiprocessing.get_context("spawn")
    lease, keep_alive = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _begin, (function, state, lease))
    ahead: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            ahead.append(pool.submit(_call, task))
            if len(ahead) == TASKS_PER_WORKER * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "data process",
            "ended",
            "alive until its work is done (was it out of memory?)",
            "run the command again, with fewer --workers",
        ) from None
    finally:
        keep_alive.close()
        pool.shutdown(cancel_futures=True)
        lease.close()


def _begin(function: Callable[[State, Task], Result], state: State, lease: Connection) -> None:
    """Set up a worker process, which ends as soon as ``lease`` does."""
    # An interrupt reaches the whole group; the parent ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        wait([lease])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    global _work
    _work = lambda task: function(state, task)  # noqa: E731


def _call(task: Any) -> Any:
    return _work(task)
