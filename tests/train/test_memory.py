"""Out of memory is told by its sizes, on any device; everything else by its first line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from isoflop.placement import Placement
from isoflop.plan.estimate.memory import estimate_memory, format_bytes, model_shape
from isoflop.train.memory import describe, is_out_of_memory
from made_shapes import rung_spec

SPEC = rung_spec("sgatlin", 6)


def raised(make: Any) -> Exception:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        make()
    return caught.value


def test_a_real_lack_of_memory_on_the_cpu() -> None:
    # An exabyte: beyond the address space, so that nothing is ever touched.
    error = raised(lambda: torch.empty(2**60, dtype=torch.int8))
    assert is_out_of_memory(error)
    said = describe(error, SPEC, Placement())
    peak = estimate_memory(model_shape(SPEC), micro_batch=128).peak_bytes
    assert said == (
        "out of memory: sgatlin, width 768, 12 layers; 128 × 2048 tokens at a time; "
        f"vocabulary 50258; asked for 1.15e+06 TB; estimated peak {format_bytes(peak)} on cpu; "
        "try a smaller --micro-batch (64) or --checkpoint-activations"
    )


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"), 2.68e9),
        (RuntimeError("CUDA error: out of memory"), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), None),
        (MemoryError(), None),
        (raised(lambda: np.empty(2**60, dtype=np.int8)), 2**60),
    ],
)
def test_every_allocators_words(error: Exception, asked: float | None) -> None:
    assert is_out_of_memory(error)
    said = describe(error, SPEC, Placement())
    assert said.startswith("out of memory: sgatlin")
    assert ("asked for" in said) == (asked is not None)
    if asked is not None:
        assert f"asked for {format_bytes(asked)};" in said


@pytest.mark.parametrize(
    ("placement", "num_ranks", "at_a_time", "advice"),
    [
        ({"micro_batch": 8}, 1, 8, "a smaller --micro-batch (4) or --checkpoint-activations"),
        ({"parallel": "fsdp"}, 4, 32, "a smaller --micro-batch (16) or --checkpoint-activations"),
        ({"micro_batch": 1}, 1, 1, "--checkpoint-activations"),
        (
            {"micro_batch": 1, "checkpoint_activations": True},
            1,
            1,
            "a device with more memory, or several with parallel = fsdp",
        ),
    ],
)
def test_what_to_do_depends_on_what_was_done(
    placement: dict[str, Any], num_ranks: int, at_a_time: int, advice: str
) -> None:
    said = describe(MemoryError(), SPEC, Placement(**placement), num_ranks)
    assert f"{at_a_time} × 2048 tokens at a time" in said
    assert said.endswith(f"try {advice}")
    peak = estimate_memory(
        model_shape(SPEC),
        micro_batch=at_a_time,
        num_devices=num_ranks,
        sharded=placement.get("parallel") == "fsdp",
        checkpointing=placement.get("checkpoint_activations", False),
        accumulates=at_a_time * num_ranks < 128,
    ).peak_bytes
    assert f"estimated peak {format_bytes(peak)}" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (RuntimeError("expected scalar type Float"), "RuntimeError: expected scalar type Float"),
        (OSError(28, "No space left"), "disk: OSError: [Errno 28] No space left"),
        (KeyError(), "KeyError: "),
    ],
)
def test_other_errors_keep_their_first_line(error: Exception, said: str) -> None:
    assert not is_out_of_memory(error)
    assert describe(error, SPEC, Placement()) == said
