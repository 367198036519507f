"""A micro-batch that does not fit the memory is halved, before it is tried or after."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from isoflop.gpu_report import steps
from isoflop.gpu_report.jobs import stages
from isoflop.gpu_report.profiles import built_in_profile, hardware_of, load_profile
from isoflop.gpu_report.records import Row

[STEPS] = [stage for stage in stages("cuda", {}) if stage.name == "steps"]
JOB = next(job for job in STEPS.jobs if job.case.startswith("sgatlin-6"))


def test_what_is_not_expected_to_fit_is_not_tried():
    fitting = [
        steps._fitting(JOB.values, dataclasses.replace(load_profile("h200"), memory_bytes=size))
        for size in (141 * 10**9, 48 * 10**9, 44 * 10**9)
    ]
    assert fitting[0] == JOB.values["micro_batch"]
    assert fitting[0] > fitting[1] > fitting[2]


def test_what_does_not_fit_after_all_is_halved_with_a_line(monkeypatch):
    tried = []

    def measured(job, spec, hardware, device):
        tried.append(spec.batch_size)
        if spec.batch_size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        yield Row(stage=job.stage, case=job.case, what="step", measured=1.0)

    monkeypatch.setattr(steps, "_measured", measured)
    rows = list(steps.measure_step(JOB, torch.device("cpu")))
    assert tried == [16, 8, 4]
    assert [row.outcome for row in rows] == ["skipped", "skipped", "measured"]
    assert "with 16 sequences at a time" in rows[0].note


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def measured(job, spec, hardware, device):
        yield Row(stage=job.stage, case=job.case)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(steps, "_measured", measured)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(steps.measure_step(JOB, torch.device("cpu")))


@pytest.mark.parametrize(
    ("gpu", "profile"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_profile_is_of_whole_boards_of_its_kind(gpu, profile):
    found = built_in_profile(gpu)
    assert (found and found.name) == profile


def test_another_gpu_is_predicted_from_what_was_measured():
    facts = {"name": "NVIDIA X", "memory": 10**9, "cache": 7, "copy": 2e12, "bf16": 3e14}
    hardware = hardware_of(facts)
    assert hardware.name == "measured here"
    assert (hardware.memory_bytes, hardware.l2_bytes) == (10**9, 7)
    assert hardware.stream_bytes_per_s == 2e12
    assert hardware.matmul_flops_per_s["bf16"] == 3e14
    known = hardware_of(facts | {"name": "NVIDIA H200"})
    assert known == dataclasses.replace(load_profile("h200"), memory_bytes=10**9)
