from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.plan.estimate.hardware import load_hardware
from isoflop.plan.estimate.memory import (
    USABLE_SHARE,
    choose_placement,
    estimate_memory,
    model_shape,
    placement_memory,
)
from made_shapes import FAMILIES, rung_spec

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
