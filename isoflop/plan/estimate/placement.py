"""The smallest placement that holds a run on a device; an estimate, from estimated memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from isoflop.errors import UserError
from isoflop.plan.estimate.hardware import Hardware
from isoflop.plan.estimate.memory import MemoryEstimate, estimate_memory, format_bytes
from isoflop.plan.estimate.shapes import ModelShape, model_shape
from isoflop.spec import RunSpec

Parallel = Literal["single", "ddp", "fsdp"]

# What the driver, the libraries and fragmentation take is left free; assumed.
USABLE_SHARE = 0.9

ASSUMPTIONS = (
    f"placement: {USABLE_SHARE:.0%} of a device's memory is usable; the fewest devices that hold "
    "the run, then no checkpointing, then the largest micro-batch",
    "placement: `isoflop run --device cuda` follows it where nothing else is given; on the CPU a "
    "run takes one core and its whole batch at once",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementEstimate:
    """How a run is expected to be laid out; never part of its identity."""

    micro_batch: int
    """Sequences that a device takes through the model at a time."""
    grad_accum: int
    """Micro-batches per device and step."""
    num_devices: int
    parallel: Parallel
    """`ddp`: each device has the whole model; `fsdp`: parameters and optimizer are split."""
    checkpointing: bool
    peak_mem_bytes: int
    """Per device."""
    fits: bool
    reason: str
    """In a sentence, why this one; or by how much the run does not fit."""


def choose_placement(
    spec: RunSpec | ModelShape, hardware: Hardware, num_devices: int | None = None
) -> PlacementEstimate:
    """Return the smallest placement that fits, within one node.

    Args:
        spec: the run, or its model's shape.
        hardware: the device.
        num_devices: that many devices, or None for as few as hold the run.

    Returns a placement with ``fits`` False, the one that needs least memory per device, where a
    whole node does not hold the run.

    Raises:
        UserError: a number of devices that does not split the batch evenly.
    """
    shape = model_shape(spec) if isinstance(spec, RunSpec) else spec
    usable = int(USABLE_SHARE * hardware.memory_bytes)
    smallest: PlacementEstimate | None = None
    for tried in _candidates(shape, hardware, num_devices):
        if tried.peak_mem_bytes <= usable:
            return dataclasses.replace(
                tried, fits=True, reason=_why(shape, tried, hardware, usable)
            )
        if smallest is None or tried.peak_mem_bytes < smallest.peak_mem_bytes:
            smallest = tried
    assert smallest is not None
    return dataclasses.replace(smallest, reason=_why_not(smallest, hardware, usable))


def _candidates(
    shape: ModelShape, hardware: Hardware, num_devices: int | None
) -> Iterator[PlacementEstimate]:
    """From the cheapest to the most cautious."""
    if hardware.kind == "cpu":
        yield _candidate(shape, hardware, 1, "single", False, shape.batch_size)
        return
    for devices in _device_counts(shape, hardware, num_devices):
        ways: tuple[Parallel, ...] = ("single",) if devices == 1 else ("ddp", "fsdp")
        # More devices than needed were not asked for: only sharding can make room then.
        if num_devices is None and devices > 1:
            ways = ("fsdp",)
        for parallel in ways:
            for checkpointing in (False, True):
                for micro_batch in _divisors(shape.batch_size // devices):
                    yield _candidate(shape, hardware, devices, parallel, checkpointing, micro_batch)


def _device_counts(shape: ModelShape, hardware: Hardware, asked: int | None) -> list[int]:
    """Return powers of two up to a node that split the batch evenly; or what was asked for."""
    if asked is not None:
        if asked < 1 or shape.batch_size % asked:
            raise UserError(
                "devices", asked, f"a divisor of the batch ({shape.batch_size})", "correct it"
            )
        return [asked]
    counts = [1]
    while 2 * counts[-1] <= hardware.devices_per_node and shape.batch_size % (2 * counts[-1]) == 0:
        counts.append(2 * counts[-1])
    return counts


def _divisors(number: int) -> list[int]:
    """Descending."""
    return [d for d in range(number, 0, -1) if number % d == 0]


def _candidate(
    shape: ModelShape,
    hardware: Hardware,
    devices: int,
    parallel: Parallel,
    checkpointing: bool,
    micro_batch: int,
) -> PlacementEstimate:
    grad_accum = shape.batch_size // devices // micro_batch
    memory = _memory(shape, devices, parallel, checkpointing, micro_batch, grad_accum)
    return PlacementEstimate(
        micro_batch=micro_batch,
        grad_accum=grad_accum,
        num_devices=devices,
        parallel=parallel,
        checkpointing=checkpointing,
        peak_mem_bytes=memory.peak_bytes + hardware.process_bytes,
        fits=False,
        reason="",
    )


def _memory(
    shape: ModelShape,
    devices: int,
    parallel: Parallel,
    checkpointing: bool,
    micro_batch: int,
    grad_accum: int,
) -> MemoryEstimate:
    return estimate_memory(
        shape,
        micro_batch=micro_batch,
        num_devices=devices,
        sharded=parallel == "fsdp",
        checkpointing=checkpointing,
        accumulates=grad_accum > 1,
    )


def placement_memory(shape: ModelShape, placement: PlacementEstimate) -> MemoryEstimate:
    """Return the parts behind a placement's peak."""
    return _memory(
        shape,
        placement.num_devices,
        placement.parallel,
        placement.checkpointing,
        placement.micro_batch,
        placement.grad_accum,
    )


def _why(shape: ModelShape, placement: PlacementEstimate, hardware: Hardware, usable: int) -> str:
    used = f"{format_bytes(placement.peak_mem_bytes)} of {format_bytes(usable)} usable"
    if placement.num_devices == 1:
        return f"fits one device: {used}"
    alone = _candidate(shape, hardware, 1, "single", True, 1).peak_mem_bytes
    if placement.parallel == "ddp" or alone <= usable:
        return f"fits {placement.num_devices} devices: {used}"
    return (
        f"does not fit one device of {format_bytes(hardware.memory_bytes)} "
        f"(at least {format_bytes(alone)}): sharded over {placement.num_devices}, {used}"
    )


def _why_not(smallest: PlacementEstimate, hardware: Hardware, usable: int) -> str:
    devices = smallest.num_devices
    where = "one device" if devices == 1 else f"{devices} devices, sharded,"
    return (
        f"does not fit {where} of {hardware.name}: {format_bytes(smallest.peak_mem_bytes)} needed "
        f"per device, {format_bytes(usable)} usable"
    )
