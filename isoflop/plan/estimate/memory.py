"""Peak memory of a run on one device, and the smallest placement that holds it; estimates.

First what is known of a run's model, from its ledger, then memory by part, then the placement.
Letters: D width, V vocabulary, C channels, K experts chosen per channel, N keys of one half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from isoflop.accounting import Component, Ledger
from isoflop.errors import UserError
from isoflop.families import Routing, get_routing
from isoflop.plan.estimate.hardware import Hardware
from isoflop.plan.runs import run_ledger
from isoflop.spec import RunSpec

# Parameters, gradients and optimizer moments are float32 whatever the compute type.
PARAM_BYTES = 4
COMPUTE_BYTES = {"bf16": 2, "fp32": 4}

# What product-key routing keeps for the backward pass of one choice: score and dot product
# (float32), expert number (int32), and its two sub-keys (int64).
CHOICE_BYTES = 4 + 4 + 4 + 2 * 8
# The same for an expert with matrices: score, expert number, order by expert and its inverse.
GROUP_ROW_BYTES = 4 + 4 + 2 * 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A model with its batch, as far as time and memory depend on it."""

    d_model: int
    n_layers: int
    vocab_size: int
    seq_len: int
    batch_size: int
    precision: str
    components: tuple[Component, ...]
    """Of the whole model, by name; see isoflop.accounting."""
    num_params: int
    routing: Routing | None
    """How a layer chooses experts; None where it does not."""

    @property
    def compute_bytes(self) -> int:
        """Bytes of a value in the compute type."""
        return COMPUTE_BYTES[self.precision]

    @property
    def num_embedding_params(self) -> int:
        """Of the tied embedding."""
        return self.vocab_size * self.d_model

    @property
    def num_layer_params(self) -> int:
        """Of one layer."""
        return (self.num_params - self.num_embedding_params) // self.n_layers

    @property
    def gathered_values(self) -> int:
        """Table values that a token reads in one layer, both rows of each chosen expert."""
        return self.component("experts").gathered_values_per_token // self.n_layers

    @property
    def num_scores(self) -> int:
        """Similarities per token that a layer's router forms and selects from."""
        return self.routing.num_scores if self.routing else 0

    @property
    def num_groups(self) -> int:
        """Experts of a layer with matrices of their own, computed one after the other."""
        return self.routing.num_experts if self.routing and not self.gathered_values else 0

    def component(self, name: str) -> Component:
        """Return the component called ``name``."""
        return next(c for c in self.components if c.name == name)


def model_shape(spec: RunSpec, ledger: Ledger | None = None) -> ModelShape:
    """Return the shape of the model that a run trains.

    Args:
        spec: the run.
        ledger: the run's, where the caller has it already.

    Raises:
        UserError: the family is unknown or its configuration impossible.
    """
    ledger = run_ledger(spec) if ledger is None else ledger
    return ModelShape(
        d_model=spec.d_model,
        n_layers=spec.n_layers,
        vocab_size=spec.vocab_size,
        seq_len=spec.seq_len,
        batch_size=spec.batch_size,
        precision=spec.precision,
        components=ledger.components,
        num_params=ledger.num_params,
        routing=get_routing(spec.family, spec.config),
    )


def saved_bytes_per_token(shape: ModelShape) -> int:
    """Return bytes that one layer keeps per token between its forward and its backward pass.

    Read off isoflop/model and the families' modules (D values each). Attention: float32 normalised
    inputs of the two norms and of the query-key norm (4D in all); the inputs of the two matrix
    products (one copy in float32, one each in bf16), queries, keys, values and the mixed values in
    the compute type. Feed-forward: its input, and what `_feed_forward_bytes` says.
    """
    width, compute = shape.d_model, shape.compute_bytes
    copies = 2 if shape.precision == "bf16" else 1
    attention = 4 * 4 * width + (copies + 4) * compute * width
    return attention + compute * width + _feed_forward_bytes(shape, copies)


def _feed_forward_bytes(shape: ModelShape, copies: int) -> int:
    """Count two values for each row or column of the matrices that a token passes.

    moe also keeps its sorted input, its unweighted output and its choices; routing to tables of
    single-neuron experts keeps queries, similarities and choices, and no hidden values.
    """
    routing, width, compute = shape.routing, shape.d_model, shape.compute_bytes
    num_chosen = routing.num_channels * routing.num_chosen if routing else 0
    if routing and shape.gathered_values:
        router = compute * (routing.num_query_values + routing.num_scores)
        return router + num_chosen * CHOICE_BYTES + 4 * width * (copies - 1)
    experts = shape.component("experts").num_active_params // shape.n_layers
    groups = num_chosen * GROUP_ROW_BYTES + 4 * shape.num_groups
    return compute * (2 * experts // width + 2 * num_chosen * width) + groups


# AdamW's two moments.
MOMENT_BYTES = 2 * PARAM_BYTES
# Logits, log-probabilities and a gradient of each are alive together, in float32, at most three at
# a time (cross-entropy of isoflop/model/loss.py).
LOGIT_BYTES = 3 * 4
# Logits beyond this exist in chunks only, and their gradients take the place of the chunk; a GPU's
# chunk, the CPU's are smaller (the numbers of isoflop/model/loss.py, which a test compares).
MAX_LOGIT_BYTES = 2**26
CHUNK_BYTES = 2**28
# A sharded run holds the layer at work and the one being fetched.
LAYERS_GATHERED = 2
# Similarities of the router, their gradient and the sum that made it, float32.
SCORE_BYTES = 3 * 4

MEMORY_ASSUMPTIONS = (
    "memory: parameters, gradients and both AdamW moments are float32 (16 bytes a parameter)",
    "memory: logits are whole up to 67 MB, 12 bytes per token and vocabulary entry at their peak; "
    "larger ones exist in chunks of 268 MB, beside two gradients of the embedding and its input",
    "memory: checkpointing keeps each layer's input and recomputes one layer at a time",
    "memory: sharding splits parameters, gradients and moments evenly and gathers two layers",
    "memory: what is alive at once; an allocator that keeps freed blocks needs more (up to a third "
    "on the CPU), on a GPU the share left free is for that",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes per device."""

    parameters: int
    """The device's own, and gathered layers where sharded."""
    gradients: int
    optimizer: int
    weight_copies: int
    """Parameters cast to the compute type."""
    activations: int
    """Kept between the forward and the backward pass."""
    logits: int
    workspace: int
    """Gradients of one layer's activations while it is at work."""
    peak_bytes: int
    """The larger of the start of the backward pass (no parameter gradients yet, unless
    accumulated) and its end (one layer's activations left); less than the sum of the parts."""

    def parts(self) -> Mapping[str, int]:
        """Return bytes by part, without the peak."""
        names = (*self.__slots__,)
        return {name: getattr(self, name) for name in names if name != "peak_bytes"}


def estimate_memory(
    shape: ModelShape,
    *,
    micro_batch: int,
    num_devices: int = 1,
    sharded: bool = False,
    checkpointing: bool = False,
    accumulates: bool = False,
) -> MemoryEstimate:
    """Return peak bytes per device of one optimizer step.

    Args:
        shape: the model.
        micro_batch: sequences that a device takes through the model at a time.
        num_devices: over which parameters are split where ``sharded``.
        sharded: parameters, gradients and moments are split; else each device has them all.
        checkpointing: activations are recomputed in the backward pass.
        accumulates: a step adds up the gradients of several micro-batches.
    """
    tokens = micro_batch * shape.seq_len
    share = num_devices if sharded else 1
    own = -(-shape.num_params // share)
    unit = max(shape.num_layer_params, shape.num_embedding_params) if sharded else 0
    layer = tokens * saved_bytes_per_token(shape)
    workspace = layer + tokens * shape.num_scores * SCORE_BYTES
    activations = shape.n_layers * layer
    if checkpointing:
        activations = tokens * shape.n_layers * 4 * shape.d_model + layer
    parts = {
        "parameters": PARAM_BYTES * (own + LAYERS_GATHERED * unit),
        "gradients": PARAM_BYTES * (own + unit),
        "optimizer": MOMENT_BYTES * own,
        "weight_copies": _weight_copies(shape, sharded),
        "activations": activations,
        "logits": logit_bytes(tokens, shape.vocab_size, shape.d_model),
        "workspace": workspace,
    }
    return MemoryEstimate(**parts, peak_bytes=_peak(parts, layer, accumulates))


def logit_bytes(num_tokens: int, vocab_size: int, d_model: int) -> int:
    """Return bytes alive at the loss: whole logits and their kin, or a chunk and gradients.

    The gradients of the embedding and of its input are formed with the loss and scaled afterwards.
    """
    whole = num_tokens * vocab_size
    if whole * PARAM_BYTES <= MAX_LOGIT_BYTES:
        return whole * LOGIT_BYTES
    gradients = 2 * PARAM_BYTES * d_model * (vocab_size + num_tokens)
    return min(whole * PARAM_BYTES, CHUNK_BYTES) + gradients


def _peak(parts: Mapping[str, int], layer: int, accumulates: bool) -> int:
    always = parts["parameters"] + parts["optimizer"] + parts["weight_copies"]
    # The last layer's backward pass begins when the logits are gone and all else is still there.
    at_loss = parts["activations"] + max(parts["logits"], parts["workspace"])
    at_loss += parts["gradients"] if accumulates else 0
    at_end = parts["gradients"] + min(layer, parts["activations"]) + parts["workspace"]
    return always + max(at_loss, at_end)


def _weight_copies(shape: ModelShape, sharded: bool) -> int:
    """Return bytes of the casts of weights (no embedding) that autocast keeps in a forward pass."""
    if shape.precision == "fp32":
        return 0
    layers = min(LAYERS_GATHERED, shape.n_layers) if sharded else shape.n_layers
    return shape.compute_bytes * shape.num_layer_params * layers


def format_bytes(num_bytes: float) -> str:
    """Return decimal units to three digits: 950 MB, 31.2 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


Parallel = Literal["single", "ddp", "fsdp"]

# What the driver, the libraries and fragmentation take is left free; assumed.
USABLE_SHARE = 0.9

PLACEMENT_ASSUMPTIONS = (
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
    """Yield placements from the cheapest to the most cautious."""
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
    """Return all divisors, descending."""
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
