"""A FLOP counter that fails on any operator it cannot vouch for.

torch's `FlopCounterMode` counts operators that it has a formula for and is silent about all others:
the CPU's flash attention, `embedding_bag`, grouped products and custom operators without a formula
count 0. Here an operator must have a formula or stand on :data:`ZERO_COST`.

What no counter of operators can see: work outside of torch's operators (numpy, a raw kernel
launch), and a contraction written as an elementwise product and a sum, which counts 0 like any
elementwise work. Write contractions as matrix products or `einsum`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# Operators that count 0 by the convention "matrix products only", by reason. Names are torch's,
# without overload and without the marks of in-place (`add_`) and list (`_foreach_add`) forms.

# No arithmetic: other shapes of the same memory.
_VIEWS = """
    alias as_strided _conj detach diagonal expand lift lift_fresh movedim narrow permute _neg_view
    _reshape_alias reshape select slice split split_with_sizes squeeze swapaxes t transpose unbind
    unfold _unsafe_view unsqueeze view view_as view_as_complex view_as_real
"""
# No arithmetic: memory made, filled, copied or rearranged.
_COPIES = """
    arange as_strided_scatter cat clone _conj_physical constant_pad_nd contiguous copy
    _copy_from_and_resize diag_embed diagonal_backward diagonal_scatter empty empty_like
    empty_permuted empty_strided eye fill flip full full_like linspace new_empty new_empty_strided
    new_full new_ones new_zeros ones ones_like pixel_shuffle pixel_unshuffle reflection_pad1d
    reflection_pad1d_backward reflection_pad2d reflection_pad2d_backward repeat repeat_interleave
    resize roll scalar_tensor select_backward select_scatter set slice_backward slice_scatter stack
    _to_copy tril tril_indices triu triu_indices unfold_backward zero zeros zeros_like
"""
# Rows and entries read or written by index; equal places add up, which is elementwise work.
_GATHERS = """
    embedding embedding_dense_backward gather index index_add index_copy index_fill index_put
    _index_put_impl index_reduce index_select masked_fill masked_scatter masked_select put scatter
    scatter_add scatter_reduce take take_along_dim _unsafe_index _unsafe_index_put
"""
# Comparisons: sorting, choosing, counting.
_SELECTION = """
    argmax argmin argsort bincount bucketize cummax cummin histc kthvalue max min mode msort
    nonzero searchsorted sort topk _unique2 unique_consecutive unique_dim
"""
# One operation per entry, also fused with its derivative.
_ELEMENTWISE = """
    abs acos add addcdiv addcmul __and__ angle asin atan atan2 bitwise_and bitwise_left_shift
    bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp clamp_max clamp_min
    complex copysign cos cosh deg2rad div elu elu_backward eq erf erfc erfinv exp exp2 expm1 floor
    floor_divide fmax fmin fmod frac ge gelu gelu_backward glu glu_backward gt hardsigmoid
    hardsigmoid_backward hardswish hardswish_backward hardtanh hardtanh_backward heaviside hypot
    isfinite isin isinf isnan isneginf isposinf le leaky_relu leaky_relu_backward lerp lgamma log
    log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor logit logit_backward
    log_sigmoid_backward log_sigmoid_forward __lshift__ lt maximum minimum mish mish_backward mul
    nan_to_num ne neg nextafter __or__ polar pow _prelu_kernel _prelu_kernel_backward reciprocal
    relu relu6 remainder round __rshift__ rsqrt rsub sgn sigmoid sigmoid_backward sign signbit silu
    silu_backward sin sinc sinh softplus softplus_backward softshrink softshrink_backward sqrt
    square sub tan tanh tanh_backward threshold threshold_backward trunc where xlogy __xor__
"""
# A few operations per entry along an axis: sums, norms, softmax, losses.
_REDUCTIONS = """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward all amax amin aminmax any argwhere avg_pool2d
    avg_pool2d_backward binary_cross_entropy binary_cross_entropy_backward
    binary_cross_entropy_with_logits count_nonzero cumprod cumsum equal _fused_rms_norm
    _fused_rms_norm_backward linalg_vector_norm logcumsumexp _log_softmax _log_softmax_backward_data
    logsumexp mean native_batch_norm native_batch_norm_backward huber_loss huber_loss_backward
    max_pool2d_with_indices max_pool2d_with_indices_backward mse_loss mse_loss_backward
    native_group_norm native_group_norm_backward native_layer_norm native_layer_norm_backward
    nll_loss_backward nll_loss_forward nll_loss2d_backward nll_loss2d_forward norm prod renorm
    _safe_softmax _softmax _softmax_backward_data smooth_l1_loss smooth_l1_loss_backward std
    std_mean sum sum_to_size upsample_bilinear2d upsample_bilinear2d_backward upsample_nearest2d
    upsample_nearest2d_backward var var_mean _weight_norm_interface _weight_norm_interface_backward
"""
# Random draws.
_RANDOM = """
    bernoulli cauchy exponential geometric log_normal multinomial native_dropout
    native_dropout_backward normal rand rand_like randint randint_like randn randn_like random
    randperm uniform
"""
# The optimizer's elementwise step in one call; its cost is memory traffic.
_OPTIMIZER = """
    _amp_foreach_non_finite_check_and_unscale _amp_update_scale _fused_adam _fused_adamw _fused_sgd
"""
# Marks for torch's own profiler.
_PROFILER = {"profiler::_record_function_enter_new", "profiler::_record_function_exit"}
# Numbers handed to Python, and checks.
_CONTROL = (
    "_assert_async _assert_scalar _assert_tensor_metadata is_nonzero item _local_scalar_dense"
)

_GROUPS = (
    _VIEWS,
    _COPIES,
    _GATHERS,
    _SELECTION,
    _ELEMENTWISE,
    _REDUCTIONS,
    _RANDOM,
    _OPTIMIZER,
    _CONTROL,
)
ARITHMETIC = frozenset(f"aten::{name}" for name in (_ELEMENTWISE + _REDUCTIONS).split())
"""Of the operators on :data:`ZERO_COST` those that compute, though no matrix product."""
ZERO_COST = frozenset(f"aten::{name}" for group in _GROUPS for name in group.split()) | _PROFILER
"""Operators that run without counting, as `namespace::name`."""


_WITHOUT_FORMULA = (
    "register a FLOP formula (torch.utils.flop_counter.register_flop_formula) or write the layer "
    "with operators that have one"
)


class UncountedOperatorError(ValueError):
    """Operators ran whose FLOPs cannot be vouched for.

    Args:
        operators: their names.
        why: the reason, and what to do; by default that they have no FLOP formula and are not on
            the zero-cost list.
    """

    def __init__(self, operators: tuple[str, ...], why: str = _WITHOUT_FORMULA) -> None:
        super().__init__(f"not counted: {', '.join(operators)}; {why}")
        self.operators = operators
        self.why = why

    def __reduce__(self) -> tuple[object, ...]:
        return (UncountedOperatorError, (self.operators, self.why))


Observer = Callable[[Any, str, tuple[Any, ...], dict[str, Any], Any, int | None], None]
"""Called after each operator with it, its plain name (:func:`plain_name`), arguments, result and
FLOPs; None where it has no formula."""


class StrictFlopCounter:
    """Counts FLOPs of what runs inside `with`, forward and backward, or refuses.

        with StrictFlopCounter() as counter:
            model(x).sum().backward()
        counter.total

    Attention's FLOPs on the CPU are only counted under `sdpa_kernel(SDPBackend.MATH)`; without it
    the counter names the operator that is not.

    Raises:
        UncountedOperatorError: on leaving the block, and on reading a count, if an operator ran
            that is neither in torch's registry of formulas nor on :data:`ZERO_COST`.
    """

    def __init__(self, observe: Observer | None = None) -> None:
        mended = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
        self._counter = FlopCounterMode(display=False, custom_mapping=mended)
        self._watch = _Watch(self._counter.flop_registry, observe)

    def __enter__(self) -> Self:
        # Entered first, so it sees what is left after the counter took composite operators apart.
        self._watch.uncounted.clear()
        self._watch.failed = ("", None)
        self._watch.__enter__()
        self._counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)
        self._watch.__exit__(*error)
        if error[0] is None:
            self._refuse_uncounted()

    @property
    def total(self) -> int:
        """FLOPs so far."""
        return sum(self.by_operator.values())

    @property
    def by_operator(self) -> dict[str, int]:
        """FLOPs so far by operator, as `namespace::name`."""
        return self.of_module("Global")

    def of_module(self, path: str) -> dict[str, int]:
        """Return FLOPs so far by operator inside a module, named as `Class.child.child`."""
        self._refuse_uncounted()
        return {
            operator_name(packet): flops
            for packet, flops in self._counter.get_flop_counts().get(path, {}).items()
        }

    def failed_in(self, error: BaseException) -> str | None:
        """Return the operator that raised an error, if one did."""
        name, raised = self._watch.failed
        return name if raised is error else None

    def is_registered_by_user(self, packet: Any) -> bool:
        """Return whether an operator's formula is neither torch's own nor isoflop's."""
        module = self._watch.formulas[packet].__module__
        return module.split(".")[0] != "isoflop" and module != FlopCounterMode.__module__

    def _refuse_uncounted(self) -> None:
        if self._watch.uncounted:
            raise UncountedOperatorError(tuple(sorted(self._watch.uncounted)))


class _Watch(TorchDispatchMode):
    """Notes every operator that runs and cannot be vouched for."""

    supports_higher_order_operators = True

    def __init__(self, formulas: dict[Any, Any], observe: Observer | None) -> None:
        super().__init__()
        self.formulas = formulas
        self.observe = observe
        self.uncounted: Counter[str] = Counter()
        self.failed: tuple[str, BaseException | None] = ("", None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "overloadpacket", func)
        name = plain_name(operator_name(packet))
        if packet not in self.formulas and name not in ZERO_COST:
            self.uncounted[operator_name(packet)] += 1
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            self.failed = (operator_name(packet), error)
            raise
        if self.observe is not None:
            formula = self.formulas.get(packet)
            flops = None if formula is None else formula(*args, **kwargs, out_val=out)
            self.observe(packet, name, args, kwargs, out, flops)
        return out


def _convolution_backward_flops(
    grad_out: Sequence[int], x: Sequence[int], weight: Sequence[int], *options: Any, **others: Any
) -> int:
    """Return FLOPs of a convolution's gradients by shapes, each as much work as forward.

    torch's own formula takes the gradient of a weight in groups for that of a dense one.
    """
    del others
    _, _, _, _, is_transposed, _, _, output_mask = options
    places = x if is_transposed else grad_out
    forward = 2 * grad_out[0] * math.prod(places[2:]) * math.prod(weight)
    return forward * sum(output_mask[:2])


def operator_name(packet: Any) -> str:
    """Return `namespace::name` of an operator without its overload."""
    if isinstance(packet, torch._ops.OpOverloadPacket):
        return packet._qualified_op_name
    if isinstance(packet, HigherOrderOperator):
        return f"higher_order::{packet.name()}"
    return str(packet)


def plain_name(name: str) -> str:
    """Return the name without the marks of its in-place and list forms, which do the same work."""
    namespace, _, operator = name.partition("::")
    operator = operator.removeprefix("_foreach_")
    if operator.endswith("_") and not operator.endswith("__"):
        operator = operator[:-1]
    return f"{namespace}::{operator}"
