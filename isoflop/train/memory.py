"""Peak memory of one run, also in a process that trains many."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
# What Linux takes for "forget the peak resident size of this process".
_RESET_PEAK = "5"

# Parameters of the GNU C library's mallopt: how much free memory at the end of the heap goes back
# to the system, and from which size on a block is a mapping of its own.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _OWN_MAPPING_BYTES = 2**30, 2**25


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
    """Begin a new measurement: the peak so far is forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text(_RESET_PEAK)


def peak_bytes(device: torch.device) -> int | None:
    """Peak since :func:`reset_peak`: allocated on CUDA, resident (imports included) on the CPU.

    None where the system does not tell (not Linux).
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
