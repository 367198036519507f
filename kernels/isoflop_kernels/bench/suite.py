"""Measures one operator at one shape: memory first, then times, then what the machine allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from isoflop_kernels import command
from isoflop_kernels.bench import memory, traffic
from isoflop_kernels.bench.cases import MAX_PLAIN_EXPERTS, RIVALS, Shape, make_cases
from isoflop_kernels.bench.measure import Machine, Samples, time_calls
from isoflop_kernels.bench.table import Row

# The reference of selection sorts every sum: beyond so many a CPU takes tens of seconds.
MAX_SUMS_CPU = 2**25


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What holds for a whole run."""

    device: torch.device
    dtype: torch.dtype
    modes: Sequence[str]
    implementations: Sequence[str]
    repeats: int
    with_memory: bool
    machine: Machine
    rehearsal: bool = False
    """Whether Triton's kernels are timed in the interpreter, whose times mean nothing."""


def measure_shape(operator: str, shape: Shape, setting: Setting) -> list[Row]:
    """Return rows of all contenders and modes, those that were skipped among them."""
    if operator == "stable_topk" and shape.E > MAX_PLAIN_EXPERTS:
        return []
    names = command.contenders(operator)
    wanted = [name for name in names if command.wanted(name, setting.implementations)]
    return measure_contenders(operator, shape, [RIVALS[operator], *wanted], setting)


def measure_contenders(
    operator: str, shape: Shape, contenders: Sequence[str], setting: Setting
) -> list[Row]:
    """Return rows of some contenders, which take turns, and all modes."""
    reasons = {name: reason_to_skip(operator, shape, name, setting) for name in contenders}
    running = [name for name, reason in reasons.items() if reason is None]
    peaks: dict[str, int | None] = {}
    if setting.with_memory and operator == "gathered_linear" and "both" in setting.modes:
        peaks = {
            name: memory.peak_bytes(operator, shape, name, setting.dtype, setting.device)
            for name in running
        }
    rows = []
    timed = _times(operator, shape, running, setting)
    for name, reason in reasons.items():
        for mode in setting.modes:
            row = _describe(operator, shape, name, mode, setting)
            if reason is not None:
                rows.append(dataclasses.replace(row, skipped=reason))
                continue
            peak = peaks.get(name) if mode == "both" else None
            rows.append(_with_times(row, timed[mode][name], peak, setting.machine))
    return rows


def reason_to_skip(operator: str, shape: Shape, contender: str, setting: Setting) -> str | None:
    """Return why a contender cannot be measured here; None if it can."""
    if contender != RIVALS[operator]:
        reason = command.unavailable(contender, setting.device)
        if reason is not None:
            return reason
        interpreted = contender.startswith("triton") and setting.device.type == "cpu"
        if interpreted and not setting.rehearsal:
            return "the interpreter's times mean nothing"
    sums = shape.T * shape.C * shape.E
    sorts = (operator, contender) == ("product_key_topk", "reference")
    if sorts and setting.device.type == "cpu" and sums > MAX_SUMS_CPU:
        return f"would sort {sums / 1e6:.0f} M sums"
    free = memory.free_bytes(setting.device)
    b = setting.dtype.itemsize
    needed = memory.predicted_bytes(operator, shape, contender, b)
    if operator == "gathered_linear":
        needed += memory.input_bytes(shape, b)
    if free is not None and needed > memory.USABLE * free:
        return f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    return None


def _times(
    operator: str, shape: Shape, contenders: Sequence[str], setting: Setting
) -> dict[str, dict[str, Samples]]:
    """Return samples by mode and contender, one mode after the other, since a mode holds memory."""
    cases = make_cases(operator, shape, contenders, setting.dtype, setting.device)
    found = {}
    for mode in setting.modes:
        calls = [case.call(mode) for case in cases]
        samples = time_calls(calls, setting.repeats, setting.device)
        found[mode] = {case.contender: s for case, s in zip(cases, samples, strict=True)}
    return found


def _describe(operator: str, shape: Shape, contender: str, mode: str, setting: Setting) -> Row:
    """Return the row before anything is measured: what, and how many bytes and FLOPs."""
    b = setting.dtype.itemsize
    layer, dense = operator == "gathered_linear", contender == "mlp"
    if layer:
        least = traffic.least_mlp_bytes if dense else traffic.least_bytes
        least_bytes = least(shape, b, mode)
    else:
        num_values = 2 * shape.N if operator == "product_key_topk" else shape.E
        least_bytes = traffic.least_selection_bytes(shape, b, num_values, mode)
    return Row(
        operator=operator,
        shape=shape.name,
        tokens=shape.T,
        width=shape.D,
        channels=shape.C,
        chosen=shape.K,
        sub_keys=shape.N,
        experts=shape.E,
        dtype=str(setting.dtype).removeprefix("torch."),
        contender=contender,
        mode=mode,
        flops=shape.flops(mode) if layer else 0,
        moved_bytes=traffic.moved_bytes(contender, shape, b, mode) if layer else None,
        gathered_bytes=traffic.gathered_bytes(shape, b, mode) if layer and not dense else None,
        least_bytes=least_bytes,
    )


def _with_times(row: Row, samples: Samples, peak: int | None, machine: Machine) -> Row:
    seconds, wall = samples.median_seconds, samples.median_wall_seconds
    assert row.least_bytes is not None
    assert row.flops is not None
    gather = None
    if row.gathered_bytes is not None:
        gather = row.gathered_bytes / machine.bytes_per_second / seconds
    return dataclasses.replace(
        row,
        repeats=len(samples.seconds),
        milliseconds=1000 * seconds,
        min_milliseconds=1000 * samples.best_seconds,
        max_milliseconds=1000 * max(samples.seconds),
        wall_milliseconds=None if wall is None else 1000 * wall,
        peak_bytes=peak,
        bytes_per_second=machine.bytes_per_second,
        flops_per_second=machine.flops_per_second,
        gather_fraction=gather,
        roofline_fraction=machine.bound_seconds(row.least_bytes, row.flops) / seconds,
    )
