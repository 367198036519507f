"""Peak memory of one run, also in a process that trains many; failures of a run in one line.

A lack of memory is reported with the sizes that caused it.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch

from isoflop.disk import reason_of
from isoflop.placement import Placement
from isoflop.plan.estimate.memory import estimate_memory, format_bytes, model_shape
from isoflop.spec import RunSpec

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
# What Linux takes for "forget the peak resident size of this process".
_RESET_PEAK = "5"

# Parameters of the GNU C library's mallopt: how much free memory at the end of the heap goes back
# to the system, and from which size on a block is a mapping of its own.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _OWN_MAPPING_BYTES = 2**30, 2**25


# What allocators that raise no error of a type of their own write: torch on the CPU and on other
# devices, the driver, cuBLAS.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
# What the process groups of torch.distributed raise.
_LOST_RANK = re.compile(r"^Dist(Backend|Network|Store)?Error|gloo[/\\]transport|NCCL error")
# "you tried to allocate 4398046511104 bytes" (CPU), "Tried to allocate 2.50 GiB" (CUDA), "Unable to
# allocate 8.00 TiB" (numpy).
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) (bytes|[KMGTPE]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1} | {f"{prefix}ib": 2 ** (10 * n) for n, prefix in enumerate("kmgtpe", 1)}


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed CPU tensors for the next ones.

    Otherwise the C library may return it to the system and take it back several times per step,
    each page cleared anew: up to a tenth of a step. No other C library is touched.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement: forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text(_RESET_PEAK)


def peak_bytes(device: torch.device) -> int | None:
    """Return the peak since :func:`reset_peak`: allocated on CUDA, resident on the CPU.

    What was imported counts on the CPU. None where the system does not report it (not Linux).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not (_CLEAR_REFS.exists() and _STATUS.exists()):
        return None
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocator gave up, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def describe(error: BaseException, spec: RunSpec, placement: Placement, num_ranks: int = 1) -> str:
    """Return type and first line of an error; for a lack of memory, the sizes and what to do.

    Args:
        error: what ended the run.
        spec: the run.
        placement: where it ran.
        num_ranks: processes that shared it.
    """
    if _LOST_RANK.search(f"{type(error).__name__}: {error}"):
        return "lost contact with another rank of this run: it died or stalled"
    if not is_out_of_memory(error):
        return reason_of(error)
    at_a_time = placement.micro_batch or -(-spec.batch_size // num_ranks)
    parts = [
        f"{spec.family}, width {spec.d_model}, {spec.n_layers} layers",
        f"{at_a_time} × {spec.seq_len} tokens at a time",
        f"vocabulary {spec.vocab_size}",
    ]
    asked = _asked_bytes(str(error))
    if asked is not None:
        parts.append(f"asked for {format_bytes(asked)}")
    estimate = estimate_memory(
        model_shape(spec),
        micro_batch=at_a_time,
        num_devices=num_ranks,
        sharded=placement.parallel == "fsdp",
        checkpointing=placement.checkpoint_activations,
        accumulates=at_a_time * num_ranks < spec.batch_size,
    )
    parts.append(f"estimated peak {format_bytes(estimate.peak_bytes)} on {placement.device}")
    return f"out of memory: {'; '.join(parts)}; {_what_to_do(placement, at_a_time)}"


def _asked_bytes(message: str) -> float | None:
    found = _ASKED.search(message)
    return float(found[1]) * _UNITS[found[2].lower()] if found else None


def _what_to_do(placement: Placement, at_a_time: int) -> str:
    ways = []
    if at_a_time > 1:
        ways.append(f"a smaller --micro-batch ({at_a_time // 2})")
    if not placement.checkpoint_activations:
        ways.append("--checkpoint-activations")
    if not ways:
        ways.append("a device with more memory, or several with parallel = fsdp")
    return f"try {' or '.join(ways)}"
