"""Seconds per optimizer step by component: a roofline; an estimate.

Each part takes the longer of its arithmetic and its memory traffic; parts follow one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isoflop.accounting.ledger import TRAINING_PASSES
from isoflop.plan.estimate.hardware import Hardware
from isoflop.plan.estimate.memory import (
    PARAM_BYTES,
    ModelShape,
    PlacementEstimate,
    saved_bytes_per_token,
)

# AdamW reads parameter, gradient and two moments and writes all but the gradient (float32).
ADAMW_BYTES_PER_PARAM = 7 * PARAM_BYTES
# The gradient is read for its norm, then read and written to scale it.
CLIP_BYTES_PER_PARAM = 3 * PARAM_BYTES
# A cast of the weights for the compute type: read float32, write bf16.
CAST_BYTES_PER_PARAM = PARAM_BYTES + 2
# A kept value is written, read again, and its gradient written and read.
PASSES_PER_SAVED_BYTE = 4
# Logits, log-probabilities and their gradients, each written once and read once (float32).
LOSS_BYTES_PER_LOGIT = 8 * 4
# The similarities of a router: written, read for the choice; their gradient likewise.
SCORE_PASSES = 4
# Operators that torch dispatches in a forward and a backward pass: per layer, per expert that is
# computed on its own, and outside the layers; counted on the CPU (tests/plan/estimate).
OPERATORS_PER_LAYER = 160
OPERATORS_PER_GROUP = 40
OPERATORS_PER_STEP = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Gather:
    """How often the rows of a chosen expert (one of each table) are read per token."""

    forward_rows: int
    backward_rows: int


# A fused kernel reads both rows forward and moves three backward when it goes expert by expert: x,
# dy, and w_in once more for dx. The embedding-bag path of the CPU moves four.
FUSED_GATHER = Gather(forward_rows=2, backward_rows=3)
BAG_GATHER = Gather(forward_rows=2, backward_rows=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEstimate:
    """Seconds of one optimizer step."""

    parts: Mapping[str, float]
    """attn_proj, attn_scores, experts, router, head, elementwise, loss, casts, optimizer,
    clipping, all_reduce, overhead."""

    @property
    def total_s(self) -> float:
        """All parts, one after the other."""
        return sum(self.parts.values())


def assumptions(hardware: Hardware) -> tuple[str, ...]:
    """Return what a time estimate for a device takes for granted."""
    gather = gather_of(hardware)
    return (
        f"time: matrix products reach {hardware.matmul_efficiency:.0%} of {hardware.name}'s peak, "
        f"memory {hardware.memory_efficiency:.0%}; parts run one after the other",
        "time: the head multiplies in float32, as the model does; attention scores count in full "
        "(a causal kernel may skip half)",
        f"time: chosen experts' rows are gathered, {gather.forward_rows} forward and "
        f"{gather.backward_rows} backward per choice, in the compute type, from memory unless a "
        "layer's tables fit the last-level cache"
        + ("" if hardware.kind == "cpu" else " (a fused kernel, which is still to come)"),
        f"time: AdamW moves {ADAMW_BYTES_PER_PARAM} bytes a parameter and step, clipping "
        f"{CLIP_BYTES_PER_PARAM}, dense over all experts",
        "time: communication does not overlap with computing; checkpointing runs each layer's "
        "forward pass twice",
        "time: selection and sorting count only for the traffic of the similarities, which is too "
        "little on a CPU",
        "time: training steps only: no start-up, data loading, evaluation or writing",
    )


def gather_of(hardware: Hardware) -> Gather:
    """Return the gather of the kernels that a kind of device uses."""
    return BAG_GATHER if hardware.kind == "cpu" else FUSED_GATHER


def gathered_bytes(gathered_values: int, rows: int, bytes_per_value: int) -> int:
    """Return bytes that ``rows`` passes over the chosen rows move, per token.

    Args:
        gathered_values: values of both rows of every chosen expert.
        rows: passes over one row of each.
        bytes_per_value: of the tables as they are read.
    """
    return gathered_values // 2 * rows * bytes_per_value


def roofline_s(flops: float, flops_per_s: float, num_bytes: float, bytes_per_s: float) -> float:
    """Return seconds of a part: the longer of its arithmetic and its traffic."""
    return max(flops / flops_per_s, num_bytes / bytes_per_s)


def estimate_step(
    shape: ModelShape, hardware: Hardware, placement: PlacementEstimate
) -> StepEstimate:
    """Return seconds of one optimizer step of the whole batch under a placement."""
    parts = {
        name: _dense_part(name, shape, hardware, placement)
        for name in ("attn_proj", "attn_scores", "router")
    }
    if shape.gathered_values:
        parts["experts"] = _gather_part(shape, hardware, placement)
    else:
        parts["experts"] = _dense_part("experts", shape, hardware, placement)
    parts["head"] = _head_part(shape, hardware, placement)
    parts["elementwise"] = _elementwise_s(shape, hardware, placement)
    tokens = _tokens(shape, placement)
    stream = hardware.stream_bytes_per_s
    parts["loss"] = tokens * shape.vocab_size * LOSS_BYTES_PER_LOGIT / stream
    own = shape.num_params / (placement.num_devices if placement.parallel == "fsdp" else 1)
    casts = 0 if shape.precision == "fp32" else CAST_BYTES_PER_PARAM * placement.grad_accum
    parts["casts"] = shape.num_params * casts / stream
    parts["optimizer"] = own * ADAMW_BYTES_PER_PARAM / stream
    parts["clipping"] = own * CLIP_BYTES_PER_PARAM / stream
    parts["all_reduce"] = _communication_s(shape, hardware, placement)
    parts["overhead"] = _overhead_s(shape, hardware, placement, sum(parts.values()))
    return StepEstimate(parts=parts)


def _tokens(shape: ModelShape, placement: PlacementEstimate) -> int:
    """Return tokens per device and step."""
    return placement.micro_batch * placement.grad_accum * shape.seq_len


def _passes(placement: PlacementEstimate) -> int:
    return TRAINING_PASSES + (1 if placement.checkpointing else 0)


def _dense_part(
    name: str, shape: ModelShape, hardware: Hardware, placement: PlacementEstimate
) -> float:
    """Return seconds of matrix products: arithmetic, against the traffic of weights and gradients.

    The traffic of their inputs and outputs is in `elementwise`.
    """
    component, passes = shape.component(name), _passes(placement)
    weight_bytes = component.num_params * shape.compute_bytes * passes * placement.grad_accum
    return roofline_s(
        component.flops_per_token * _tokens(shape, placement) * passes,
        hardware.matmul_rate(shape.precision),
        weight_bytes,
        hardware.stream_bytes_per_s,
    )


def _head_part(shape: ModelShape, hardware: Hardware, placement: PlacementEstimate) -> float:
    """Return seconds of the head, which is in float32 and never recomputed."""
    component = shape.component("head")
    return roofline_s(
        component.flops_per_token * _tokens(shape, placement) * TRAINING_PASSES,
        hardware.matmul_rate("fp32"),
        component.num_params * PARAM_BYTES * TRAINING_PASSES * placement.grad_accum,
        hardware.stream_bytes_per_s,
    )


def _gather_part(shape: ModelShape, hardware: Hardware, placement: PlacementEstimate) -> float:
    """Return seconds of gathered rows and of the tables' dense gradient, once per micro-batch."""
    gather, component = gather_of(hardware), shape.component("experts")
    rows = gather.forward_rows * (_passes(placement) - 2) + gather.backward_rows
    bytes_per_token = shape.n_layers * gathered_bytes(
        shape.gathered_values, rows, shape.compute_bytes
    )
    tokens = _tokens(shape, placement)
    gather_s = roofline_s(
        component.flops_per_token * tokens * _passes(placement),
        # Dot products of single rows run on the vector units, in float32.
        hardware.matmul_rate("fp32"),
        bytes_per_token * tokens,
        gather_bytes_per_s(shape, hardware),
    )
    gradient_bytes = component.num_params * PARAM_BYTES * placement.grad_accum
    return gather_s + gradient_bytes / hardware.stream_bytes_per_s


def gather_bytes_per_s(shape: ModelShape, hardware: Hardware) -> float:
    """Return the cache's bandwidth where it holds both tables of a layer, else the memory's."""
    tables = shape.component("experts").num_params // shape.n_layers * shape.compute_bytes
    return hardware.l2_bytes_per_s if tables <= hardware.l2_bytes else hardware.stream_bytes_per_s


def _elementwise_s(shape: ModelShape, hardware: Hardware, placement: PlacementEstimate) -> float:
    """Return seconds of traffic: norms, rotation, activations, residuals, similarities."""
    per_token = PASSES_PER_SAVED_BYTE * saved_bytes_per_token(shape)
    per_token += SCORE_PASSES * PARAM_BYTES * shape.num_scores
    recomputed = _passes(placement) / TRAINING_PASSES
    tokens = _tokens(shape, placement)
    return tokens * shape.n_layers * per_token * recomputed / hardware.stream_bytes_per_s


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
