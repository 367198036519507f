"""A process that measures, seen from outside: started, given jobs, watched, ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.gpu_report.records import Job, Row, to_json
from isoflop.gpu_report.schedule import GRACE_S

START_S = 90.0
"""To import torch and to wake the GPU, from a cold disk."""
_SHOWN = 300


class Worker:
    """Runs `worker.py`, gives it jobs by its standard input, and reads results from a pipe.

    After a job that crashed, hung or left the GPU unusable, the next one gets a new process.

    Args:
        command: starts it; the number of the pipe's descriptor is put behind.
        environment: of the process.
        log: a file for whatever it prints.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._results = -1
        self._unread = b""

    def run(self, job: Job, limit_s: float) -> Iterator[Row]:
        """Yield the rows of a job as they come; what is late or dies ends with a row that says so.

        Starting a process counts, but for the job's own limit.
        """
        end = time.monotonic() + limit_s
        if self._process is None:
            self._start()
            if self._next(min(end, time.monotonic() + START_S)) != {"ready": True}:
                yield self._lost(job, end, "while it started")
                return
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(to_json(job)).encode() + b"\n")
            self._process.stdin.flush()
        while True:
            message = self._next(end)
            if message is None:
                yield self._lost(job, end, "")
                return
            if "row" in message:
                yield Row(**message["row"])
            elif "done" in message:
                if not message["done"]:
                    self.close()
                return

    def close(self) -> None:
        """End the process and whatever it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # What waits for a driver may not end at once; it is not waited for longer.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        os.close(self._results)
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()

    def _start(self) -> None:
        self._results, theirs = os.pipe()
        self._unread = b""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=(theirs,),
                # A process group of its own, so that compilers which it starts end with it.
                start_new_session=True,
            )
        os.close(theirs)

    def _next(self, end: float) -> dict[str, Any] | None:
        """Return the next message; None if it did not come in time, or never will."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, end - time.monotonic())):
                    return None
                read = os.read(self._results, 2**16)
                if not read:
                    return None
                self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _lost(self, job: Job, end: float, when: str) -> Row:
        """End the process, and return the row that says why."""
        assert self._process is not None
        late = time.monotonic() >= end
        if not late:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        code = self._process.poll()
        self.close()
        if late:
            return Row(
                stage=job.stage, case=job.case, outcome="cut", note=f"ended {when or 'for time'}"
            )
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        note = f"its process ended {when} ({how}): {self._last_words()}".replace("  ", " ")
        return Row(stage=job.stage, case=job.case, outcome="failed", note=note)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:_SHOWN] if lines else "it printed nothing"


def worker_command(device: str) -> list[str]:
    """Return what starts `worker.py` on a device, as torch names it."""
    return [sys.executable, "-m", "isoflop.gpu_report.worker", device]


def worker_environment(folder: Path, *, interpret: bool) -> dict[str, str]:
    """Return the environment of workers: caches that can be written, and the packages' folders.

    Args:
        folder: for caches, where the user has named none.
        interpret: whether Triton interprets its kernels.
    """
    environment = dict(os.environ)
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "kernels"
    # A checkout has two source folders; a wheel has both packages in one.
    roots = [package.parent, *([beside] if beside.is_dir() else [])]
    given = os.environ.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, roots), *([given] if given else [])])
    for name, cache in (
        ("TRITON_CACHE_DIR", "triton"),
        ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ("ISOFLOP_KERNELS_CACHE", "kernels"),
        ("HOME", "home"),
    ):
        if not environment.get(name):
            environment[name] = str(folder / cache)
            (folder / cache).mkdir(parents=True, exist_ok=True)
    environment["PYTHONUNBUFFERED"] = "1"
    environment.pop("TRITON_INTERPRET", None)
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return environment
