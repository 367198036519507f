from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.errors import UserError
from isoflop.families import PATHS_VARIABLE, Routing, add_family_folder
from isoflop.model import build_model, next_token_loss
from isoflop.plan.estimate import estimate_run, load_hardware
from isoflop.plan.estimate.memory import (
    CHUNK_BYTES,
    MAX_LOGIT_BYTES,
    USABLE_SHARE,
    choose_placement,
    estimate_memory,
    format_bytes,
    logit_bytes,
    model_shape,
    placement_memory,
    saved_bytes_per_token,
)
from isoflop.plan.estimate.time import OPERATORS_PER_GROUP, OPERATORS_PER_LAYER, OPERATORS_PER_STEP
from isoflop.spec import RunSpec
from made_family import write_routed_family
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


def test_the_paper_s_routed_rung_says_its_routing() -> None:
    shape = model_shape(rung_spec("sgatlin", 6))
    choice = {"num_channels": 16, "num_chosen": 8}
    assert shape.routing == Routing(
        **choice, num_experts=88**2, raw_scores=True, num_scores=2 * 16 * 88, num_query_values=128
    )
    assert shape.gathered_values == 2 * 16 * 8 * 768
    assert model_shape(rung_spec("peer", 6)).routing == Routing(
        **choice,
        num_experts=176**2,
        shared=True,
        num_scores=2 * 16 * 176,
        num_query_values=2 * 16 * 128,
    )


def test_a_router_without_product_keys_scores_every_expert() -> None:
    config = {"num_channels": 2, "num_neighbours": 3, "num_experts": 100, "router_width": 7}
    for router, queries in (("dense", 7), ("key_value", 14)):
        routing = model_shape(rung_spec("sgatlin", 1, config=config | {"router": router})).routing
        assert routing is not None
        assert (routing.num_scores, routing.num_query_values) == (200, queries)


def test_dense_layers_gather_nothing_and_moe_runs_its_experts_one_by_one() -> None:
    for family in ("mlp", "swiglu"):
        shape = model_shape(rung_spec(family, 4))
        assert (shape.routing, shape.gathered_values) == (None, 0)
        assert (shape.num_groups, shape.num_scores) == (0, 0)
    shape = model_shape(rung_spec("moe", 4))
    assert shape.routing == Routing(num_experts=16, num_chosen=2)
    assert (shape.num_groups, shape.gathered_values) == (16, 0)


@pytest.mark.parametrize("hardware", ["h100", "cpu2"])
def test_a_family_from_outside_with_fields_of_its_own_is_estimated_like_a_built_in_one(
    hardware: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    add_family_folder(write_routed_family(tmp_path / "lanes"))
    config = {"num_channels": 16, "num_neighbours": 8, "num_experts": 16**2, "router_width": 64}
    known = rung_spec("sgatlin", 2, config=config)
    names = {"lanes": 16, "picks": 8, "pool": 16**2, "key": 64}
    outside = dataclasses.replace(known, family="lanes", config=names)
    profile = load_hardware(hardware)
    assert estimate_run(outside, profile) == estimate_run(known, profile)


H100 = load_hardware("h100")


def test_a_small_run_takes_one_device_and_its_whole_batch() -> None:
    placed = choose_placement(rung_spec("mlp", 2, batch_size=64, seq_len=1024), H100)
    assert (placed.num_devices, placed.parallel, placed.grad_accum) == (1, "single", 1)
    assert placed.micro_batch == 64
    assert placed.fits
    assert "fits one device" in placed.reason


def test_logits_alone_make_a_batch_of_the_paper_too_large_for_one_pass() -> None:
    placed = choose_placement(rung_spec("mlp", 6), H100)
    assert placed.num_devices == 1
    assert placed.grad_accum > 1


def test_the_paper_s_largest_run_is_sharded_and_says_why() -> None:
    placed = choose_placement(rung_spec("sgatlin", 8), H100)
    assert (placed.parallel, placed.num_devices) == ("fsdp", 2)
    assert "does not fit one device of 80 GB" in placed.reason
    assert choose_placement(rung_spec("sgatlin", 8), load_hardware("h200")).num_devices == 1


def test_what_no_node_holds_is_said_plainly() -> None:
    placed = choose_placement(rung_spec("sgatlin", 40), H100)
    assert not placed.fits
    assert placed.num_devices == H100.devices_per_node
    assert "does not fit 8 devices" in placed.reason
    assert "needed per device, 72 GB usable" in placed.reason


def test_on_a_cpu_a_run_takes_one_core_and_its_whole_batch_or_nothing() -> None:
    hardware = load_hardware("cpu2")
    placed = choose_placement(rung_spec("mlp", 3, "micro-v1"), hardware)
    assert (placed.num_devices, placed.micro_batch, placed.grad_accum) == (1, 8, 1)
    assert placed.peak_mem_bytes > hardware.process_bytes
    assert not choose_placement(rung_spec("mlp", 3), hardware).fits


def test_more_devices_hold_copies_where_they_can() -> None:
    small = choose_placement(rung_spec("mlp", 4), H100, num_devices=4)
    assert (small.parallel, small.num_devices) == ("ddp", 4)
    assert choose_placement(rung_spec("sgatlin", 8), H100, num_devices=4).parallel == "fsdp"
    for count in (0, 3, 256):
        with pytest.raises(UserError, match=f"devices = {count}"):
            choose_placement(rung_spec("mlp", 4), H100, num_devices=count)


@given(
    family=st.sampled_from(FAMILIES),
    size=st.integers(1, 12),
    memory_gb=st.integers(4, 200),
    batch_size=st.sampled_from([1, 3, 8, 96, 128]),
)
def test_a_placement_is_the_smallest_that_fits(
    family: str, size: int, memory_gb: int, batch_size: int
) -> None:
    hardware = dataclasses.replace(H100, memory_bytes=memory_gb * 10**9)
    shape = model_shape(rung_spec(family, size, batch_size=batch_size))
    placed = choose_placement(shape, hardware)
    usable = USABLE_SHARE * hardware.memory_bytes
    assert placed.micro_batch * placed.grad_accum * placed.num_devices == batch_size
    assert placed.peak_mem_bytes == placement_memory(shape, placed).peak_bytes
    assert placed.fits == (placed.peak_mem_bytes <= usable)
    if placed.num_devices > 1:
        alone = estimate_memory(shape, micro_batch=1, checkpointing=True, accumulates=True)
        assert alone.peak_bytes > usable or batch_size == 1
    if placed.fits:
        roomier = dataclasses.replace(hardware, memory_bytes=2 * hardware.memory_bytes)
        assert choose_placement(shape, roomier).num_devices <= placed.num_devices
