"""Layouts on GPUs, which need none: what the plan chose, and which worker takes which device."""

from __future__ import annotations

import dataclasses

import pytest

from isoflop.launch.job import assign_device, resolve_placement
from isoflop.placement import Placement
from isoflop.plan.estimate.memory import PlacementEstimate

PLANNED = PlacementEstimate(
    micro_batch=16,
    grad_accum=2,
    num_devices=4,
    parallel="fsdp",
    checkpointing=True,
    peak_mem_bytes=1,
    fits=True,
    reason="",
)
GPU = Placement(device="cuda", compile=True)


def test_a_gpu_run_takes_the_layout_of_its_plan():
    found = resolve_placement(GPU, {"device", "compile"}, PLANNED)
    assert found == Placement(
        device="cuda",
        compile=True,
        parallel="fsdp",
        num_ranks=4,
        micro_batch=16,
        checkpoint_activations=True,
    )


def test_a_batch_that_fits_whole_is_not_cut():
    assert (
        resolve_placement(GPU, (), dataclasses.replace(PLANNED, grad_accum=1)).micro_batch is None
    )


@pytest.mark.parametrize("name", ["parallel", "ranks", "micro_batch", "checkpoint_activations"])
def test_what_somebody_said_about_the_layout_replaces_all_of_the_plans(name):
    assert resolve_placement(GPU, {name}, PLANNED) == GPU


@pytest.mark.parametrize(
    ("placement", "planned"),
    [
        (Placement(), PLANNED),
        (GPU, None),
        (GPU, dataclasses.replace(PLANNED, fits=False)),
    ],
)
def test_without_a_gpu_or_a_plan_that_fits_nothing_changes(placement, planned):
    assert resolve_placement(placement, (), planned) == placement


@pytest.mark.parametrize(
    ("placement", "worker", "num_devices", "device"),
    [
        (GPU, 0, 4, "cuda:0"),
        (GPU, 5, 4, "cuda:1"),
        (GPU, 3, 1, "cuda"),
        (Placement(device="cuda:2"), 1, 4, "cuda:2"),
        (Placement(), 1, 0, "cpu"),
        (Placement(device="cuda", parallel="ddp", num_ranks=2), 1, 4, "cuda"),
    ],
)
def test_each_worker_has_a_device_of_its_own(placement, worker, num_devices, device):
    assert assign_device(placement, worker, num_devices).device == device
