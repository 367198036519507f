"""Five steps of training the routed families in Triton's interpreter equal those on CPU."""

from __future__ import annotations

import pytest
import torch

from isoflop.families.peer import module as peer_module
from isoflop.families.peer import spec as peer_spec
from isoflop.families.sgatlin import module as sgatlin_module
from isoflop.families.sgatlin import spec as sgatlin_spec
from isoflop_kernels import use_implementation

D_MODEL = 12


def train(module, config, implementation: str) -> list[torch.Tensor]:
    """Losses of the steps and the parameters after the last."""
    torch.manual_seed(0)
    layer = module.build(config, D_MODEL)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, target = torch.randn(2, 8, D_MODEL).unbind(0)
    # Not Adam, which makes full steps of gradients that are nothing but rounding.
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    found = []
    with use_implementation(implementation):
        for _ in range(5):
            optimizer.zero_grad()
            loss = (layer(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
    assert found[-1] < found[0]
    return [*found, *(p.detach() for p in layer.parameters())]


@pytest.mark.parametrize("family", ["peer", "sgatlin"])
def test_five_steps_equal_those_on_cpu(family):
    module, spec = (peer_module, peer_spec) if family == "peer" else (sgatlin_module, sgatlin_spec)
    config = spec.Config(num_channels=2, num_neighbours=2, num_experts=16, router_width=6)
    results = (train(module, config, name) for name in ("triton", "bag"))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
