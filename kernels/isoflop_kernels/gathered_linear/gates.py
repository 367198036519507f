"""Activations, the two gate orders, and the numbers of experts: their check, their rows."""

# T tokens, C channels, K experts chosen per channel, E experts per table

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("identity", "relu", "gelu_tanh", "silu")
GATE_ORDERS = ("gate_then_act", "act_then_gate")


def flat_rows(idx_TCK: Tensor, num_tables: int, num_experts: int) -> Tensor:
    """Return each chosen expert's row in the table flattened to [Ct * E, D]: [T, C*K], same dtype.

    Channel c owns the rows from c * E on; a shared table (`num_tables` = 1) has no such offset.
    """
    num_tokens, num_channels, num_chosen = idx_TCK.shape
    rows_TM = idx_TCK.reshape(num_tokens, num_channels * num_chosen)
    if num_tables == 1:
        return rows_TM
    first_C = torch.arange(num_channels, dtype=idx_TCK.dtype, device=idx_TCK.device) * num_experts
    return rows_TM + first_C.repeat_interleave(num_chosen)


def activate(u: Tensor, activation: str) -> Tensor:
    """Apply the activation by name; gelu is the tanh approximation."""
    match activation:
        case "relu":
            return F.relu(u)
        case "gelu_tanh":
            return F.gelu(u, approximate="tanh")
        case "silu":
            return F.silu(u)
        case _:
            return u


def activate_backward(grad: Tensor, u: Tensor, activation: str) -> Tensor:
    """Return `grad` times the derivative of the activation at `u`."""
    match activation:
        case "relu":
            return torch.ops.aten.threshold_backward(grad, u, 0)
        case "gelu_tanh":
            return torch.ops.aten.gelu_backward(grad, u, approximate="tanh")
        case "silu":
            return torch.ops.aten.silu_backward(grad, u)
        case _:
            return grad


def gate(h: Tensor, score: Tensor, activation: str, gate_order: str) -> Tensor:
    """Weight z of an expert's output row, from its dot product h and its score.

    `gate_then_act` is act(h * score), as in the code of arXiv 2606.07414; `act_then_gate` is
    act(h) * score, as in PEER (arXiv 2407.04153).
    """
    if gate_order == "gate_then_act":
        return activate(h * score, activation)
    return activate(h, activation) * score


def gate_backward(
    grad_z: Tensor, h: Tensor, score: Tensor, activation: str, gate_order: str
) -> tuple[Tensor, Tensor]:
    """Return gradients of h and of the score, from the gradient of z = gate(h, score)."""
    if gate_order == "gate_then_act":
        grad_u = activate_backward(grad_z, h * score, activation)
        return grad_u * score, grad_u * h
    grad_score = grad_z * activate(h, activation)
    return activate_backward(grad_z * score, h, activation), grad_score


def check_range(idx_TCK: Tensor, num_experts: int) -> None:
    """Refuse expert numbers outside 0 .. num_experts - 1; on an accelerator this waits for it.

    Raises:
        ValueError: with the smallest and largest expert number given.
    """
    if idx_TCK.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(idx_TCK))
    if low < 0 or high >= num_experts:
        raise ValueError(
            f"idx_TCK has values {low} to {high}: must be within 0 to {num_experts - 1}"
        )
