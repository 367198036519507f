from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.plan.estimate import traffic
from isoflop.plan.estimate.hardware import Hardware, load_hardware
from isoflop.plan.estimate.memory import choose_placement, model_shape
from isoflop.plan.estimate.time import (
    assumptions,
    estimate_step,
    gather_bytes_per_s,
    gathered_bytes,
    roofline_s,
)
from isoflop.plan.estimate.traffic import (
    ADAMW_BYTES_PER_PARAM,
    BAG_GATHER,
    FUSED_GATHER,
    FUSED_SHARE,
)
from made_shapes import FAMILIES, placed, rung_spec

H100 = load_hardware("h100")

# The roofline of the gather on an H100, worked out by hand (memory 3.0 TB/s, cache 5.5 TB/s, peak
# 790 TFLOP/s, bf16 tables, 16 channels of 8), per token and layer at sequence length 2048:
# kFLOP forward of experts, router and attention; KiB gathered forward, backward in 4 and in 3
# rows; ns for 6 rows from memory, 5 from memory, 5 from cache; ns of a dense layer with the FLOPs
# of experts and router; ns of attention.
GATHER_TABLE = {
    2: (131, 393, 2621, 128, 256, 192, 131, 109, 60, 3.3, 20),
    3: (197, 524, 4325, 192, 384, 288, 197, 164, 89, 4.6, 33),
    4: (262, 655, 6291, 256, 512, 384, 262, 218, 119, 5.8, 48),
    5: (328, 786, 8520, 320, 640, 480, 328, 273, 149, 7.1, 65),
    6: (393, 918, 11010, 384, 768, 576, 393, 328, 179, 8.3, 84),
    7: (459, 1049, 13763, 448, 896, 672, 459, 382, 209, 9.5, 105),
    8: (524, 1180, 16777, 512, 1024, 768, 524, 437, 238, 10.8, 127),
}
MEMORY, CACHE, PEAK = 3.0e12, 5.5e12, 790e12


@pytest.mark.parametrize("size", GATHER_TABLE)
def test_the_gather_costs_what_was_worked_out_by_hand(size: int) -> None:
    shape = model_shape(rung_spec("sgatlin", size))

    def layer_flops(*names: str) -> int:
        return sum(shape.component(name).flops_per_token for name in names) // shape.n_layers

    def read(rows: int) -> int:
        return gathered_bytes(shape.gathered_values, rows, bytes_per_value=2)

    experts, router = layer_flops("experts"), layer_flops("router")
    attention = layer_flops("attn_proj", "attn_scores")
    five = FUSED_GATHER.forward_rows + FUSED_GATHER.backward_rows
    six = BAG_GATHER.forward_rows + BAG_GATHER.backward_rows
    row = (
        experts / 1e3,
        router / 1e3,
        attention / 1e3,
        read(FUSED_GATHER.forward_rows) / 1024,
        read(BAG_GATHER.backward_rows) / 1024,
        read(FUSED_GATHER.backward_rows) / 1024,
        1e9 * roofline_s(3 * experts, PEAK, read(six), MEMORY),
        1e9 * roofline_s(3 * experts, PEAK, read(five), MEMORY),
        1e9 * roofline_s(3 * experts, PEAK, read(five), CACHE),
        1e9 * roofline_s(3 * (experts + router), 0.6 * PEAK, 0, MEMORY),
        1e9 * roofline_s(3 * attention, 0.5 * PEAK, 0, MEMORY),
    )
    # Those digits are whole, or tenths.
    for ours, theirs in zip(row, GATHER_TABLE[size], strict=True):
        assert ours == pytest.approx(theirs, abs=0.05 if theirs < 15 else 0.6)


def test_one_flop_per_gathered_byte() -> None:
    shape = model_shape(rung_spec("sgatlin", 6))
    flops = shape.component("experts").flops_per_token // shape.n_layers
    assert flops == gathered_bytes(shape.gathered_values, FUSED_GATHER.forward_rows, 2)


def parts(family: str, size: int, hardware: Hardware = H100, **changes: Any) -> dict[str, float]:
    shape = model_shape(rung_spec(family, size))
    return dict(estimate_step(shape, hardware, placed(**changes)).parts)


def test_adamw_takes_21_ms_at_scale_6() -> None:
    assert ADAMW_BYTES_PER_PARAM == 28
    assert parts("sgatlin", 6)["optimizer"] == pytest.approx(0.021, rel=0.05)


def test_the_gather_is_memory_bound_and_dense_layers_are_not() -> None:
    faster = dataclasses.replace(H100, matmul_efficiency=1.0)
    assert parts("sgatlin", 6, faster)["experts"] == parts("sgatlin", 6)["experts"]
    assert parts("mlp", 6, faster)["experts"] == pytest.approx(parts("mlp", 6)["experts"] / 2)
    # A quarter of the FLOPs, many times the time.
    assert parts("sgatlin", 6)["experts"] > 8 * parts("mlp", 6)["experts"]


def test_tables_that_fit_the_cache_are_gathered_from_it() -> None:
    small, large = (model_shape(rung_spec("sgatlin", size)) for size in (2, 6))
    assert gather_bytes_per_s(small, H100) == H100.l2_bytes_per_s
    assert gather_bytes_per_s(large, H100) == H100.stream_bytes_per_s


def test_the_head_multiplies_in_tf32_where_the_device_can() -> None:
    peaks = dict(H100.matmul_flops_per_s)
    slower = dataclasses.replace(H100, matmul_flops_per_s=peaks | {"tf32": peaks["tf32"] / 2})
    assert parts("mlp", 6, slower)["head"] == pytest.approx(2 * parts("mlp", 6)["head"])
    assert parts("mlp", 6, slower)["experts"] == parts("mlp", 6)["experts"]
    del peaks["tf32"]
    without = dataclasses.replace(H100, matmul_flops_per_s=peaks)
    ratio = parts("mlp", 6, without)["head"] / parts("mlp", 6)["head"]
    assert ratio == pytest.approx(494.5 / 67)
    assert "multiplies in TF32" in "\n".join(assumptions(H100))
    assert "multiplies in float32" in "\n".join(assumptions(without))


def test_selection_and_sorting_take_milliseconds_a_layer() -> None:
    spec = rung_spec("sgatlin", 6)
    # Of half the batch: 131,072 tokens.
    half = parts("sgatlin", 6, micro_batch=64)
    assert half["selection"] / spec.n_layers == pytest.approx(1.6e-3, rel=0.05)
    assert half["sort"] / spec.n_layers == pytest.approx(0.234e-3, rel=0.01)
    assert parts("sgatlin", 6)["selection"] == pytest.approx(2 * half["selection"])
    assert (parts("mlp", 6)["selection"], parts("moe", 6)["sort"]) == (0, 0)


def test_micro_batches_add_up_the_gradients_of_all_experts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 64 micro-batches of the paper's largest model on an H200: more than a second a step where
    # autograd adds them; two thirds of it are saved where that is done in place.
    shape = model_shape(rung_spec("sgatlin", 8))
    placement = placed(micro_batch=2, grad_accum=64)
    h200 = load_hardware("h200")
    in_place = estimate_step(shape, h200, placement)
    with monkeypatch.context() as patch:
        patch.setattr(traffic, "SUMMED_IN_PLACE_FROM", 1000)
        apart = estimate_step(shape, h200, placement)
    assert apart.parts["accumulation"] == pytest.approx(1.17, 0.01)
    assert in_place.parts["accumulation"] == pytest.approx(0.022, 0.02)
    assert apart.total_s - in_place.total_s == pytest.approx(1.17 * 2 / 3, rel=0.05)
    whole = estimate_step(shape, h200, placed()).parts
    assert whole["accumulation"] < 0.001
    assert whole["casts"] < estimate_step(shape, h200, placement).parts["casts"]


def test_checkpointing_runs_layers_twice_forward_and_the_head_once() -> None:
    plain, again = parts("mlp", 6), parts("mlp", 6, checkpointing=True)
    for name in ("attn_proj", "attn_scores"):
        assert again[name] == pytest.approx(plain[name] * 4 / 3)
    assert again["experts"] == pytest.approx(plain["experts"] * 3.6 / 3)
    # The norm before the head is no part of a layer.
    assert again["elementwise"] == pytest.approx(plain["elementwise"] * 4 / 3, rel=0.01)
    assert again["head"] == plain["head"]
    gather = parts("sgatlin", 6, checkpointing=True)["experts"] / parts("sgatlin", 6)["experts"]
    # Two rows more on five, the gradient's write aside.
    assert 1.3 < gather < 7 / 5


def test_devices_share_the_tokens_and_pay_for_talking() -> None:
    alone = parts("mlp", 6)
    copies = parts("mlp", 6, micro_batch=32, num_devices=4, parallel="ddp")
    assert copies["attn_scores"] == pytest.approx(alone["attn_scores"] / 4)
    assert copies["optimizer"] == alone["optimizer"]
    # What several devices share is not compiled.
    assert copies["elementwise"] == pytest.approx(alone["elementwise"] / 4 / FUSED_SHARE)
    assert alone["all_reduce"] == 0
    num_params = model_shape(rung_spec("mlp", 6)).num_params
    assert copies["all_reduce"] == pytest.approx(2 * 3 / 4 * 4 * num_params / 450e9)
    sharded = parts("mlp", 6, micro_batch=32, num_devices=4, parallel="fsdp")
    for name in ("optimizer", "clipping", "accumulation"):
        assert sharded[name] == pytest.approx(alone[name] / 4)
    assert sharded["all_reduce"] > copies["all_reduce"]
    nodes = parts("mlp", 6, micro_batch=8, num_devices=16, parallel="ddp")
    assert nodes["all_reduce"] > 8 * copies["all_reduce"]


def test_on_a_gpu_launching_hides_behind_work_and_on_a_cpu_it_adds_up() -> None:
    assert parts("mlp", 6)["overhead"] == 0
    tiny = model_shape(rung_spec("mlp", 1, "micro-v1"))
    assert estimate_step(tiny, H100, placed(micro_batch=8)).parts["overhead"] > 0
    slow = load_hardware("cpu2")
    no_operators = dataclasses.replace(slow, operator_overhead_s=1e-12)
    step = estimate_step(tiny, slow, placed(micro_batch=8))
    without = estimate_step(tiny, no_operators, placed(micro_batch=8))
    assert step.total_s - step.parts["overhead"] == pytest.approx(without.total_s, rel=1e-6)


def test_assumptions_name_what_was_not_measured() -> None:
    text = "\n".join(assumptions(H100))
    assert "2 forward and 3 backward" in text
    assert "nothing of them was measured" in text
    assert "30.5% of the traffic" in text
    assert "choices are sorted by expert, eight bits a pass" in text
    on_cpu = "\n".join(assumptions(load_hardware("cpu2")))
    assert "2 forward and 4 backward" in on_cpu
    assert "one by one" in on_cpu
    assert "sorting choices by expert is left out" in on_cpu


@given(
    family=st.sampled_from(FAMILIES),
    size=st.integers(1, 20),
    field=st.sampled_from(["n_layers", "batch_size", "seq_len", "vocab_size"]),
    name=st.sampled_from(["h100", "cpu2"]),
)
def test_more_of_anything_never_takes_less(family: str, size: int, field: str, name: str) -> None:
    hardware = load_hardware(name)

    def total(spec: Any) -> float:
        shape = model_shape(spec)
        placement = placed(micro_batch=spec.batch_size)
        step = estimate_step(shape, hardware, placement)
        assert min(step.parts.values()) >= 0
        assert step.total_s == sum(step.parts.values())
        return step.total_s

    spec = rung_spec(family, size)
    more = dataclasses.replace(spec, **{field: 2 * getattr(spec, field)})
    assert total(spec) <= total(more)


@given(
    family=st.sampled_from(FAMILIES),
    size=st.integers(1, 10),
    field=st.sampled_from(
        ["memory_bytes_per_s", "l2_bytes_per_s", "matmul_efficiency", "interconnect_bytes_per_s"]
    ),
)
def test_a_faster_device_is_never_slower(family: str, size: int, field: str) -> None:
    shape = model_shape(rung_spec(family, size))
    placement = choose_placement(shape, H100)
    faster = dataclasses.replace(H100, **{field: 1.5 * getattr(H100, field)})
    before, after = (estimate_step(shape, h, placement).total_s for h in (H100, faster))
    assert after <= before * (1 + 1e-12)
