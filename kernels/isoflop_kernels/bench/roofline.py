"""What the machine can do at best, measured in the same run, and how close a time comes to it."""

from __future__ import annotations

import dataclasses

import torch

from isoflop_kernels.bench.measure import time_calls

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
    """Bandwidth of a = b + s * c over large float32 vectors, FLOPs of a large product in `dtype`.

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
