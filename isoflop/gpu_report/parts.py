"""Which part of a step the time of each kernel belongs to, from one profiled step.

A kernel is told by the operator that launched it and those around that one; a matrix product by the
weight whose shape it has. On the CPU, where there are no kernels, operators' own times count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType

from isoflop.spec import RunSpec

PARTS = ("attention", "experts", "router", "head", "elementwise", "optimizer", "other", "overhead")
"""`head` is products, loss and their gradients; `optimizer` clipping, too; `other` what matrix
products have shapes of no weight; `overhead` what no kernel accounts for."""

# Parts of an estimate (isoflop.plan.estimate.time) by ours; what is not named is elementwise.
_OF_ESTIMATE = {
    "attn_proj": "attention",
    "attn_scores": "attention",
    "experts": "experts",
    "selection": "router",
    "sort": "experts",
    "accumulation": "experts",
    "router": "router",
    "head": "head",
    "loss": "head",
    "optimizer": "optimizer",
    "clipping": "optimizer",
    "overhead": "overhead",
}
# Words in the names of kernels, operators and whatever is around them, the first that is found.
_WORDS = (
    ("optimizer", ("adam", "optimizer.", "_foreach_", "multi_tensor")),
    ("attention", ("scaled_dot_product", "flash", "fmha", "attention")),
    ("experts", ("gathered_linear", "expert_kernel", "combine_kernel", "dot_kernel", "group_")),
    ("router", ("product_key", "pairs_kernel", "topk")),
    ("head", ("chunkedsum", "chunked_sum", "softmax_gradient")),
    ("head", ("cross_entropy", "nll_loss", "log_softmax")),
)
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm")
_US = 1e-6


def part_of_estimate(name: str) -> str:
    """Return which of PARTS a part of an estimate belongs to."""
    return _OF_ESTIMATE.get(name, "elementwise")


class Weights:
    """Knows the part of a matrix product by the shapes of a model's weights."""

    def __init__(self, model: nn.Module, spec: RunSpec) -> None:
        self._vocab_size = spec.vocab_size
        self._num_tokens = spec.batch_size * spec.seq_len
        self._parts: dict[tuple[int, ...], str] = {}
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                self._parts.setdefault(tuple(sorted(parameter.shape)), _part_of_weight(name))

    def part_of(self, shapes: Sequence[Sequence[int]]) -> str:
        """Return the part of a product of matrices; of `addmm`, the last two count."""
        matrices = [tuple(shape)[-2:] for shape in shapes if len(shape) >= 2][-2:]
        if len(matrices) < 2:
            return "other"
        (M, K), (_, N) = matrices
        sizes = [M, K, N]
        if self._vocab_size in sizes:
            return "head"
        if self._num_tokens in sizes:
            sizes.remove(self._num_tokens)
        return self._parts.get(tuple(sorted(sizes)), "other")


def _part_of_weight(name: str) -> str:
    if "router" in name:
        return "router"
    return "attention" if "attention" in name else "experts"


def seconds_by_part(
    step: Callable[[], object], model: nn.Module, spec: RunSpec, device: torch.device
) -> dict[str, float]:
    """Return seconds of the device by part of one step; empty where the profiler sees none.

    Args:
        step: makes one, and waits for it.
        model: whose weights tell products apart.
        spec: of the model.
        device: where it is.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        step()
    weights = Weights(model, spec)
    found: dict[str, float] = {}
    for part, seconds in _timed(profile.events() or [], weights, device):
        found[part] = found.get(part, 0.0) + seconds
    return found


def _timed(
    events: Sequence[Any], weights: Weights, device: torch.device
) -> Iterator[tuple[str, float]]:
    """Yield the part and the seconds of each kernel, or on the CPU of each operator."""
    host = [event for event in events if event.device_type == DeviceType.CPU]
    if device.type == "cpu":
        for event in host:
            yield part_of_operator(event, "", weights), event.self_cpu_time_total * _US
        return
    told: Counter[str] = Counter()
    for event in host:
        for kernel in event.kernels:
            told[kernel.name] += kernel.duration
            yield part_of_operator(event, kernel.name, weights), kernel.duration * _US
    # Kernels that no operator launched: a compiled graph's own.
    all_kernels: Counter[str] = Counter()
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            all_kernels[event.name] += event.time_range.elapsed_us()
    for name, duration in all_kernels.items():
        if duration > told[name]:
            yield _by_words(name.lower()) or "elementwise", (duration - told[name]) * _US


def part_of_operator(event: Any, kernel: str, weights: Weights) -> str:
    """Return the part of a kernel, by its name, its operator and the operators around that one."""
    words = kernel.lower()
    around = event
    while around is not None:
        words += " " + around.name.lower()
        around = around.cpu_parent
    part = _by_words(words)
    if part is not None:
        return part
    if event.name in _PRODUCTS:
        return weights.part_of(event.input_shapes or [])
    return "elementwise"


def _by_words(text: str) -> str | None:
    return next((part for part, words in _WORDS if any(word in text for word in words)), None)
