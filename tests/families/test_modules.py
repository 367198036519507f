"""Feed-forward layers alone: parity with the reference, the gates hook, what MoE computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_values import family_and_config, feedforward_names, fixture, index, under, worst_error
from isoflop.families import family_names, get_build, get_spec
from isoflop.families._shared.module import build_router
from isoflop.families.sgatlin.spec import Config
from isoflop.model.activations import clamped_glu, gelu_tanh
from isoflop.model.init import initialise
from isoflop_kernels import use_implementation

TOLERANCE = 1e-5
LAYERS = [
    name
    for name, entry in index().items()
    if entry["kind"] == "layer" and "feedforward_config" in entry
]
ROUTED = [name for name in LAYERS if name.startswith(("sgl", "peer"))]


def layer(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    arrays = fixture(name)
    family, config = family_and_config(index()[name]["feedforward_config"])
    module = get_build(family)(config, 64)
    module.load_state_dict(feedforward_names(under(arrays, "param")))
    return module, arrays


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What the gates hook is given."""
    calls: list[tuple[Tensor, Tensor]] = []
    module.gates = lambda idx_TCK, score_TCK: calls.append((idx_TCK, score_TCK))
    yield calls
    module.gates = None


@pytest.mark.parametrize("implementation", ["reference", "bag"])
@pytest.mark.parametrize("name", LAYERS)
def test_parity(name: str, implementation: str) -> None:
    module, arrays = layer(name)
    x_TD = arrays["input"].flatten(0, 1).requires_grad_()
    with use_implementation(implementation):
        y_TD = module(x_TD)
    y_TD.backward(arrays["cotangent"].flatten(0, 1))
    assert worst_error(y_TD, arrays["output"].flatten(0, 1)) < TOLERANCE
    assert worst_error(x_TD.grad, arrays["grad_input"].flatten(0, 1)) < TOLERANCE
    gradients = {parameter: p.grad for parameter, p in module.named_parameters()}
    golden_grads = feedforward_names(under(arrays, "grad"))
    assert gradients.keys() == golden_grads.keys()
    for parameter, golden in golden_grads.items():
        assert worst_error(gradients[parameter], golden) < TOLERANCE, parameter


@pytest.mark.parametrize("implementation", ["reference", "bag"])
@pytest.mark.parametrize("name", ROUTED)
def test_gates_are_the_references_choice(name: str, implementation: str) -> None:
    module, arrays = layer(name)
    with recorded(module) as calls, use_implementation(implementation):
        module(arrays["input"].flatten(0, 1))
    ((idx_TCK, score_TCK),) = calls
    golden = under(arrays, "intermediates")
    (idx_key,) = (key for key in golden if key.endswith("indices"))
    (score_key,) = (key for key in golden if key.endswith("scores"))
    assert torch.equal(idx_TCK, golden[idx_key].flatten(0, 1))
    assert worst_error(score_TCK, golden[score_key].flatten(0, 1)) < TOLERANCE
    assert not score_TCK.requires_grad


@pytest.mark.parametrize("router", ["product_dense", "product_key_value", "dense", "key_value"])
def test_router_ties_go_to_the_lowest_index(router: str) -> None:
    shape = Config(num_channels=2, num_neighbours=3, num_experts=16, router_width=4, router=router)
    ours = build_router(shape, router, 8)
    for parameter in ours.parameters():
        nn.init.zeros_(parameter)
    score_TCK, idx_TCK = ours(torch.randn(5, 8))
    assert torch.equal(idx_TCK, torch.arange(3, dtype=torch.int32).expand(5, 2, 3))
    assert torch.equal(score_TCK, torch.zeros(5, 2, 3))


def moe(num_experts: int, num_active: int) -> nn.Module:
    config = get_spec("moe").Config(num_experts=num_experts, num_active=num_active, hidden_width=6)
    module = get_build("moe")(config, 8)
    initialise(module, 0)
    nn.init.normal_(module.bias1, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(module.bias2, generator=torch.Generator().manual_seed(2))
    return module


def test_moe_computes_only_the_chosen_experts() -> None:
    module = moe(4, 2)
    x_TD = torch.randn(7, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        # Every token prefers experts 3 and 1.
        module.gate.zero_()
        x_TD[:, 0] = 1.0
        module.gate[0] = torch.tensor([-3.0, 1.0, -3.0, 2.0])
        clean = module(x_TD)
        for parameter in (module.w1, module.bias1, module.w2, module.bias2):
            parameter[[0, 2]] = torch.nan
    x_TD.requires_grad_()
    y_TD = module(x_TD)
    assert torch.equal(y_TD, clean)
    y_TD.sum().backward()
    assert x_TD.grad.isfinite().all()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name
        if name != "gate":
            assert parameter.grad[[0, 2]].count_nonzero() == 0, name
            assert parameter.grad[[1, 3]].count_nonzero() > 0, name


@pytest.mark.parametrize("num_active", [1, 3, 5])
def test_moe_equals_all_experts_masked(num_active: int) -> None:
    module = moe(5, num_active)
    x_TD = torch.randn(23, 8, generator=torch.Generator().manual_seed(4))
    with recorded(module) as calls:
        y_TD = module(x_TD)
    weight_TE = torch.softmax(x_TD @ module.gate, dim=-1)
    chosen_TE = torch.zeros_like(weight_TE).scatter_(1, weight_TE.topk(num_active).indices, 1.0)
    hidden_TEF = clamped_glu(torch.einsum("td,edf->tef", x_TD, module.w1) + module.bias1)
    expert_TED = torch.einsum("tef,efd->ted", hidden_TEF, module.w2) + module.bias2
    expected = torch.einsum("te,ted->td", weight_TE * chosen_TE, expert_TED)
    torch.testing.assert_close(y_TD, expected, rtol=1e-5, atol=1e-5)
    ((idx_TCK, score_TCK),) = calls
    assert idx_TCK.shape == score_TCK.shape == (23, 1, num_active)
    assert idx_TCK.dtype == torch.int32
    torch.testing.assert_close(score_TCK[:, 0], weight_TE.gather(1, idx_TCK[:, 0].long()))


def test_moe_gradients_match_finite_differences() -> None:
    module = moe(3, 2).double()
    x_TD = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    names = [name for name, _ in module.named_parameters()]

    def call(x_TD: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x_TD,))

    values = [p.detach().requires_grad_() for p in module.parameters()]
    # The softmax over experts is taken in float32, so only the expert parameters are exact.
    frozen = [v if name != "gate" else v.detach() for name, v in zip(names, values, strict=True)]
    assert torch.autograd.gradcheck(
        lambda *v: call(x_TD, frozen[0], *v), frozen[1:], fast_mode=True
    )


@pytest.mark.parametrize("family", family_names())
def test_layers_of_every_family_flatten_nothing_and_keep_type(family: str) -> None:
    module = get_build(family)(get_spec(family).ladder(_micro(), 1), 16)
    initialise(module, 0)
    x_TD = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    assert module(x_TD).shape == (9, 16)
    # A token's output does not depend on its neighbours.
    torch.testing.assert_close(module(x_TD)[3:4], module(x_TD[3:4]), rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_TD = module(x_TD)
    assert y_TD.isfinite().all()


def _micro() -> object:
    from isoflop.recipe import get_recipe

    return get_recipe("micro-v1")


def test_gelu_is_torchs_tanh_form() -> None:
    x = torch.linspace(-30, 30, 4001, dtype=torch.float64, requires_grad=True)
    expected = F.gelu(x, approximate="tanh")
    torch.testing.assert_close(gelu_tanh(x), expected, rtol=1e-12, atol=1e-14)
    (ours,) = torch.autograd.grad(gelu_tanh(x).sum(), x)
    (golden,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(ours, golden, rtol=1e-12, atol=1e-13)
    large = torch.tensor([-1e6, -1e4, 1e4, 1e6], requires_grad=True)
    gelu_tanh(large).sum().backward()
    assert large.grad.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_glu_is_clamped_above_and_to_both_sides() -> None:
    z = torch.tensor([[9.0, -9.0, 1.0, 20.0, -20.0, 0.5]], dtype=torch.float64)
    gate = torch.tensor([7.0, -9.0, 1.0], dtype=torch.float64)
    linear = torch.tensor([7.0, -7.0, 0.5], dtype=torch.float64)
    expected = gate * torch.sigmoid(1.702 * gate) * (linear + 1)
    torch.testing.assert_close(clamped_glu(z)[0], expected)
