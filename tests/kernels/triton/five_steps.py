"""Five steps of training the routed families in Triton's interpreter equal those on CPU.

With the project's own optimizer, whose step does not shrink with the gradient: m / sqrt(v) carries
the gradient's relative error, which is large where the gradient is small. Where PEER's chosen
experts of a token share a sub-key, the gradient of its key is that of a sum of softmax weights, so
exactly 0; float32 leaves 1e-10 of it (float64: 1e-19) with another sign in each implementation, the
plain reference on the CPU too, and AdamW makes full steps of that. So a parameter's bound comes
from its gradients; losses, choices and gradients need no such allowance.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from isoflop.families import get_build, get_spec
from isoflop.recipe import MICRO_V1
from isoflop.train.optimizer import build_adamw, set_learning_rate
from isoflop_kernels import use_implementation

D_MODEL = 12
NUM_STEPS = 5
LEARNING_RATE = MICRO_V1.peak_lr
# Of float32 sums, as a part of the largest entry.
ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Five steps: what each found, and the parameters after the last."""

    losses: list[Tensor]
    choices: list[Tensor]
    gradients: list[dict[str, Tensor]]
    parameters: dict[str, Tensor]


def train(family: str, implementation: str) -> Trained:
    config = get_spec(family).Config(
        num_channels=2, num_neighbours=2, num_experts=16, router_width=6
    )
    torch.manual_seed(0)
    layer = get_build(family)(config, D_MODEL)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, target = torch.randn(2, 8, D_MODEL).unbind(0)
    optimizer = build_adamw(
        layer.named_parameters(),
        weight_decay=MICRO_V1.weight_decay,
        beta1=MICRO_V1.beta1,
        beta2=MICRO_V1.beta2,
        eps=MICRO_V1.eps,
    )
    set_learning_rate(optimizer, LEARNING_RATE)
    losses, choices, gradients = [], [], []
    layer.gates = lambda idx_TCK, score_TCK: choices.append(idx_TCK)
    with use_implementation(implementation):
        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            loss = (layer(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            gradients.append({name: p.grad.clone() for name, p in layer.named_parameters()})
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    return Trained(losses=losses, choices=choices, gradients=gradients, parameters=parameters)


def parameter_bound(trained: Trained, name: str) -> Tensor:
    """How far rounding of the gradients may have moved each entry: at most, each step went back."""
    steps = torch.stack([gradients[name].abs() for gradients in trained.gradients])
    smallest = torch.where(steps > 0, steps, torch.inf).amin(0)
    relative_error = (ROUNDING * steps.max() / smallest).clamp(max=1.0)
    return 2 * LEARNING_RATE * NUM_STEPS * relative_error + ROUNDING


@pytest.mark.parametrize("family", ["peer", "sgatlin"])
def test_five_steps_equal_those_on_cpu(family):
    ours, cpu = train(family, "triton"), train(family, "bag")
    assert ours.losses[-1] < ours.losses[0]
    assert all(map(torch.equal, ours.choices, cpu.choices))
    torch.testing.assert_close(ours.losses, cpu.losses, rtol=ROUNDING, atol=0)
    for actual, expected in zip(ours.gradients, cpu.gradients, strict=True):
        for name, gradient in expected.items():
            assert (actual[name] - gradient).abs().max() <= ROUNDING * gradient.abs().max(), name
    for name, expected in cpu.parameters.items():
        bound = parameter_bound(cpu, name)
        assert ((ours.parameters[name] - expected).abs() <= bound).all(), name
        # The allowance is for few: for most it is hundreds of times smaller than a step.
        assert bound.median() < LEARNING_RATE / 100, name
        assert (bound > LEARNING_RATE).float().mean() < 0.2, name
