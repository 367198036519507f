"""Which part of a step a kernel's time goes to: by its name, its operator, the weight's shape."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from isoflop.gpu_report.parts import PARTS, Weights, _timed, part_of_estimate
from isoflop.gpu_report.profiles import load_profile
from isoflop.gpu_report.steps import made_model, predicted_parts, step_spec
from isoflop.plan.estimate.memory import choose_placement, model_shape
from isoflop.plan.estimate.time import estimate_step

VALUES = {
    "family": "sgatlin",
    "recipe": "micro-v2",
    "rung": 5,
    "n_layers": 1,
    "seq_len": 100,
    "micro_batch": 3,
    "vocab_size": 77,
    "precision": "bf16",
}
T, V = 300, 77
SPEC = step_spec(VALUES)
D = SPEC.d_model


@dataclasses.dataclass
class Span:
    length_us: float

    def elapsed_us(self) -> float:
        return self.length_us


@dataclasses.dataclass
class Kernel:
    name: str
    duration: float


@dataclasses.dataclass
class Event:
    """What torch's profiler gives, as far as it is read."""

    name: str
    input_shapes: list[list[int]] | None = None
    cpu_parent: Event | None = None
    kernels: list[Kernel] = dataclasses.field(default_factory=list)
    device_type: Any = DeviceType.CPU
    is_user_annotation: bool = False
    self_cpu_time_total: float = 0.0
    time_range: Span = dataclasses.field(default_factory=lambda: Span(0.0))


@pytest.fixture(scope="module")
def weights():
    return Weights(made_model(SPEC, torch.device("cpu")), SPEC)


def timed(events, weights, device="cuda"):
    found: dict[str, float] = {}
    for part, seconds in _timed(events, weights, torch.device(device)):
        found[part] = found.get(part, 0.0) + seconds * 1e6
    return {part: pytest.approx(us) for part, us in found.items()}


def operator(name, kernel, us, shapes=None, parent=None):
    return Event(name, shapes, Event(parent) if parent else None, [Kernel(kernel, us)])


def device_kernel(name, us, annotation=False):
    return Event(
        name, None, None, [], DeviceType.CUDA, is_user_annotation=annotation, time_range=Span(us)
    )


def test_products_are_told_by_the_shapes_of_weights_forward_and_backward(weights):
    queries = SPEC.config["router_width"]
    events = [
        operator("aten::mm", "gemm", 1, [[T, D], [D, 2 * D]]),
        operator("aten::mm", "gemm", 2, [[D, T], [T, D]]),  # a gradient of values' weight
        operator("aten::mm", "gemm", 4, [[T, D], [D, queries]]),
        operator("aten::mm", "gemm", 8, [[50, D], [D, V]]),  # a chunk of the head
        operator("aten::addmm", "gemm", 16, [[V, D], [V, 50], [50, D]]),
        operator("aten::bmm", "gemm", 32, [[9, 5, 7], [9, 7, 11]]),
    ]
    assert timed(events, weights) == {"attention": 3, "router": 4, "head": 24, "other": 32}


def test_what_surrounds_an_operator_says_whose_it_is(weights):
    events = [
        operator(
            "aten::sort", "radix", 1, parent="isoflop_kernels::gathered_linear_triton_backward"
        ),
        operator("aten::sort", "radix", 2, parent="isoflop_kernels::product_key_pairs_triton"),
        operator("aten::mul", "vectorized", 4, parent="_ChunkedSum"),
        operator("aten::mul", "vectorized", 128, parent="isoflop::chunked_sum"),
        operator("aten::mul", "vectorized", 8, parent="RMSNorm"),
        operator("aten::_foreach_norm", "multi_tensor_apply_kernel", 16),
        operator("aten::_fused_adamw_", "FusedAdam", 32, parent="Optimizer.step#AdamW.step"),
        operator("aten::_flash_attention_forward", "flash_fwd_splitkv_combine_kernel", 64),
    ]
    assert timed(events, weights) == {
        "experts": 1,
        "router": 2,
        "head": 132,
        "elementwise": 8,
        "optimizer": 48,
        "attention": 64,
    }


def test_kernels_of_a_compiled_graph_have_no_operator_and_count_once(weights):
    told = operator("aten::mm", "gemm", 5, [[T, D], [D, 2 * D]])
    events = [
        told,
        device_kernel("gemm", 5),
        device_kernel("triton_poi_fused_mul", 7),
        device_kernel("_dot_kernel", 3),
        device_kernel("softmax_gradient_kernel", 11),
        device_kernel("Optimizer.step#AdamW.step", 100, annotation=True),
    ]
    assert timed(events, weights) == {
        "attention": 5,
        "elementwise": 7,
        "experts": 3,
        "head": 11,
    }


def test_on_the_cpu_the_operators_own_time_counts(weights):
    events = [
        Event("aten::mm", [[T, D], [D, 2 * D]], self_cpu_time_total=3.0),
        Event("isoflop_kernels::gathered_linear", self_cpu_time_total=4.0),
    ]
    assert timed(events, weights, "cpu") == {"attention": 3, "experts": 4}


def test_a_prediction_is_of_the_mode_that_is_measured():
    hardware = load_profile("h200")
    spec = step_spec(
        VALUES | {"recipe": "paper-v1", "rung": 4, "vocab_size": 50258, "seq_len": 2048}
    )
    placed = choose_placement(spec, hardware, 1)

    def predicted(**mode):
        return predicted_parts(spec, hardware, placed, {"head": "tf32"} | mode)

    estimate = estimate_step(model_shape(spec), hardware, placed)
    compiled, plain = predicted(compile=True), predicted()
    assert sum(compiled.values()) == pytest.approx(estimate.total_s)
    assert plain["elementwise"] > 1.5 * compiled["elementwise"]
    assert predicted(head="fp32")["head"] > 2 * plain["head"] > 2 * predicted(head="bf16")["head"]
    for part in ("attention", "experts", "router", "optimizer"):
        assert predicted(head="fp32")[part] == compiled[part] > 0


def test_every_part_of_an_estimate_is_one_of_ours():
    """By name, so that a new part is thought of: what is not listed is elementwise."""
    hardware = load_profile("h100")
    parts = estimate_step(model_shape(SPEC), hardware, choose_placement(SPEC, hardware, 1)).parts
    assert {part_of_estimate(name) for name in parts} <= set(PARTS)
    elementwise = {name for name in parts if part_of_estimate(name) == "elementwise"}
    assert elementwise <= {"elementwise", "casts", "all_reduce", "accumulation"}
