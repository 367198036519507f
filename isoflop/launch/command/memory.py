"""Peak memory of the processes below this one, sampled while they run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from isoflop.launch.command.guard import descendants, parent_of

# Samples come ever less often, so that there is one of a command of milliseconds, too.
_FIRST_S, _EVERY_S = 0.01, 0.1
# nvidia-smi takes a good part of a second.
_GPU_EVERY_S = 2.0
_GPU_TIMEOUT_S = 20.0
_MIB = 1024**2


class PeakMemory:
    """The most memory that the descendants of this process hold within the context.

    On the CPU: resident pages, those that several share counted once, sampled ten times a second;
    at least the system's own record of the largest of them. On GPUs: of the one that holds most,
    as nvidia-smi tells.

    Args:
        with_gpu: whether to ask for GPUs.
    """

    def __init__(self, *, with_gpu: bool) -> None:
        self.cpu_bytes: int | None = None
        """None: the system does not tell."""
        self.gpu_bytes: int | None = None
        """None: there is none, or nvidia-smi does not tell it of these processes."""
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._sample_cpu, daemon=True)]
        if with_gpu and shutil.which("nvidia-smi"):
            self._threads.append(threading.Thread(target=self._sample_gpu, daemon=True))

    def __enter__(self) -> PeakMemory:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _sample_cpu(self) -> None:
        wait_s = _FIRST_S
        while not self._is_over.wait(wait_s):
            wait_s = min(2 * wait_s, _EVERY_S)
            held, largest = 0, 0
            for pid in _below_guards():
                held += _resident_bytes(pid)
                largest = max(largest, _most_bytes(pid))
            if peak := max(held, largest, self.cpu_bytes or 0):
                self.cpu_bytes = peak

    def _sample_gpu(self) -> None:
        while not self._is_over.wait(_GPU_EVERY_S):
            pids = set(_below_guards())
            by_gpu: dict[str, int] = {}
            for gpu, pid, num_bytes in _gpu_processes():
                if pid in pids:
                    by_gpu[gpu] = by_gpu.get(gpu, 0) + num_bytes
            if by_gpu:
                self.gpu_bytes = max(*by_gpu.values(), self.gpu_bytes or 0)


def _below_guards() -> Iterator[int]:
    """Yield the processes of commands: all but the guards, which are this process's children."""
    this = os.getpid()
    yield from (pid for pid in descendants(this) if parent_of(str(pid)) != this)


def _resident_bytes(pid: int) -> int:
    """Return what a process holds of memory, its share of what others hold, too; 0: it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def _most_bytes(pid: int) -> int:
    """Return the most that a process held alone so far; 0: it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def _gpu_processes() -> Iterator[tuple[str, int, int]]:
    """Yield GPU, process and bytes of what computes on GPUs now; none where it is not told."""
    for line in _nvidia_smi("--query-compute-apps=gpu_uuid,pid,used_memory"):
        # `[N/A]` is no number.
        with contextlib.suppress(ValueError):
            gpu, pid, mebibytes = line.split(",")
            yield gpu.strip(), int(pid), int(mebibytes) * _MIB


def gpu_name() -> str:
    """Return the first GPU in its maker's words, as far as nvidia-smi tells."""
    return next(_nvidia_smi("--query-gpu=name"), "a GPU")


def _nvidia_smi(query: str) -> Iterator[str]:
    """Yield the lines of an answer; none where there is no such program, or no answer."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GPU_TIMEOUT_S,
        )
        yield from filter(None, map(str.strip, told.stdout.splitlines()))
