"""Activations and gate orders inside Triton kernels: `gates.py`, element by element."""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
# Triton has no types, may be absent, and reads signatures itself: it knows only constexpr.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(u):
    """Return 1 / (1 + exp(-u)) without the overflow for large negative u."""
    decay = tl.exp(-tl.abs(u))
    return tl.where(u >= 0, 1.0, decay) / (1.0 + decay)


@triton.jit
def sigmoid_slope(u):
    """Return sigmoid(u) * (1 - sigmoid(u)) without the cancellation."""
    decay = tl.exp(-tl.abs(u))
    return decay / ((1.0 + decay) * (1.0 + decay))


@triton.jit
def activate(u, ACTIVATION: tl.constexpr):
    """Apply the activation; gelu_tanh is u * sigmoid(2 v), as (1 + tanh(v)) / 2 is sigmoid(2 v)."""
    if ACTIVATION == "relu":
        return tl.where(u <= 0, 0.0, u)
    elif ACTIVATION == "gelu_tanh":
        return u * sigmoid(1.5957691216057308 * (u + 0.044715 * u * u * u))
    elif ACTIVATION == "silu":
        return u * sigmoid(u)
    else:
        return u


@triton.jit
def slope(u, ACTIVATION: tl.constexpr):
    """Return the derivative of the activation at u; 0 at 0 for relu, as in torch."""
    if ACTIVATION == "relu":
        return tl.where(u <= 0, 0.0, 1.0)
    elif ACTIVATION == "gelu_tanh":
        v = 1.5957691216057308 * (u + 0.044715 * u * u * u)
        dv = 1.5957691216057308 * (1.0 + 0.134145 * u * u)
        return sigmoid(v) + u * sigmoid_slope(v) * dv
    elif ACTIVATION == "silu":
        return sigmoid(u) + u * sigmoid_slope(u)
    else:
        return tl.full(u.shape, 1.0, tl.float32)


@triton.jit
def gate(h, score, ACTIVATION: tl.constexpr, GATE_ORDER: tl.constexpr):
    """Weight z of an expert's output row."""
    if GATE_ORDER == "gate_then_act":
        return activate(h * score, ACTIVATION)
    else:
        return activate(h, ACTIVATION) * score


@triton.jit
def gate_backward(dz, h, score, ACTIVATION: tl.constexpr, GATE_ORDER: tl.constexpr):
    """Return the gradients of h and of the score, from that of z."""
    if GATE_ORDER == "gate_then_act":
        du = dz * slope(h * score, ACTIVATION)
        return du * score, du * h
    else:
        return dz * score * slope(h, ACTIVATION), dz * activate(h, ACTIVATION)
