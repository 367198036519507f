"""What `isoflop.count` cannot vouch for is refused by name; torch's own counter is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

import isoflop
from isoflop.errors import UserError
from isoflop.model.flop_counter import UncountedOperatorError

WIDTH, LENGTH, VOCAB = 16, 8, 50
IDS = torch.zeros(2, LENGTH, dtype=torch.long)
PLAIN = 3 * 2 * (WIDTH * WIDTH + WIDTH * VOCAB)
"""Of the model below without a middle."""

Middle = Callable[["Model", Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, middle: Middle, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.middle = middle
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, VOCAB)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.middle(self, self.first(self.embedding(ids))))


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def torchs_own(model: nn.Module) -> int:
    """FLOPs for each token of torch's counter, forward and backward, on the CPU."""
    with FlopCounterMode(display=False) as counter:
        model(IDS).sum().backward()
    return counter.get_total_flops() // IDS.numel()


@torch.library.custom_op("isoflop_tests::selective_scan", mutates_args=())
def selective_scan(x: Tensor) -> Tensor:
    return x.cumsum(1)


selective_scan.register_fake(torch.empty_like)
selective_scan.register_autograd(lambda ctx, grad: grad)


def scan(model: Any, x: Tensor) -> Tensor:
    """As a Mamba's: a state that is scaled and added to, token by token."""
    decay = torch.sigmoid(model.decay(x))
    state, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + x[:, t]
        states.append(state)
    return torch.stack(states, 1)


def outer_state(model: Any, x: Tensor) -> Tensor:
    """As linear attention's, token by token and without a decay."""
    state, outputs = torch.zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        state = state + x[:, t, :, None] * x[:, t, None]
        outputs.append((x[:, t, None] @ state)[:, 0])
    return torch.stack(outputs, 1)


def flex(model: Any, x: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(x[:, None], x[:, None], x[:, None])[:, 0]


def higher_order_scan(model: Any, x: Tensor) -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan

    return associative_scan(torch.add, x, 1, combine_mode="generic")


class OwnCheckpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return module(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            y = ctx.module(x.detach().requires_grad_())
        y.backward(grad)
        return grad, None


def chosen_experts(model: Any, x: Tensor) -> Tensor:
    _, index = model.router(x).topk(2, -1)
    out = torch.zeros_like(x)
    for number, expert in enumerate((model.first, model.decay)):
        rows = torch.where((index == number).any(-1))
        out = out.index_put(rows, expert(x[rows]))
    return out


REFUSED: dict[str, tuple[Middle, str]] = {
    "custom operator": (lambda m, x: selective_scan(x), "isoflop_tests::selective_scan"),
    "scan in a loop": (scan, "aten::mul in a loop over tokens in the model"),
    "scan by sums": (lambda m, x: x.cumsum(1), "aten::cumsum"),
    "lstm": (lambda m, x: m.lstm(x)[0], "aten::lstm"),
    "flex attention": (flex, "flex_attention"),
    "higher order": (higher_order_scan, "higher_order::associative_scan"),
    "cond": (
        lambda m, x: torch.cond(x.sum() > 0, lambda y: y @ y.mT, lambda y: y @ y.mT, (x,)) @ x,
        "higher_order::cond",
    ),
    "routing by values": (chosen_experts, "aten::nonzero"),
    "a number": (lambda m, x: x * x.sum().item(), "aten::_local_scalar_dense, torch.Tensor.item"),
    "a branch": (lambda m, x: x if x.sum() > 0 else -x, "torch.Tensor.__bool__"),
    "numpy": (lambda m, x: x + torch.from_numpy(x.detach().cpu().numpy()), "torch.Tensor.numpy"),
    "inference mode": (
        lambda m, x: x + torch.inference_mode()(m.decay)(x.detach()),
        "torch.inference_mode",
    ),
    "recomputation": (lambda m, x: OwnCheckpoint.apply(x, m.decay), "Linear.forward"),
    "a product as a sum": (
        lambda m, x: (x[..., None] * m.matrix).sum(-2),
        "aten::mul and aten::sum in the model",
    ),
    "a product as a mean of a chain": (
        lambda m, x: (x[..., None].double() * m.matrix * x.mean()).float().mean(-2),
        "aten::mul and aten::sum in the model",
    ),
    "a product as a loop of sums": (
        lambda m, x: sum(x[..., k : k + 1] * m.matrix[k] for k in range(WIDTH)),
        "aten::mul and aten::sum in the model",
    ),
    "a state that is added to": (outer_state, "aten::mul and aten::sum in the model"),
    "fourier": (lambda m, x: torch.fft.fft(x).real, "aten::_fft_r2c"),
}


def made(middle: Middle) -> Model:
    return Model(
        middle,
        decay=linear(),
        router=nn.Linear(WIDTH, 2),
        lstm=nn.LSTM(WIDTH, WIDTH, batch_first=True),
        matrix=nn.Parameter(torch.zeros(WIDTH, WIDTH)),
    )


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    middle, name = REFUSED[case]
    with pytest.raises(UncountedOperatorError) as caught:
        isoflop.count(made(middle), IDS)
    assert name in str(caught.value)
    assert (
        "declare the FLOPs" in str(caught.value)
        or "formula" in str(caught.value)
        or case
        in (
            "inference mode",
            "recomputation",
        )
    )


def test_a_raw_kernel_is_named() -> None:
    triton = pytest.importorskip("triton")

    @triton.jit
    def scan_kernel(x: Any) -> None:
        pass

    def launch(model: Any, x: Tensor) -> Tensor:
        scan_kernel[(1,)](x)
        return x

    with pytest.raises(UncountedOperatorError, match="triton::scan_kernel; a kernel does not run"):
        isoflop.count(made(launch), IDS)


def test_gates_norms_and_streams_are_no_products() -> None:
    """Outer products that are not summed up, and a residual stream that some are added to."""

    def middle(model: Any, x: Tensor) -> Tensor:
        for row in model.matrix[:4]:
            x = x + torch.sigmoid(x[..., :1]) * row
        streams = x[..., :4, None] * x[..., None, :]
        streams = streams * (streams * streams).mean(-1, keepdim=True).rsqrt()
        return model.decay(streams).mean(-2)

    training = isoflop.count(made(middle), IDS).training_flops
    assert training == PLAIN + 3 * 2 * 4 * WIDTH * WIDTH


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_modules_out_of_reach_are_named() -> None:
    script = torch.jit.trace(linear(), torch.zeros(1, WIDTH))
    with pytest.raises(UncountedOperatorError, match=r"torch\.jit in 1"):
        isoflop.count(nn.Sequential(linear(), script), torch.zeros(2, WIDTH))
    with pytest.raises(UserError, match=r"1\.weight.*known shape"):
        isoflop.count(nn.Sequential(linear(), nn.LazyLinear(3)), torch.zeros(2, WIDTH))


def test_torchs_own_counter_says_nothing_of_these() -> None:
    assert torchs_own(made(lambda m, x: x)) == PLAIN
    for case in ("custom operator", "scan in a loop", "scan by sums", "a product as a sum"):
        assert torchs_own(made(REFUSED[case][0])) - PLAIN in (0, 6 * WIDTH * WIDTH)
    # On the CPU attention counts 0 too, and a recomputed layer counts as the model's.
    attend = made(lambda m, x: F.scaled_dot_product_attention(*3 * (x[:, None],))[:, 0])
    assert torchs_own(attend) == PLAIN
    assert isoflop.count(attend, IDS).training_flops == PLAIN + 3 * 4 * LENGTH * WIDTH
    again = made(lambda m, x: checkpoint(m.decay, x, use_reentrant=True))
    assert torchs_own(again) > PLAIN + 6 * WIDTH * WIDTH


def test_a_registered_formula_is_counted_and_marked_as_declared() -> None:
    scans = torch.ops.isoflop_tests.selective_scan
    register_flop_formula(scans)(lambda x_shape, *args, **kwargs: 2 * x_shape.numel())
    try:
        count = isoflop.count(made(REFUSED["custom operator"][0]), IDS)
    finally:
        del flop_registry[scans]
    assert count.declared_operators == ("isoflop_tests::selective_scan",)
    # Its backward pass has no products.
    assert count.training_flops == PLAIN + 2 * WIDTH
    assert count.flops_by_component["other"] == 2 * WIDTH * (1 + WIDTH)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(use_reentrant: bool) -> None:
    again = made(lambda m, x: checkpoint(m.decay, x, use_reentrant=use_reentrant))
    assert isoflop.count(again, IDS).training_flops == PLAIN + 6 * WIDTH * WIDTH


def test_devices_types_and_chosen_backends_change_nothing() -> None:
    def moved(model: Any, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            x = model.decay(x.cuda().to("cuda", torch.float32))
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            x = F.scaled_dot_product_attention(*3 * (x[:, None],), is_causal=True)[:, 0]
        return x + torch.ones(WIDTH, device="cuda") * torch.arange(WIDTH, device=x.device)

    count = isoflop.count(made(moved), IDS)
    assert count.training_flops == PLAIN + 6 * WIDTH * WIDTH + 3 * 4 * LENGTH * WIDTH


def test_the_module_is_as_it_was() -> None:
    model = made(lambda m, x: setattr(m, "kept", x) or x)
    model.eval()
    model.out.weight.requires_grad_(False)
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    # Only the gradient of its input is computed.
    assert isoflop.count(model, IDS).training_flops == PLAIN - 2 * WIDTH * VOCAB
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert not model.training
    assert not hasattr(model, "kept")
    assert all(p.grad is None and not p.is_meta for p in model.parameters())
    assert torch.autocast is torch.amp.autocast_mode.autocast
    assert torch.ones(1).device.type == "cpu"


def test_whatever_calls_the_module() -> None:
    model = made(lambda m, x: x)

    class Wrapper:
        def __init__(self) -> None:
            self.held = [model]

        def parameters(self) -> Any:
            return model.parameters()

        def __call__(self, ids: Tensor) -> dict[str, Tensor]:
            return {"loss": self.held[0](ids).mean(), "other": torch.zeros(3)}

    expected = isoflop.count(model, IDS)
    for other in (Wrapper(), lambda ids: model(ids).logsumexp(-1), model.forward):
        count = isoflop.count(other, IDS)
        assert count.training_flops == expected.training_flops == PLAIN
        assert count.n_params == expected.n_params


def test_what_cannot_run_or_learns_nothing_is_said() -> None:
    with pytest.raises(UserError, match="shapes of its example inputs.*same reduction dim"):
        isoflop.count(nn.Linear(3, 4), torch.zeros(5))
    with pytest.raises(UserError, match="depends on a trained parameter"):
        isoflop.count(linear().requires_grad_(False), torch.zeros(5, WIDTH))
    with pytest.raises(UserError, match="with a tensor"):
        isoflop.count(linear())
    with pytest.raises(UserError, match="one with a matrix product"):
        isoflop.count(nn.LayerNorm(WIDTH), torch.zeros(5, WIDTH))
