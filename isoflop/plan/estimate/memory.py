"""Peak memory of a run on one device, by part; an estimate.

Letters: D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isoflop.plan.estimate.shapes import PARAM_BYTES, ModelShape, saved_bytes_per_token

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

ASSUMPTIONS = (
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
        """By part, without the peak."""
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
    workspace = layer + tokens * shape.routed.num_scores * SCORE_BYTES
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
    """Bytes alive at the loss: whole logits and what is made of them, or a chunk and gradients.

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
    """Autocast keeps its casts of all weights (not the embedding's) through the forward pass."""
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
