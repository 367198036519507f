"""Each part's bytes and FLOPs against those that are counted in one executed step."""

from __future__ import annotations

from typing import Any

import pytest

import made_shapes
from isoflop.model import loss
from isoflop.plan.estimate import traffic
from isoflop.plan.estimate.memory import ModelShape, PlacementEstimate, model_shape
from isoflop.plan.estimate.traffic import FUSED_SHARE, Work, step_work
from isoflop.spec import RunSpec
from isoflop.train.traffic import Traffic, counted_step
from made_shapes import FAMILIES, rung_spec

# No part of a GPU's estimate alone: sorting is inside of the CPU's operator.
ON_GPU = {"sort"}
# Counted as arithmetic by the estimate, since it takes longer than its traffic.
NO_PRODUCTS = {"selection"}


def spec_of(family: str, precision: str = "fp32", **changes: Any) -> RunSpec:
    """Return a small run with no size twice, so that no activation looks like a weight."""
    sizes = {"batch_size": 6, "seq_len": 80, "vocab_size": 301, "n_layers": 2}
    return rung_spec(family, 5, "micro-v1", precision=precision, **(sizes | changes))


def placed(spec: RunSpec, micro_batch: int, **changes: Any) -> PlacementEstimate:
    accum = spec.batch_size // micro_batch
    return made_shapes.placed(micro_batch, accum, **changes)


def assert_equal_within_a_tenth(work: Any, counted: Any) -> None:
    names = set(counted) - {"other"}
    assert names == {name for name, each in work.items() if each.num_bytes} - ON_GPU
    for name in names:
        assert work[name].num_bytes == pytest.approx(counted[name].num_bytes, rel=0.1), name
        if name not in NO_PRODUCTS:
            assert work[name].flops == pytest.approx(counted[name].flops, rel=0.1), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_moves_and_computes_what_a_step_does(family: str, precision: str) -> None:
    # In micro-batches, so that every part is there.
    spec = spec_of(family, precision)
    work = step_work(model_shape(spec), placed(spec, 3), kind="cpu")
    counted = counted_step(spec, micro_batch=3)
    assert_equal_within_a_tenth(work, counted)
    if precision == "bf16":
        elementwise = counted["elementwise"]
        share = elementwise.fused_bytes / elementwise.num_bytes
        assert share == pytest.approx(FUSED_SHARE, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tables_gradients_that_are_added_in_place_are_counted(precision: str) -> None:
    spec = spec_of("sgatlin", precision)
    work = step_work(model_shape(spec), placed(spec, 2), kind="cpu")
    assert_equal_within_a_tenth(work, counted_step(spec, micro_batch=2))
    # A step of two micro-batches, and of three on two devices, has autograd add them.
    moved = [
        step_work(model_shape(spec), placement, kind="cpu")["accumulation"].num_bytes
        for placement in (placed(spec, 3), placed(spec, 2), placed(spec, 2, num_devices=2))
    ]
    assert moved[1] < moved[0] < moved[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recomputed_forward_pass_is_counted(family: str) -> None:
    spec = spec_of(family)
    work = step_work(model_shape(spec), placed(spec, 6, checkpointing=True), kind="cpu")
    assert_equal_within_a_tenth(work, counted_step(spec, checkpointing=True))


def test_a_head_in_chunks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("mlp")
    chunk = 100 * spec.vocab_size * 4
    monkeypatch.setattr(loss, "MAX_LOGIT_BYTES", chunk)
    monkeypatch.setattr(loss, "CHUNK_BYTES", {"cpu": chunk})
    monkeypatch.setattr(traffic, "MAX_LOGIT_BYTES", chunk)
    monkeypatch.setattr(traffic, "LOGIT_CHUNK_BYTES", {"cpu": chunk})
    work = step_work(model_shape(spec), placed(spec, 3), kind="cpu")
    assert_equal_within_a_tenth(work, counted_step(spec, micro_batch=3))


def test_chunks_of_logits_are_those_of_the_loss() -> None:
    assert traffic.LOGIT_CHUNK_BYTES == loss.CHUNK_BYTES
    assert traffic.MAX_LOGIT_BYTES == loss.MAX_LOGIT_BYTES


def rows_of(work: Work, shape: ModelShape, tokens: int) -> float:
    """Return the rows that each choice gathers."""
    row = shape.gathered_values / 2 * shape.compute_bytes
    return work.gathered_bytes / tokens / shape.n_layers / row


def test_a_gpu_gathers_a_row_less_and_sorts_its_choices() -> None:
    spec = spec_of("sgatlin", "bf16")
    shape, tokens = model_shape(spec), spec.batch_size * spec.seq_len
    cpu, gpu = (step_work(shape, placed(spec, 6), kind=kind) for kind in ("cpu", "cuda"))
    assert rows_of(cpu["experts"], shape, tokens) == 6
    assert rows_of(gpu["experts"], shape, tokens) == 5
    choices = tokens * shape.n_layers * spec.config["num_channels"] * spec.config["num_neighbours"]
    assert gpu["sort"].num_bytes == 42 * choices
    many = spec_of("sgatlin", config=dict(spec.config) | {"num_experts": 200**2})
    work = step_work(model_shape(many), placed(many, 6), kind="cuda")
    assert work["sort"].num_bytes == 100 * choices
    assert {name for name in cpu if cpu[name] != gpu[name]} == {"experts", "sort"}


def test_a_step_in_bf16_gathers_two_bytes_of_what_one_in_float32_gathers_four() -> None:
    wide, half = (counted_step(spec_of("sgatlin", each)) for each in ("fp32", "bf16"))

    def moved(parts: Any) -> int:
        part: Traffic = parts["experts"]
        return part.num_bytes

    # Dense gradients of the tables stay float32.
    spec = spec_of("sgatlin")
    gradients = 4 * model_shape(spec).component("experts").num_params
    ratio = (moved(half) - gradients) / (moved(wide) - gradients)
    assert ratio == pytest.approx(0.5, abs=0.03)
