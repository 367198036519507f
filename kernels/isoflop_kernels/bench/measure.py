"""Times of calls, and how close they come to what the machine can do at best.

A call is timed in CPU seconds of the process on CPU, by CUDA events on a GPU.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch

# A slow call is not repeated beyond this, once there are enough samples for a range.
SECONDS_PER_CALL = 4.0
MIN_REPEATS = 3


@dataclasses.dataclass(slots=True)
class Samples:
    """Seconds of each repeat: of CPU or GPU time, and by the clock on the wall where it differs."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    wall_seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.seconds)

    @property
    def best_seconds(self) -> float:
        """The fastest repeat."""
        return min(self.seconds)

    @property
    def median_wall_seconds(self) -> float | None:
        """Median on the wall; None on a GPU, where events time the device itself."""
        return statistics.median(self.wall_seconds) if self.wall_seconds else None

    def enough(self, repeats: int) -> bool:
        """Return whether another repeat would add little for its cost."""
        count = len(self.seconds)
        return count >= repeats or (count >= MIN_REPEATS and sum(self.seconds) >= SECONDS_PER_CALL)


def time_calls(
    calls: Sequence[Callable[[], object]], repeats: int, device: torch.device
) -> list[Samples]:
    """Time several calls in turns, so that whatever else the machine does hits all of them alike.

    Each is called once before, untimed. Calls that take seconds get fewer repeats, at least three.
    """
    samples = [Samples() for _ in calls]
    time_once = _time_on_gpu(device) if device.type == "cuda" else _time_on_cpu
    for call in calls:
        call()
    while not all(sample.enough(repeats) for sample in samples):
        for call, sample in zip(calls, samples, strict=True):
            if not sample.enough(repeats):
                time_once(call, sample)
    return samples


def _time_on_cpu(call: Callable[[], object], sample: Samples) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    sample.seconds.append(time.process_time() - cpu)
    sample.wall_seconds.append(time.perf_counter() - wall)


def _time_on_gpu(device: torch.device) -> Callable[[Callable[[], object], Samples], None]:
    """Return a timer that empties the second-level cache before each call."""
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(2 * l2_bytes, dtype=torch.int8, device=device)

    def time_once(call: Callable[[], object], sample: Samples) -> None:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        sample.seconds.append(begin.elapsed_time(end) / 1000)

    return time_once


# Far beyond any cache; the GPU's is a few milliseconds of its bandwidth.
TRIAD_NUMBERS = {"cpu": 2**25, "cuda": 2**28}
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
REPEATS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Measured limits of the device, one CPU thread or a whole GPU."""

    bytes_per_second: float
    flops_per_second: float

    def bound_seconds(self, num_bytes: int, flops: int) -> float:
        """Return the roofline: whichever of moving and computing takes longer."""
        return max(num_bytes / self.bytes_per_second, flops / self.flops_per_second)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure a = b + s * c over large float32 vectors and a large product in `dtype`.

    The best of a few repeats. Three vectors count, as in STREAM, though a CPU may also read the
    one it writes.
    """
    return Machine(
        bytes_per_second=_triad_bytes_per_second(device),
        flops_per_second=_matmul_flops_per_second(device, dtype),
    )


def _triad_bytes_per_second(device: torch.device) -> float:
    size = TRIAD_NUMBERS[device.type]
    a, b, c = (torch.ones(size, device=device) for _ in range(3))
    [samples] = time_calls([lambda: torch.add(b, c, alpha=3.0, out=a)], REPEATS, device)
    return 3 * 4 * size / samples.best_seconds


def _matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    size = MATMUL_SIZE[device.type]
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    [samples] = time_calls([lambda: torch.matmul(a, b, out=out)], REPEATS, device)
    return 2 * size**3 / samples.best_seconds
