"""Bytes and FLOPs of one optimizer step by part, as the code of this package executes them.

tests/plan/estimate compares each part with what isoflop/train/traffic.py counts in an executed
step. Letters: D width, V vocabulary, C channels, K experts chosen per channel, S similarities,
E experts, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isoflop.accounting.ledger import TRAINING_PASSES
from isoflop.placement import SUMMED_IN_PLACE_FROM
from isoflop.plan.estimate.memory import (
    CHUNK_BYTES,
    MAX_LOGIT_BYTES,
    PARAM_BYTES,
    ModelShape,
    PlacementEstimate,
)

# AdamW reads parameter, gradient and two moments and writes all but the gradient (float32).
ADAMW_BYTES_PER_PARAM = 7 * PARAM_BYTES
# The gradient is read for its norm, then read and written to scale it.
CLIP_BYTES_PER_PARAM = 3 * PARAM_BYTES
# A gradient that is added to that of the micro-batches before it: both read, the sum written. In
# place, it is read and written.
ADD_BYTES_PER_PARAM = 3 * PARAM_BYTES
# A cast of a weight for the compute type reads float32 and writes bf16; its gradient comes back.
CAST_BYTES_PER_PARAM = PARAM_BYTES + 2
# Of a logit, in float32. Whole: log-softmax, the loss's gradient, the gradient of log-softmax.
# In chunks: maximum, shift, exponential, sum and scaling, three of them in place; on a GPU one
# kernel that reads twice and writes once (isoflop_kernels/cross_entropy.py).
LOSS_BYTES_PER_LOGIT = 6 * PARAM_BYTES
LOSS_BYTES_PER_LOGIT_OF_CHUNK = {"cpu": 8 * PARAM_BYTES, "cuda": 3 * PARAM_BYTES}
# Of a dense feed-forward, what is computed again in the backward pass of a layer whose activations
# were not kept: its last product, of two or of three, is not needed.
RECOMPUTED_SHARE = 0.6
# Bytes that elementwise operators move per token and value of D: two norms, the rotation of queries
# and keys, residual sums; in bf16 less of each and casts between. A router adds one sum.
ELEMENTWISE_BYTES_PER_WIDTH = {"fp32": 508, "bf16": 592}
NORM_BYTES_PER_WIDTH = 80
# Values of the activation and its gradient per row or column of the matrices that a token passes:
# 16 for gelu as two matrices have it, 12.7 for the gated form with three.
ACTIVATION_PASSES = 14.2
# Of coarse experts: rows sorted, put back, weighted and added up, and their gradients; per value
# of a chosen expert's row. And what softmax and order take per expert, and per choice.
SORTED_ROW_BYTES = {"fp32": 68, "bf16": 56}
SOFTMAX_BYTES_PER_EXPERT = 32
ORDER_BYTES_PER_CHOICE = 150
# A softmax over the scores of chosen experts, forward and backward, per choice, written out.
SOFTMAX_BYTES_PER_CHOICE = 26 * PARAM_BYTES
# Similarities: made known to the selection, their gradient set to zero, copied and written.
SCORE_PASSES = 4
# The numbers of a choice's sub-keys (int64) and of its expert, beside eight passes over its score.
CHOICE_BYTES = {"forward": 84, "backward": 16}
CHOICE_PASSES = {"forward": 7, "backward": 1}
# A key of a channel's own is scaled, and its gradient; in bf16 the scaled one is cast, and back.
KEY_BYTES = 4 * PARAM_BYTES
KEY_CAST_BYTES = {"fp32": 0, "bf16": 12}
# Selection keeps the best K + 1 of each half, one after the other; operations on the vector units
# for each similarity and each of those: counted in Triton's kernel, and as the CPU's time is.
SELECTION_OPERATIONS = 8
# A stable radix sort counts keys once, then takes eight bits a pass; each pass reads and writes a
# key and its place. Keys are expert numbers of a table, of two bytes where these do.
SORT_PLACE_BYTES = 8
MOST_EXPERTS_OF_TWO_BYTES = 2**15
# Logits of a chunk (the numbers of isoflop/model/loss.py, which a test compares).
LOGIT_CHUNK_BYTES = {"cpu": 2**24, "cuda": CHUNK_BYTES}
# Share of elementwise traffic that is left when each chain between two products is one kernel.
FUSED_SHARE = 0.305


@dataclass(frozen=True, kw_only=True, slots=True)
class Gather:
    """Rows of a choice that are read: of the tables, and of tokens and their gradients."""

    forward_rows: int
    backward_table_rows: int
    backward_token_rows: int

    @property
    def backward_rows(self) -> int:
        """All rows of the backward pass."""
        return self.backward_table_rows + self.backward_token_rows


# A fused kernel reads both rows forward and moves three backward when it goes expert by expert: x,
# dy, and w_in once more for dx. The embedding-bag path of the CPU moves four.
FUSED_GATHER = Gather(forward_rows=2, backward_table_rows=1, backward_token_rows=2)
BAG_GATHER = Gather(forward_rows=2, backward_table_rows=2, backward_token_rows=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a part of a step executes on one device."""

    num_bytes: float
    """Read and written, rows that are gathered included."""
    flops: float = 0.0
    gathered_bytes: float = 0.0
    """Of num_bytes, rows of chosen experts."""


def gather_of(kind: str) -> Gather:
    """Return the gather of the kernels that a kind of device uses."""
    return BAG_GATHER if kind == "cpu" else FUSED_GATHER


def step_work(shape: ModelShape, placement: PlacementEstimate, *, kind: str) -> Mapping[str, Work]:
    """Return what each part of one optimizer step executes per device, communication aside.

    Args:
        shape: the model.
        placement: how the step is laid out.
        kind: of the device, `cpu` or `cuda`.
    """
    tokens = placement.micro_batch * placement.grad_accum * shape.seq_len
    work = {
        "attn_proj": _products("attn_proj", shape, placement, 7 * shape.d_model),
        "attn_scores": _attention(shape, placement),
        "router": _router(shape, placement),
        "experts": _experts(shape, placement, kind),
        "head": _head(shape, placement, kind),
        "elementwise": _elementwise(shape, placement),
        "selection": _selection(shape, placement),
        "sort": _sort(shape, placement, kind),
        "loss": Work(num_bytes=tokens * shape.vocab_size * _loss_bytes(shape, placement, kind)),
    }
    own = shape.num_params / (placement.num_devices if placement.parallel == "fsdp" else 1)
    work["casts"] = Work(num_bytes=_cast_bytes(shape, placement))
    work["accumulation"] = Work(num_bytes=own / shape.num_params * _accumulated(shape, placement))
    work["optimizer"] = Work(num_bytes=own * ADAMW_BYTES_PER_PARAM)
    work["clipping"] = Work(num_bytes=own * CLIP_BYTES_PER_PARAM)
    return work


def micro_batch_tokens(shape: ModelShape, placement: PlacementEstimate) -> int:
    """Return the tokens that a device takes through the model at a time."""
    return placement.micro_batch * shape.seq_len


def passes(placement: PlacementEstimate) -> int:
    """Return forward and backward passes in units of one forward pass."""
    return TRAINING_PASSES + (1 if placement.checkpointing else 0)


def _step_tokens(shape: ModelShape, placement: PlacementEstimate) -> int:
    return micro_batch_tokens(shape, placement) * placement.grad_accum


def _products(
    name: str,
    shape: ModelShape,
    placement: PlacementEstimate,
    values_per_token: float,
    recomputed: float = 1.0,
) -> Work:
    """Return products of tokens and weights: each of three passes has every operand once.

    Args:
        name: of the component.
        shape: the model.
        placement: how the step is laid out.
        values_per_token: inputs and outputs of one layer's products in a forward pass.
        recomputed: share of a forward pass that is run again where activations are not kept.
    """
    component, tokens = shape.component(name), _step_tokens(shape, placement)
    if not component.num_params:
        return Work(num_bytes=0.0)
    weights = component.num_params * placement.grad_accum
    values = tokens * shape.n_layers * values_per_token
    num_passes = TRAINING_PASSES + recomputed * (passes(placement) - TRAINING_PASSES)
    return Work(
        flops=component.flops_per_token * tokens * num_passes,
        num_bytes=(values + weights) * shape.compute_bytes * num_passes,
    )


def _attention(shape: ModelShape, placement: PlacementEstimate) -> Work:
    """Return attention without its scores in memory: four vectors forward, eight backward."""
    tokens, forward = _step_tokens(shape, placement), passes(placement) - 2
    values = tokens * shape.n_layers * shape.d_model * (4 * forward + 8)
    return Work(
        flops=shape.component("attn_scores").flops_per_token * tokens * passes(placement),
        num_bytes=values * shape.compute_bytes,
    )


def _router(shape: ModelShape, placement: PlacementEstimate) -> Work:
    """Return a router's products; a gate has one score an expert."""
    routing = shape.routing
    if routing is None:
        return Work(num_bytes=0.0)
    values = shape.d_model + routing.num_experts
    if shape.gathered_values:
        values = shape.d_model + 2 * routing.num_query_values + routing.num_scores
    work = _products("router", shape, placement, values)
    keys = KEY_CAST_BYTES[shape.precision] * _num_keys(shape) * placement.grad_accum
    return Work(flops=work.flops, num_bytes=work.num_bytes + keys)


def _experts(shape: ModelShape, placement: PlacementEstimate, kind: str) -> Work:
    if shape.gathered_values:
        return _gathered(shape, placement, kind)
    work = _products(
        "experts",
        shape,
        placement,
        _hidden_values(shape) + 2 * _num_rows(shape) * shape.d_model,
        recomputed=1.0 if shape.num_groups else RECOMPUTED_SHARE,
    )
    # Where experts have matrices of their own, gradients of those without tokens are set to zero.
    zeros = shape.component("experts").num_params if shape.num_groups else 0
    return Work(
        flops=work.flops,
        num_bytes=work.num_bytes + zeros * shape.compute_bytes * placement.grad_accum,
    )


def _hidden_values(shape: ModelShape) -> float:
    """Return the rows and columns of the matrices that a token passes, less those of width D."""
    return shape.component("experts").num_active_params / shape.n_layers / shape.d_model


def _num_rows(shape: ModelShape) -> int:
    """Return how many feed-forwards a token passes in a layer."""
    return shape.routing.num_chosen * shape.routing.num_channels if shape.routing else 1


def _gathered(shape: ModelShape, placement: PlacementEstimate, kind: str) -> Work:
    """Return gathered rows, the vectors beside them, and the tables' dense gradients."""
    gather, component, compute = gather_of(kind), shape.component("experts"), shape.compute_bytes
    tokens, forward = _step_tokens(shape, placement), passes(placement) - 2
    num_choices = shape.gathered_values / shape.d_model / 2
    rows = gather.forward_rows * forward + gather.backward_table_rows
    gathered: float = rows * compute + gather.backward_token_rows * compute
    gathered *= tokens * shape.n_layers * shape.gathered_values / 2
    vectors = shape.d_model * compute * (2 * forward + 3)
    # Number, score and dot product of each choice, and their gradients.
    numbers = num_choices * (16 + compute * (2 + forward) + 8 * (forward - 1))
    return Work(
        flops=component.flops_per_token * tokens * passes(placement),
        gathered_bytes=gathered,
        num_bytes=gathered
        + tokens * shape.n_layers * (vectors + numbers)
        + component.num_params * PARAM_BYTES * _gradient_passes(placement),
    )


def _gradient_passes(placement: PlacementEstimate) -> int:
    """Return how often a table's dense gradient is read or written by its own kernels."""
    if not _adds_in_place(placement):
        return placement.grad_accum
    return 1 + 2 * placement.grad_accum


def _adds_in_place(placement: PlacementEstimate) -> bool:
    return placement.grad_accum >= SUMMED_IN_PLACE_FROM and placement.num_devices == 1


def logits_in_chunks(shape: ModelShape, placement: PlacementEstimate) -> bool:
    """Return whether the logits of a micro-batch never exist whole."""
    tokens = micro_batch_tokens(shape, placement)
    return tokens * shape.vocab_size * PARAM_BYTES > MAX_LOGIT_BYTES


def _loss_bytes(shape: ModelShape, placement: PlacementEstimate, kind: str) -> int:
    chunked = logits_in_chunks(shape, placement)
    return LOSS_BYTES_PER_LOGIT_OF_CHUNK[kind] if chunked else LOSS_BYTES_PER_LOGIT


def _head(shape: ModelShape, placement: PlacementEstimate, kind: str) -> Work:
    """Return the head in float32, never recomputed, with all that has the embedding's size.

    Whole: three products with the weight, which is copied transposed. In chunks: two products with
    it and its gradient read and written by each chunk, which is zero before and scaled after. The
    gradient of the lookup is written, and added to that of the head.
    """
    component, tokens = shape.component("head"), _step_tokens(shape, placement)
    values = TRAINING_PASSES * (shape.d_model + shape.vocab_size)
    if logits_in_chunks(shape, placement):
        chunk = max(1, LOGIT_CHUNK_BYTES[kind] // (shape.vocab_size * PARAM_BYTES))
        tables = 4 * -(-micro_batch_tokens(shape, placement) // chunk) + 3
        values += 2 * shape.d_model
    else:
        tables = TRAINING_PASSES + 2
    tables = (tables + 4) * placement.grad_accum
    return Work(
        flops=component.flops_per_token * tokens * TRAINING_PASSES,
        num_bytes=PARAM_BYTES * (tokens * values + tables * shape.num_embedding_params),
    )


def _cast_bytes(shape: ModelShape, placement: PlacementEstimate) -> float:
    """Return the casts of matrices, once a micro-batch, and of tables, once a step."""
    if shape.precision == "fp32":
        return 0.0
    tables = shape.component("experts").num_params if shape.gathered_values else 0
    matrices = shape.num_layer_params * shape.n_layers - tables - _num_keys(shape)
    # Sharded tables are cast when they are whole.
    times = placement.grad_accum if placement.parallel == "fsdp" else 1
    return CAST_BYTES_PER_PARAM * (2 * matrices * placement.grad_accum + tables * times)


def _accumulated(shape: ModelShape, placement: PlacementEstimate) -> float:
    """Return sums over micro-batches; the first copies gradients that come transposed or shared."""
    copied = _num_keys(shape)
    copied += 0 if logits_in_chunks(shape, placement) else shape.num_embedding_params
    num_added = shape.num_params
    if shape.gathered_values and _adds_in_place(placement):
        num_added -= shape.component("experts").num_params
    added = ADD_BYTES_PER_PARAM * num_added * (placement.grad_accum - 1)
    return added + 2 * PARAM_BYTES * copied


def _elementwise(shape: ModelShape, placement: PlacementEstimate) -> Work:
    """Return norms, rotation, activations, residual sums and casts, each operator on its own."""
    width, precision = shape.d_model, shape.precision
    per_token: float = ELEMENTWISE_BYTES_PER_WIDTH[precision] * width
    if shape.routing:
        per_token += 3 * (shape.compute_bytes if shape.gathered_values else PARAM_BYTES) * width
    if shape.gathered_values:
        per_token += _choice_elementwise_bytes(shape)
    else:
        per_token += ACTIVATION_PASSES * shape.compute_bytes * _hidden_values(shape)
    if shape.num_groups:
        num_chosen = _num_rows(shape)
        per_token += SORTED_ROW_BYTES[precision] * num_chosen * width
        per_token += SOFTMAX_BYTES_PER_EXPERT * shape.num_groups
        per_token += ORDER_BYTES_PER_CHOICE * num_chosen
    recomputed = passes(placement) / TRAINING_PASSES
    ends = NORM_BYTES_PER_WIDTH * width
    per_token = recomputed * shape.n_layers * per_token + ends
    return Work(num_bytes=_step_tokens(shape, placement) * per_token)


def _choice_elementwise_bytes(shape: ModelShape) -> float:
    """Return the bytes of a softmax over chosen scores, and of queries brought in order."""
    routing = shape.routing
    assert routing is not None
    softmax = 0 if routing.raw_scores else SOFTMAX_BYTES_PER_CHOICE
    queries = routing.num_query_values if _num_keys(shape) else 0
    copied = 2 * shape.compute_bytes * queries
    return softmax * routing.num_channels * routing.num_chosen + copied


def _num_keys(shape: ModelShape) -> int:
    """Return the keys' parameters where each channel has queries of its own; else 0.

    Not all queries meet all keys then.
    """
    if shape.routing is None:
        return 0
    queries, scores = shape.routing.num_query_values, shape.routing.num_scores
    keys = shape.component("router").num_params - shape.n_layers * shape.d_model * queries
    return keys if keys < shape.n_layers * scores * queries else 0


def _selection(shape: ModelShape, placement: PlacementEstimate) -> Work:
    """Return the choice of experts; FLOPs are operations of the vector units here."""
    routing = shape.routing
    if routing is None:
        return Work(num_bytes=0.0)
    tokens, compute = _step_tokens(shape, placement) * shape.n_layers, shape.compute_bytes
    num_choices, forward = routing.num_channels * routing.num_chosen, passes(placement) - 2
    if not shape.gathered_values:
        per_token = PARAM_BYTES * routing.num_experts + 24 * num_choices
        return Work(num_bytes=tokens * per_token * forward)
    per_token = compute * routing.num_scores * (SCORE_PASSES - 1 + forward)
    for name, times in (("forward", forward), ("backward", 1)):
        per_token += times * num_choices * (CHOICE_BYTES[name] + compute * CHOICE_PASSES[name])
    operations = routing.num_scores * (routing.num_chosen + 1) * SELECTION_OPERATIONS
    keys = KEY_BYTES * _num_keys(shape) * placement.grad_accum
    return Work(num_bytes=tokens * per_token + keys, flops=tokens * operations * forward)


def _sort(shape: ModelShape, placement: PlacementEstimate, kind: str) -> Work:
    """Return the sort of choices by expert, which the gather of a GPU asks for."""
    if kind == "cpu" or not shape.gathered_values:
        return Work(num_bytes=0.0)
    num_choices = shape.gathered_values / shape.d_model / 2
    assert shape.routing is not None
    key = 2 if shape.routing.num_experts <= MOST_EXPERTS_OF_TWO_BYTES else 4
    num_bytes = key + key * 2 * (key + SORT_PLACE_BYTES)
    tokens = _step_tokens(shape, placement) * shape.n_layers
    return Work(num_bytes=tokens * num_choices * num_bytes)
