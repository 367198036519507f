"""Seconds per optimizer step by component: a roofline; an estimate.

Each part takes the longer of its arithmetic and its memory traffic; parts follow one another. What
each part executes is in isoflop/plan/estimate/traffic.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isoflop.placement import SUMMED_IN_PLACE_FROM
from isoflop.plan.estimate.hardware import Hardware
from isoflop.plan.estimate.memory import PARAM_BYTES, ModelShape, PlacementEstimate
from isoflop.plan.estimate.traffic import (
    ADAMW_BYTES_PER_PARAM,
    ADD_BYTES_PER_PARAM,
    CLIP_BYTES_PER_PARAM,
    FUSED_SHARE,
    LOGIT_CHUNK_BYTES,
    SELECTION_OPERATIONS,
    SORT_PLACE_BYTES,
    Work,
    gather_of,
    logits_in_chunks,
    micro_batch_tokens,
    step_work,
)

# Operators that torch dispatches in a forward and a backward pass: per layer, per expert that is
# computed on its own, and outside the layers; counted on the CPU (tests/plan/estimate).
OPERATORS_PER_LAYER = 160
OPERATORS_PER_GROUP = 40
OPERATORS_PER_STEP = 50
# Tensors of one elementwise operator that have to be in a cache to be read from it.
OPERANDS = 3
# Whose operands are made by what ran just before.
_PASSED_ON = frozenset(
    ("attn_proj", "attn_scores", "router", "elementwise", "selection", "head", "loss")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEstimate:
    """Seconds of one optimizer step."""

    parts: Mapping[str, float]
    """attn_proj, attn_scores, router, experts, head, elementwise, selection, sort, loss, casts,
    accumulation, optimizer, clipping, all_reduce, overhead."""

    @property
    def total_s(self) -> float:
        """All parts, one after the other."""
        return sum(self.parts.values())


def assumptions(hardware: Hardware) -> tuple[str, ...]:
    """Return what a time estimate for a device takes for granted."""
    on_cpu, gather = hardware.kind == "cpu", gather_of(hardware.kind)
    head = "TF32" if hardware.float32_products == "tf32" else "float32"
    elementwise = (
        "time: elementwise operators run one by one, with the traffic counted in an executed step"
        if on_cpu
        else "time: `--compile` makes one kernel of elementwise operators between two products: "
        f"{FUSED_SHARE:.1%} of the traffic that was counted without it; runs on several devices "
        "are not compiled"
    )
    selection = (
        f"time: selection takes {SELECTION_OPERATIONS} operations for each similarity and each of "
        "K + 1 that are kept; "
    )
    selection += (
        "sorting choices by expert is left out"
        if on_cpu
        else "choices are sorted by expert, eight bits a pass, which reads and writes a key of 2 "
        f"bytes (4 above 32,768 experts) and a place of {SORT_PLACE_BYTES}"
    )
    return (
        f"time: matrix products reach {hardware.matmul_efficiency:.0%} of {hardware.name}'s peak, "
        f"memory {hardware.memory_efficiency:.0%}; parts run one after the other",
        f"time: the head multiplies in {head}, as `isoflop run` does; attention scores count in "
        "full (a causal kernel may skip half)",
        f"time: chosen experts' rows are gathered, {gather.forward_rows} forward and "
        f"{gather.backward_rows} backward per choice, in the compute type, from memory unless a "
        "layer's tables fit the last-level cache"
        + ("" if on_cpu else " (v1 of the Triton kernels; nothing of them was measured)"),
        elementwise,
        "time: values that the operator before has made are read from the last-level cache where "
        f"it holds {OPERANDS} tensors of their size",
        selection,
        "time: matrices are cast once a micro-batch, tables of experts once a step; gradients are "
        f"added up over micro-batches at {ADD_BYTES_PER_PARAM} bytes a parameter, on one device "
        f"from {SUMMED_IN_PLACE_FROM} micro-batches on those of tables of tiny experts at "
        f"{2 * PARAM_BYTES}, in place",
        f"time: AdamW moves {ADAMW_BYTES_PER_PARAM} bytes a parameter and step, clipping "
        f"{CLIP_BYTES_PER_PARAM}, dense over all experts",
        "time: communication does not overlap with computing; checkpointing runs each layer's "
        "forward pass twice",
        "time: training steps only: no start-up, data loading, evaluation or writing",
    )


def roofline_s(flops: float, flops_per_s: float, num_bytes: float, bytes_per_s: float) -> float:
    """Return seconds of a part: the longer of its arithmetic and its traffic."""
    return max(flops / flops_per_s, num_bytes / bytes_per_s)


def gathered_bytes(gathered_values: int, rows: int, bytes_per_value: int) -> int:
    """Return bytes that ``rows`` passes over the chosen rows move, per token.

    Args:
        gathered_values: values of both rows of every chosen expert.
        rows: passes over one row of each.
        bytes_per_value: of the tables as they are read.
    """
    return gathered_values // 2 * rows * bytes_per_value


def estimate_step(
    shape: ModelShape, hardware: Hardware, placement: PlacementEstimate
) -> StepEstimate:
    """Return seconds of one optimizer step of the whole batch under a placement."""
    work = step_work(shape, placement, kind=hardware.kind)
    parts = {name: _part_s(name, each, shape, hardware, placement) for name, each in work.items()}
    parts["all_reduce"] = _communication_s(shape, hardware, placement)
    parts["overhead"] = _overhead_s(shape, hardware, placement, sum(parts.values()))
    return StepEstimate(parts=parts)


def _part_s(
    name: str, work: Work, shape: ModelShape, hardware: Hardware, placement: PlacementEstimate
) -> float:
    bytes_per_s = _bytes_per_s(name, shape, hardware, placement)
    streamed = work.num_bytes - work.gathered_bytes
    # As runs are compiled by default: on one GPU, and not where several share the model.
    if name == "elementwise" and hardware.kind != "cpu" and placement.num_devices == 1:
        streamed *= FUSED_SHARE
    if not work.gathered_bytes:
        rate = _flops_per_s(name, shape, hardware)
        return roofline_s(work.flops, rate, streamed, bytes_per_s)
    gather_s = roofline_s(
        work.flops,
        # Dot products of single rows run on the vector units, in float32.
        hardware.matmul_rate("fp32"),
        work.gathered_bytes,
        gather_bytes_per_s(shape, hardware),
    )
    return gather_s + streamed / bytes_per_s


def _flops_per_s(name: str, shape: ModelShape, hardware: Hardware) -> float:
    if name == "selection":
        return hardware.operation_rate
    in_float32 = name == "head" or shape.precision == "fp32"
    return hardware.matmul_rate(hardware.float32_products if in_float32 else shape.precision)


def _bytes_per_s(
    name: str, shape: ModelShape, hardware: Hardware, placement: PlacementEstimate
) -> float:
    """Return the cache's bandwidth where the operands of an operator are still there."""
    if name not in _PASSED_ON:
        return hardware.stream_bytes_per_s
    tokens = micro_batch_tokens(shape, placement)
    if name not in ("head", "loss"):
        operands = OPERANDS * PARAM_BYTES * tokens * shape.d_model
    elif logits_in_chunks(shape, placement):
        operands = LOGIT_CHUNK_BYTES[hardware.kind]
    else:
        operands = PARAM_BYTES * tokens * shape.vocab_size
    return hardware.l2_bytes_per_s if operands <= hardware.l2_bytes else hardware.stream_bytes_per_s


def gather_bytes_per_s(shape: ModelShape, hardware: Hardware) -> float:
    """Return the cache's bandwidth where it holds both tables of a layer, else the memory's."""
    tables = shape.component("experts").num_params // shape.n_layers * shape.compute_bytes
    return hardware.l2_bytes_per_s if tables <= hardware.l2_bytes else hardware.stream_bytes_per_s


def _communication_s(shape: ModelShape, hardware: Hardware, placement: PlacementEstimate) -> float:
    """Return seconds of a ring all-reduce; sharded: of two gathers and a scatter a micro-batch."""
    devices = placement.num_devices
    if devices == 1:
        return 0.0
    within = devices <= hardware.devices_per_node
    rate = hardware.interconnect_bytes_per_s if within else hardware.network_bytes_per_s
    rounds = 3 * placement.grad_accum if placement.parallel == "fsdp" else 2
    return rounds * (devices - 1) / devices * shape.num_params * PARAM_BYTES / rate


def _overhead_s(
    shape: ModelShape, hardware: Hardware, placement: PlacementEstimate, device_s: float
) -> float:
    """Return the host's seconds of operators; on a GPU what the device's work does not hide."""
    per_layer = OPERATORS_PER_LAYER + shape.num_groups * OPERATORS_PER_GROUP
    operators = OPERATORS_PER_STEP + shape.n_layers * per_layer
    host_s = operators * placement.grad_accum * hardware.operator_overhead_s
    return host_s if hardware.kind == "cpu" else max(0.0, host_s - device_s)
