from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.model import build_model, next_token_loss
from isoflop.plan.estimate.memory import (
    CHUNK_BYTES,
    MAX_LOGIT_BYTES,
    estimate_memory,
    format_bytes,
    logit_bytes,
    model_shape,
    saved_bytes_per_token,
)
from isoflop.plan.estimate.time import (
    OPERATORS_PER_GROUP,
    OPERATORS_PER_LAYER,
    OPERATORS_PER_STEP,
)
from isoflop.spec import RunSpec
from made_shapes import FAMILIES, rung_spec


def loss_of(spec: RunSpec, model: torch.nn.Module) -> Tensor:
    tokens = torch.randint(2, spec.vocab_size, (spec.batch_size, spec.seq_len))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=spec.precision == "bf16"):
        return next_token_loss(model(tokens), tokens)


def saved_bytes(spec: RunSpec) -> int:
    """Bytes of all storages that autograd keeps, the parameters' own aside."""
    model = build_model(spec)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    # Alive until all are counted, so that no address comes twice.
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(spec, model)
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [2, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_activations_are_what_autograd_keeps(family: str, size: int, precision: str) -> None:
    spec = rung_spec(family, size, "micro-v1", precision=precision)
    deeper = dataclasses.replace(spec, n_layers=2 * spec.n_layers)
    per_layer = (saved_bytes(deeper) - saved_bytes(spec)) / spec.n_layers
    measured = per_layer / (spec.batch_size * spec.seq_len)
    assert saved_bytes_per_token(model_shape(spec)) == pytest.approx(measured, rel=0.1)


class Operators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_of_operators_are_those_that_run(family: str) -> None:
    counts = []
    for n_layers in (1, 2):
        spec = rung_spec(family, 2, "micro-v1", n_layers=n_layers)
        model = build_model(spec)
        # The first pass of a process also runs what is set up once, which no later step does.
        loss_of(spec, model).backward()
        with Operators() as operators:
            loss_of(spec, model).backward()
        counts.append(operators.count)
    groups = model_shape(spec).num_groups
    per_layer = OPERATORS_PER_LAYER + groups * OPERATORS_PER_GROUP
    assert counts[1] - counts[0] == pytest.approx(per_layer, rel=0.35)
    assert 2 * counts[0] - counts[1] == pytest.approx(OPERATORS_PER_STEP, rel=0.35)


def test_a_parameter_takes_16_bytes_and_the_paper_s_largest_run_no_single_gpu() -> None:
    shape = model_shape(rung_spec("sgatlin", 8))
    assert shape.num_params == pytest.approx(6.7e9, rel=0.02)
    memory = estimate_memory(shape, micro_batch=1)
    state = memory.parameters + memory.gradients + memory.optimizer
    assert state == 16 * shape.num_params
    assert memory.peak_bytes > 80e9


def test_whole_logits_would_be_the_larger_part_of_the_paper_s_small_runs() -> None:
    shape = model_shape(rung_spec("mlp", 2))
    memory = estimate_memory(shape, micro_batch=shape.batch_size)
    tokens = 128 * 2048
    gradients = 2 * 4 * shape.d_model * (tokens + 50258)
    assert memory.logits == CHUNK_BYTES + gradients
    assert tokens * 50258 * 12 > 10 * memory.peak_bytes > 100 * memory.logits
    # Up to this many bytes they are whole.
    few = MAX_LOGIT_BYTES // (4 * 512)
    assert logit_bytes(few, 512, 64) == few * 512 * 12
    assert logit_bytes(few + 1, 512, 64) == (few + 1) * 512 * 4 + 8 * 64 * (few + 513)


shapes = st.builds(
    lambda family, size: model_shape(rung_spec(family, size)),
    st.sampled_from(FAMILIES),
    st.integers(1, 12),
)


@given(shape=shapes, micro_batch=st.integers(1, 64), checkpointing=st.booleans())
def test_more_sequences_never_take_less(shape: Any, micro_batch: int, checkpointing: bool) -> None:
    def peak(count: int) -> int:
        memory = estimate_memory(shape, micro_batch=count, checkpointing=checkpointing)
        parts = memory.parts()
        assert min(parts.values()) >= 0
        assert max(parts.values()) <= memory.peak_bytes <= sum(parts.values())
        return memory.peak_bytes

    assert peak(micro_batch) < peak(micro_batch + 1)


@given(shape=shapes, micro_batch=st.integers(1, 64))
def test_checkpointing_sharding_and_one_micro_batch_never_take_more(
    shape: Any, micro_batch: int
) -> None:
    def peak(**ways: Any) -> int:
        return estimate_memory(shape, micro_batch=micro_batch, **ways).peak_bytes

    assert peak(checkpointing=True) <= peak()
    assert peak() <= peak(accumulates=True)
    sharded = [peak(sharded=True, num_devices=count) for count in (2, 4, 8)]
    assert sharded == sorted(sharded, reverse=True)


def test_bytes_are_written_as_people_write_them() -> None:
    texts = [format_bytes(n) for n in (1, 350e6, 31.24e9, 1.2e12)]
    assert texts == ["0.001 kB", "350 MB", "31.2 GB", "1.2 TB"]
