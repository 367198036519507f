"""Kinds of failures by the words of nodes, file systems and our own records."""

from __future__ import annotations

import dataclasses

import pytest

from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm.failures import KINDS, kind_of_attempt, kind_of_job, num_failures
from isoflop.launch.slurm.scheduler import JobState
from slurm.made_scheduler import Sent

FAILED = JobState(job_id="1", state="FAILED", exit_code="1:0")

# What a job wrote last: torch, the CUDA driver, the kernel, srun, the C library, Python.
LAST_LINES = {
    "RuntimeError: No CUDA GPUs are available": "node",
    "RuntimeError: CUDA error: no CUDA-capable device is detected": "node",
    "RuntimeError: Found no NVIDIA driver on your system. Please check that you have": "node",
    "RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu.": "node",
    "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up env": "node",
    "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable": "node",
    "CUDA error: uncorrectable ECC error encountered": "node",
    "CUDA error: uncorrectable NVLink error detected during the execution": "node",
    "NVRM: GPU has fallen off the bus.": "node",
    "Failed to initialize NVML: Driver/library version mismatch": "node",
    "RuntimeError: CUDA error: system not yet initialized": "node",
    "srun: error: Task launch for StepId=7.0 failed on node n2: Invalid node name": "node",
    "slurmstepd: error: *** JOB 7 ON n2 CANCELLED DUE TO NODE FAILURE ***": "node",
    # No word of the node: what is installed, or what a kernel does, is the same everywhere.
    "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)": "code",
    "AssertionError: Torch not compiled with CUDA enabled": "code",
    "RuntimeError: CUDA error: unspecified launch failure": "code",
    "ValueError: unknown ECC scheme": "code",
    "RuntimeError: kernel launch failed: too many resources requested": "code",
    # File systems.
    "OSError: [Errno 28] No space left on device": "disk",
    "OSError: [Errno 122] Disk quota exceeded: '/home/a'": "disk",
    "OSError: [Errno 30] Read-only file system: '/scratch/a'": "disk",
    "OSError: [Errno 116] Stale file handle: '/nfs/a'": "disk",
    "OSError: [Errno 5] Input/output error": "disk",
    "cp: error writing 'x': No space left on device": "disk",
    "torch.OutOfMemoryError: CUDA out of memory.": "oom",
    "lost contact with another rank of this run: it died or stalled": "rank",
    "ZeroDivisionError: division by zero": "code",
}


@pytest.mark.parametrize(("line", "kind"), LAST_LINES.items())
def test_a_death_is_told_by_the_last_words(line: str, kind: str) -> None:
    assert kind_of_job(FAILED, ["starting", line]) == kind
    assert kind in KINDS


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("disk: OSError: [Errno 28] No space left on device: '/a'", "disk"),
        ("disk: CheckpointError: cannot write the checkpoint of step 63: out of memory", "disk"),
        ("rank 0: lost contact with another rank; rank 1: disk: OSError: [Errno 5] x", "disk"),
        # Of version 0.1.0.
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("CheckpointError: cannot write …: No space left on device (os error 28)", "disk"),
        # What only speaks of a disk.
        ("ValueError: tokenizer 'No space left on device' is not known", "code"),
        ("ValueError: disk: No space left on device", "code"),
        ("RuntimeError: No CUDA GPUs are available", "node"),
        ("out of memory: mlp, width 64", "oom"),
    ],
)
def test_a_recorded_failure_is_told_by_its_record(reason: str, kind: str, sent: Sent) -> None:
    sent.attempt(0, f"failed: {reason}")
    (attempt,) = sent.run(0).attempts()
    assert kind_of_attempt(attempt) == kind


def test_disks_and_what_was_forgiven_count_towards_no_parking(sent: Sent) -> None:
    full = "failed: disk: OSError: [Errno 28] No space left on device"
    reasons = (full, "failed: ValueError: x", full, "interrupted: SIGUSR2", "failed: ValueError: y")
    for number, reason in enumerate(reasons, start=1):
        sent.attempt(0, reason, number=number)
    folder: RunFolder = sent.run(0)
    assert num_failures(folder, {}) == 2
    assert num_failures(folder, {folder.run_id: {"attempts_forgiven": 2}}) == 0


def test_the_scheduler_s_own_word_comes_first() -> None:
    dead = dataclasses.replace(FAILED, state="NODE_FAIL")
    assert kind_of_job(dead, ["No space left on device"]) == "node"
