"""What the machine is and what it can do at best: facts, rates, and its hardware profile."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from isoflop.gpu_report.profiles import built_in_profile
from isoflop.gpu_report.records import COMPUTE_MODE, FACT, Job, Row
from isoflop.plan.estimate.hardware import Hardware
from isoflop_kernels.bench.measure import time_calls

_REPEATS = 5
_COPY_BYTES = {"cpu": 2**24, "cuda": 2**31}
_SIDE = {"cpu": 256, "cuda": 8192}


def measure_machine(job: Job, device: torch.device) -> Iterator[Row]:
    """Yield what the machine is, then its rates against those of its profile."""
    name = device_name(device)
    yield Row(stage=job.stage, case=job.case, what="name", note=name, details={FACT: name})
    for what, value in _words(device).items():
        yield Row(stage=job.stage, case=job.case, what=what, note=value, details={FACT: value})
    for what, size in _sizes(device).items():
        yield Row(
            stage=job.stage,
            case=job.case,
            what=what,
            unit="GB",
            measured=size / 1e9,
            details={FACT: size},
        )
    profile = built_in_profile(name)
    yield Row(
        stage=job.stage,
        case=job.case,
        what="profile",
        note=profile.name
        if profile
        else "none is known for this name: predictions are made from the rates measured here",
    )
    rates = {
        "copy": ("TB/s", 1e12, copy_bytes_per_s),
        "bf16": ("TFLOP/s", 1e12, lambda device: matmul_flops_per_s(device, torch.bfloat16)),
        "tf32": ("TFLOP/s", 1e12, lambda device: matmul_flops_per_s(device, torch.float32, True)),
        "fp32": ("TFLOP/s", 1e12, lambda device: matmul_flops_per_s(device, torch.float32)),
    }
    for what, (unit, scale, rate) in rates.items():
        peak = _assumed(profile, what)
        yield Row(
            stage=job.stage,
            case=job.case,
            what=what,
            unit=unit,
            predicted=None if peak is None else peak / scale,
            measured=(per_s := rate(device)) / scale,
            details={FACT: per_s},
        )


def _assumed(profile: Hardware | None, what: str) -> float | None:
    """Return the peak of a rate in a profile, where it has one."""
    if profile is None:
        return None
    return profile.memory_bytes_per_s if what == "copy" else profile.matmul_flops_per_s.get(what)


def device_name(device: torch.device) -> str:
    """Return what the GPU is called, or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _sizes(device: torch.device) -> dict[str, int]:
    """Return bytes of the memory, of what of it is free, and of the last cache."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "memory": properties.total_memory,
        "free": torch.cuda.mem_get_info(device)[0],
        "cache": properties.L2_cache_size,
    }


def _words(device: torch.device) -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": np.__version__,
        "cores": str(os.cpu_count()),
        # Triton compiles what launches its kernels by it.
        "C compiler": _c_compiler(),
    }
    if device.type != "cuda":
        return versions
    properties = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "GPUs": f"{torch.cuda.device_count()}, of which the first is used",
        "cuda": str(torch.version.cuda or torch.version.hip),
        "driver": _asked_of_the_driver("driver_version"),
        COMPUTE_MODE: _asked_of_the_driver("compute_mode"),
    } | versions


def _version(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return "none"
    return str(getattr(importlib.import_module(package), "__version__", "?"))


def _c_compiler() -> str:
    found = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang"))), None)
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    return f"{found or 'none'}{'' if headers else ', without the headers of Python'}"


def _asked_of_the_driver(field: str) -> str:
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "not known (no nvidia-smi)"
    return (found.stdout.splitlines() or ["?"])[0]


def copy_bytes_per_s(device: torch.device) -> float:
    """Return bytes read and written per second by copies far larger than any cache."""
    a = torch.ones(_COPY_BYTES[device.type] // 4, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / _seconds(lambda: b.copy_(a), device)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, tf32: bool = False) -> float:
    """Return FLOP/s of a large square product of random numbers, the best of a few."""
    side = _SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    with multiplying_in_tf32(tf32):
        return 2 * side**3 / _seconds(lambda: torch.mm(a, b, out=out), device)


@contextlib.contextmanager
def multiplying_in_tf32(wanted: bool) -> Iterator[None]:
    """Have float32 products on a GPU be TF32, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    [samples] = time_calls([call], _REPEATS, device)
    return samples.best_seconds
