"""The kernels on this machine: compiled ahead, held against float64, timed against predictions.

T tokens, D width, C channels, K experts chosen per channel, N sub-keys per half, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from isoflop.gpu_report.profiles import hardware_of
from isoflop.gpu_report.records import TAKEN, Job, Outcome, Row
from isoflop.plan.estimate.hardware import Hardware
from isoflop.train.throughput import wait_for
from isoflop_kernels import command, product_key_topk
from isoflop_kernels.bench import suite, traffic
from isoflop_kernels.bench.cases import MODES, Shape, make_cases
from isoflop_kernels.bench.measure import Machine
from isoflop_kernels.check import __main__ as checking
from isoflop_kernels.check import numerics
from isoflop_kernels.gathered_linear import choice

OPERATOR = "gathered_linear"
REPEATS = 5
_OUTCOMES: dict[str, Outcome] = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}
# Part of the last cache that a set of rows may take to be read from there.
_CACHE_SHARE = 0.5


def warm(job: Job, device: torch.device) -> Iterator[Row]:
    """Run a contender once on few tokens, which compiles what it launches into Triton's cache.

    What kernels are compiled for depends on widths and types, never on the number of tokens.
    """
    shape, dtype = Shape(**job.values["shape"]), command.DTYPES[job.values["dtype"]]
    contender = job.values["contender"]
    reason = command.unavailable(contender, device)
    if reason is None:
        [case] = make_cases(OPERATOR, shape, [contender], dtype, device)
        case.call("both")()
        with command.using("triton"):
            sim = torch.randn(shape.T, 2, shape.C, shape.N, device=device, dtype=dtype)
            product_key_topk(sim, shape.K)
        wait_for(device)
    outcome: Outcome = "skipped" if reason else "passed"
    yield Row(stage=job.stage, case=job.case, outcome=outcome, note=reason or "")


def check(job: Job, device: torch.device) -> Iterator[Row]:
    """Yield what `python -m isoflop_kernels.check --quick` finds, of the checks that are named."""
    options = checking.parse(["--quick", "--device", device.type])
    for title, run in checking.checks(options):
        if title.startswith(job.values["titles"]):
            outcome, found = checking.outcome_of(run)
            yield Row(stage=job.stage, case=title, outcome=_OUTCOMES[outcome], note=found)


# Shapes of the check that a plan's are like: long segments, several channels, shared tables.
CASES = {
    "tables of each channel": numerics.Case(T=64, D=96, C=2, K=8, E=64),
    "one table for all": numerics.QUICK[2],
    "hundreds of tokens": numerics.LARGE[0],
}
_REHEARSED = {
    name: dataclasses.replace(case, T=3, D=12, C=2, K=2, E=9) for name, case in CASES.items()
}


def check_numbers(job: Job, device: torch.device) -> Iterator[Row]:
    """Yield the largest error of one contender in half precision against its limit, by case."""
    contender, dtype = job.values["contender"], command.DTYPES[job.values["dtype"]]
    reason = command.unavailable(contender, device)
    if reason is not None:
        yield Row(stage=job.stage, case=job.case, outcome="skipped", note=reason)
        return
    rehearsal = device.type == "cpu"
    limit = (numerics.INTERPRETED_LIMITS if rehearsal else numerics.LIMITS)[dtype]
    for name, case in (_REHEARSED if rehearsal else CASES).items():
        error, whose = numerics.worst_error(contender, case, dtype, device)
        yield Row(
            stage=job.stage,
            case=job.case,
            what=name,
            # A limit, which is no prediction: the ratio is not shown.
            measured=error,
            outcome="passed" if error <= limit else "failed",
            note=f"limit {limit:g}, of {whose}",
        )


def measure_kernel(job: Job, device: torch.device) -> Iterator[Row]:
    """Yield milliseconds of one contender, forward, backward and both, against its bytes."""
    values = job.values
    shape, dtype = Shape(**values["shape"]), command.DTYPES[values["dtype"]]
    contender = values["contender"]
    hardware = hardware_of(values["facts"])
    machine = Machine(
        bytes_per_second=values["facts"].get("copy", hardware.stream_bytes_per_s),
        flops_per_second=_product_rate(values["facts"], dtype, hardware),
    )
    setting = suite.Setting(
        device=device,
        dtype=dtype,
        modes=MODES,
        implementations=[contender],
        repeats=REPEATS if device.type == "cuda" else 1,
        with_memory=device.type == "cuda",
        machine=machine,
        rehearsal=device.type == "cpu",
    )
    taken = contender == f"triton-{_version_taken(shape, dtype)}"
    for found in suite.measure_contenders(OPERATOR, shape, [contender], setting):
        yield Row(
            stage=job.stage,
            case=job.case,
            what=found.mode,
            unit="ms",
            predicted=1e3 * predicted_s(contender, shape, dtype, found.mode, machine, hardware),
            measured=found.milliseconds,
            outcome="skipped" if found.skipped else "measured",
            note=found.skipped or "",
            details=dataclasses.asdict(found) | {TAKEN: taken},
        )


def _version_taken(shape: Shape, dtype: torch.dtype) -> str:
    """Return the version of Triton's passes that a call of this size takes by itself."""
    with torch.device("meta"):
        x_TD = torch.empty(shape.T, shape.D, dtype=dtype)
        idx_TCK = torch.empty(shape.T, shape.C, shape.K, dtype=torch.int32)
        table = torch.empty(shape.C, shape.E, shape.D, dtype=dtype)
    return choice.version(x_TD, idx_TCK, table, table)


def _product_rate(facts: Mapping[str, Any], dtype: torch.dtype, hardware: Hardware) -> float:
    """Return FLOP/s of dense products, as measured where that is known."""
    name = "fp32" if dtype == torch.float32 else "bf16"
    rate = facts.get(name)
    return hardware.matmul_rate(name) if rate is None else float(rate)


def predicted_s(
    contender: str,
    shape: Shape,
    dtype: torch.dtype,
    mode: str,
    machine: Machine,
    hardware: Hardware,
) -> float:
    """Return seconds by the byte model of the bench: gathered rows from the cache that holds them.

    Kernels follow one another. Dense products take the larger of arithmetic and traffic.
    """
    b = dtype.itemsize
    found = traffic.kernels(contender, shape, b, mode)
    assert found is not None, contender
    if contender == "mlp":
        moved = sum(kernel.moved for kernel in found)
        return machine.bound_seconds(moved, shape.flops(mode))
    memory = machine.bytes_per_second
    seconds = 0.0
    for kernel in found:
        held = _rows_in_use(kernel.name, shape, b) <= _CACHE_SHARE * hardware.l2_bytes
        rate = hardware.l2_bytes_per_s if held and contender.startswith("triton") else memory
        seconds += kernel.gathered / rate + (kernel.moved - kernel.gathered) / memory
    return seconds


def _rows_in_use(kernel: str, shape: Shape, b: int) -> int:
    """Return bytes of the rows that a kernel of Triton gathers from at about the same time.

    The dot reads one channel's table at a time, the weighted sum a slice of 64 of all tables, what
    goes expert by expert the tokens.
    """
    if kernel in ("y", "dx"):
        return shape.C * shape.E * min(64, shape.D) * b
    if kernel in ("h, z", "dz"):
        return shape.E * shape.D * b
    return shape.T * shape.D * b
