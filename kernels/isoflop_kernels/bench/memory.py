"""Peak memory of one forward and backward pass above its inputs, and whether sizes fit at all.

On CPU a process of its own makes the inputs, forgets its peak so far, does the work once and reads
how far its resident memory rose:

    python -m isoflop_kernels.bench.memory '{"operator": ..., "contender": ..., ...}'
"""

# T tokens, D width, C channels, K experts chosen per channel

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from isoflop_kernels.bench.cases import Case, Shape, make_cases

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
# What Linux takes for "forget the peak resident size of this process".
RESET_PEAK = "5"
# glibc gives blocks of this size back as soon as they are freed, so none hides in a reserve.
BLOCK_BYTES = 2**16
SECONDS = 600
# Part of the free memory that a case may be predicted to need.
USABLE = 0.8
FLOAT32 = 4


def peak_bytes(
    operator: str, shape: Shape, contender: str, dtype: torch.dtype, device: torch.device
) -> int | None:
    """Return peak above the inputs in mode "both"; None where the system does not tell.

    Raises:
        RuntimeError: the process that was to measure it failed.
    """
    if device.type == "cuda":
        [case] = make_cases(operator, shape, [contender], dtype, device)
        return _cuda_peak(case, device)
    if not CLEAR_REFS.exists():
        return None
    request = {
        "operator": operator,
        "shape": dataclasses.asdict(shape),
        "contender": contender,
        "dtype": str(dtype).removeprefix("torch."),
    }
    result = subprocess.run(
        [sys.executable, "-m", "isoflop_kernels.bench.memory", json.dumps(request)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(BLOCK_BYTES)},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"measuring the memory of {contender} failed: {last}")
    return int(result.stdout)


def predicted_bytes(operator: str, shape: Shape, contender: str, b: int) -> int:
    """Return a little more than a case takes beside its inputs, to tell what cannot fit.

    The reference of the layer holds both gathered rows of every choice and both their gradients,
    that of selection every sum with its position, sorted and unsorted.
    """
    if operator != "gathered_linear":
        values = shape.T * shape.C * (2 * shape.N if operator == "product_key_topk" else shape.E)
        sums = shape.T * shape.C * shape.E if contender == "reference" else 0
        return 3 * (FLOAT32 + 8) * (values + sums)
    tokens = 8 * shape.T * shape.D * FLOAT32
    if contender == "mlp":
        return tokens + 6 * shape.num_choices * b
    tables = 2 * shape.table_size * (FLOAT32 if b == FLOAT32 else FLOAT32 + b)
    if contender == "reference":
        return tables + tokens + 4 * shape.num_choices * shape.D * FLOAT32
    # Numbers of each choice, and those of the sort.
    return 2 * tables + tokens + 64 * shape.num_choices


def input_bytes(shape: Shape, b: int) -> int:
    """Return bytes of tokens, their gradient, both tables and choices; making them takes more."""
    return 2 * shape.table_size * b + 2 * shape.T * shape.D * b + shape.num_choices * (4 + b)


def free_bytes(device: torch.device) -> int | None:
    """Return memory that is free now; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _cuda_peak(case: Case, device: torch.device) -> int:
    work = case.call("both")
    work()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_peak(case: Case, small: Case) -> int:
    """Return the peak of a process that runs a small case first, which loads all libraries."""
    small.call("both")()
    CLEAR_REFS.write_text(RESET_PEAK)
    before = _kilobytes(STATUS, "VmRSS")
    case.call("both")()
    peak = _kilobytes(STATUS, "VmHWM")
    assert before is not None
    assert peak is not None
    return peak - before


def _kilobytes(path: Path, name: str) -> int | None:
    """Return a field of a file of Linux's, in bytes."""
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def main(text: str) -> None:
    """Print the peak of the case that the JSON describes."""
    request = json.loads(text)
    torch.set_num_threads(1)
    shape = Shape(**request["shape"])
    small = dataclasses.replace(shape, T=2, D=8, C=1, K=1, N=2)
    dtype, device = getattr(torch, request["dtype"]), torch.device("cpu")
    cases = [
        make_cases(request["operator"], s, [request["contender"]], dtype, device)[0]
        for s in (shape, small)
    ]
    print(_resident_peak(*cases))


if __name__ == "__main__":
    main(sys.argv[1])
