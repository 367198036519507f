"""Both operators together, as a layer that routes and computes, under what training wraps it in."""

# T tokens, D width, C channels, K experts chosen per channel, N sub-keys per half

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from isoflop.model.flop_counter import StrictFlopCounter
from isoflop_kernels import gathered_linear, product_key_topk, stable_topk, use_implementation

D, C, K, N = 20, 3, 2, 5
REGISTERED = ("bag", "cpp")

every_implementation = pytest.mark.parametrize("implementation", ["reference", *REGISTERED])
both_precisions = pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])


def parameters() -> list[Tensor]:
    """The router, tables of N * N experts with product keys, tables of N experts without."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((D, 2 * C * N), (C, N * N, D), (C, N * N, D), (C, N, D), (C, N, D))
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def tokens(num_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randn(num_tokens, D, generator=generator).requires_grad_()


def layer(
    x_TD: Tensor, router: Tensor, w_in: Tensor, w_out: Tensor, few_in: Tensor, few_out: Tensor
) -> Tensor:
    """The product-key choice of sgatlin, then as in PEER one without product keys."""
    sim_T2CN = (x_TD @ router).view(-1, 2, C, N)
    score_TCK, idx_TCK = product_key_topk(sim_T2CN, K)
    y_TD = gathered_linear(x_TD, idx_TCK, score_TCK, w_in, w_out)
    score_TCK, idx_TCK = stable_topk(sim_T2CN[:, 0], K)
    arguments = (y_TD, idx_TCK, torch.softmax(score_TCK, -1), few_in, few_out)
    return gathered_linear(*arguments, "gelu_tanh", "act_then_gate")


def differentiate(function, x: Tensor, autocast: bool) -> list[Tensor]:
    """Output, then the gradients of tokens and parameters."""
    leaves = [x.detach().requires_grad_(), *parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = function(*leaves)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@every_implementation
@both_precisions
def test_activation_checkpointing_changes_no_bit(implementation, autocast):
    calls = []

    def checkpointed(*leaves: Tensor) -> Tensor:
        def counted(*leaves: Tensor) -> Tensor:
            calls.append(len(leaves))
            return layer(*leaves)

        return checkpoint(counted, *leaves, use_reentrant=False)

    with use_implementation(implementation):
        plain = differentiate(layer, tokens(17), autocast)
        again = differentiate(checkpointed, tokens(17), autocast)
    assert len(calls) == 2
    assert all(map(torch.equal, again, plain))


# Not the reference: a compiled backward pass runs in the autocast of the forward pass, and only an
# operation registered as one can keep it out.
@pytest.mark.slow
@pytest.mark.parametrize("implementation", REGISTERED)
@both_precisions
def test_compiles_to_one_graph_for_any_number_of_tokens(implementation, autocast):
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    with use_implementation(implementation):
        differentiate(compiled, tokens(9), autocast)
        for num_tokens in (17, 4):
            eager = differentiate(layer, tokens(num_tokens), autocast)
            with torch.compiler.set_stance("fail_on_recompile"):
                found = differentiate(compiled, tokens(num_tokens), autocast)
            assert all(map(torch.equal, found, eager))


@every_implementation
@both_precisions
def test_every_operation_of_the_layer_is_counted(implementation, autocast):
    with use_implementation(implementation), StrictFlopCounter() as counter:
        differentiate(layer, tokens(17), autocast)
    router, experts = 17 * D * 2 * C * N, 17 * C * K * 2 * D
    assert counter.total == 3 * 2 * (router + 2 * experts)


@every_implementation
@both_precisions
@pytest.mark.parametrize("compiled", [False, True])
def test_debug_refuses_experts_out_of_range(implementation, autocast, compiled, monkeypatch):
    monkeypatch.setenv("ISOFLOP_KERNELS_DEBUG", "1")
    run = torch.compile(gathered_linear, backend="aot_eager") if compiled else gathered_linear
    _, w_in, w_out, _, _ = parameters()
    idx_TCK = torch.zeros(9, C, K, dtype=torch.int32)
    idx_TCK[8, 1, 0] = N * N
    with (
        use_implementation(implementation),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pytest.raises(ValueError, match="idx_TCK has values 0 to 25: must be within 0 to 24"),
    ):
        run(tokens(9), idx_TCK, torch.zeros(9, C, K), w_in, w_out)
