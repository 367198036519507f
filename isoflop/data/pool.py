"""Runs one function over many tasks in several processes, results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from isoflop.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
State = TypeVar("State")

TASKS_PER_WORKER = 2
"""Tasks taken ahead of the next result, for each process: what bounds memory."""


def ordered_map(
    function: Callable[[State, Task], Result], state: State, tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """``function(state, task)`` of each task, in order; an error is raised in its task's turn.

    Processes end when the iterator is closed, and by themselves when this process is killed.

    Args:
        function: importable by name.
        state: pickled once per process.
        tasks: taken as they are needed.
        workers: processes; with 1 everything is done in this one.

    Raises:
        UserError: a process died.
    """
    if workers == 1:
        return (function(state, task) for task in tasks)
    return _in_processes(function, state, tasks, workers)


def _in_processes(
    function: Callable[[State, Task], Result], state: State, tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    started = [_start(function, state) for _ in range(workers)]
    try:
        yield from _dispatch([connection for _, connection in started], iter(tasks))
    finally:
        for process, _ in started:
            process.terminate()
        for process, connection in started:
            process.join()
            connection.close()


def _dispatch(idle: list[Connection], tasks: Iterator[Any]) -> Iterator[Any]:
    ahead = TASKS_PER_WORKER * len(idle)
    busy: dict[Any, int] = {}
    done: dict[int, Any] = {}
    num_sent = num_yielded = 0
    more = True
    while True:
        while more and idle and num_sent - num_yielded < ahead:
            try:
                task = next(tasks)
            except StopIteration:
                more = False
                break
            connection = idle.pop()
            _send(connection, task)
            busy[connection] = num_sent
            num_sent += 1
        if num_yielded in done:
            num_yielded += 1
            yield _unwrap(done.pop(num_yielded - 1))
        elif busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                done[busy.pop(ready)] = _receive(ready)
                idle.append(ready)
        else:
            return


def _start(function: Callable[..., Any], state: Any) -> tuple[BaseProcess, Connection]:
    # A fresh process inherits no other connection, so that each sees the end of its own.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, function, state), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _work(connection: Connection, function: Callable[..., Any], state: Any) -> None:
    # An interrupt reaches the whole group; the parent ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = connection.recv()
        # An OSError where this process's last answer was not read.
        except (EOFError, OSError):
            return
        try:
            answer = (True, function(state, task))
        except Exception as error:
            answer = (False, error)
        try:
            connection.send(answer)
        except OSError:
            return


def _send(connection: Connection, task: Any) -> None:
    try:
        connection.send(task)
    except OSError:
        raise _died() from None


def _receive(connection: Connection) -> tuple[bool, Any]:
    try:
        return connection.recv()
    except (EOFError, OSError):
        raise _died() from None


def _died() -> UserError:
    return UserError(
        "data process",
        "ended",
        "alive until its work is done (was it out of memory?)",
        "run the command again, with fewer --workers",
    )


def _unwrap(answer: tuple[bool, Any]) -> Any:
    succeeded, value = answer
    if not succeeded:
        raise value
    return value
