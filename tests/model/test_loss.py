"""The head's loss in chunks: equal to whole logits, in less memory, under every context."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.families import family_names
from isoflop.model import Transformer, build_model, loss, next_token_loss
from isoflop.model.flop_counter import StrictFlopCounter
from isoflop.plan.estimate import memory
from made_shapes import rung_spec

VOCABULARY, WIDTH = 97, 12
# Tokens of a chunk, chosen so that the last one is short.
CHUNK = 10


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "MAX_LOGIT_BYTES", 0)
    monkeypatch.setattr(loss, "CHUNK_BYTES", {"cpu": CHUNK * VOCABULARY * 4})


def made(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 11, WIDTH, generator=generator, requires_grad=True)
    # Scaled up: peaked distributions, whose exponentials would overflow unshifted.
    embedding = (20 * torch.randn(VOCABULARY, WIDTH, generator=generator)).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (3, 11), generator=generator)
    targets[1, 4:] = 0
    return x, embedding, targets


def by_definition(x: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    logits = x.double() @ embedding.double().T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum")


def gradients(value: Tensor, *tensors: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, tensors))


def test_loss_and_gradients_are_those_of_whole_logits(chunked: None) -> None:
    x, embedding, targets = made()
    found, expected = loss.unembedded_loss(x, embedding, targets), by_definition(*made())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    x_, embedding_, _ = made()
    exact = gradients(by_definition(x_, embedding_, targets) / 7, x_, embedding_)
    for ours, reference in zip(gradients(found / 7, x, embedding), exact, strict=True):
        assert (ours - reference).abs().max() < 1e-5 * reference.abs().max()


def test_padding_has_no_gradient(chunked: None) -> None:
    x, embedding, targets = made()
    loss.unembedded_loss(x, embedding, targets).backward()
    assert not x.grad[targets == 0].any()
    assert x.grad[targets != 0].any(1).all()
    all_padding = torch.zeros_like(targets)
    x, embedding, _ = made()
    loss.unembedded_loss(x, embedding, all_padding).backward()
    assert not x.grad.any()
    assert not embedding.grad.any()


def test_one_gradient_alone_and_none(chunked: None) -> None:
    x, embedding, targets = made()
    (alone,) = gradients(loss.unembedded_loss(x, embedding.detach(), targets), x)
    both = gradients(loss.unembedded_loss(x, embedding, targets), x, embedding)
    assert torch.equal(alone, both[0])
    with torch.no_grad():
        value = loss.unembedded_loss(x, embedding, targets)
    assert not value.requires_grad
    assert value.item() == pytest.approx(by_definition(*made()).item(), rel=1e-6)


def test_losses_one_by_one_are_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, embedding, targets = made()
    whole = loss.unembedded_token_losses(x, embedding, targets)
    monkeypatch.setattr(loss, "MAX_LOGIT_BYTES", 0)
    monkeypatch.setattr(loss, "CHUNK_BYTES", {"cpu": CHUNK * VOCABULARY * 4})
    parts = loss.unembedded_token_losses(x, embedding, targets)
    assert parts.shape == targets.shape
    assert torch.allclose(parts, whole, rtol=1e-6, atol=1e-6)
    assert not parts[targets == 0].any()
    assert parts.sum().item() == pytest.approx(by_definition(*made()).item(), rel=1e-6)


def test_no_chunk_exceeds_its_size(chunked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = loss._losses_and_gradient
    monkeypatch.setattr(
        loss, "_losses_and_gradient", lambda a, t, g: (sizes.append(a.shape[0]), real(a, t, g))[1]
    )
    loss.unembedded_loss(*made())
    assert sizes == [10, 10, 10, 3]


def test_nothing_is_computed_twice(chunked: None) -> None:
    x, embedding, targets = made()
    with StrictFlopCounter() as counter:
        value = loss.unembedded_loss(x, embedding, targets)
        value.backward()
    assert counter.total == 3 * 2 * targets.numel() * VOCABULARY * WIDTH


@pytest.mark.parametrize("family", family_names())
def test_a_models_losses_are_those_of_its_logits(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(rung_spec(family, 1, "micro-v1"))
    inputs = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    targets[0, :2] = 0
    num_targets = int((targets != 0).sum())
    mean = next_token_loss(model(inputs), targets)
    # Bit for bit: committed results come from the mean.
    assert torch.equal(model(inputs, targets) / float(num_targets), mean)
    expected = gradients(mean, *model.parameters())
    found = gradients(model(inputs, targets) / float(num_targets), *model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    losses = model.token_losses(inputs, targets)
    assert torch.equal(losses, loss.token_losses(model(inputs), targets))
    monkeypatch.setattr(loss, "MAX_LOGIT_BYTES", 0)
    monkeypatch.setattr(loss, "CHUNK_BYTES", {"cpu": 5 * 256 * 4})
    again = gradients(model(inputs, targets) / float(num_targets), *model.parameters())
    for whole, parts in zip(expected, again, strict=True):
        assert (whole - parts).abs().max() <= 1e-5 * whole.abs().max()


def test_the_head_computes_in_float32_under_autocast(chunked: None) -> None:
    model = build_model(rung_spec("mlp", 1, "micro-v1"))
    tokens = torch.randint(1, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        summed = model(tokens, tokens)
        logits = model(tokens)
    assert summed.dtype == logits.dtype == torch.float32
    mean = next_token_loss(logits, tokens)
    assert summed.item() / tokens.numel() == pytest.approx(mean.item(), rel=1e-6)


def rounded(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().bfloat16().double() for tensor in tensors]


def test_the_head_in_bf16_rounds_operands_and_nothing_else(chunked: None) -> None:
    x, embedding, targets = made()
    embedding = (embedding.detach() / 20).requires_grad_()
    found = loss.unembedded_loss(x, embedding, targets, bf16=True)
    found_x, found_embedding = gradients(found, x, embedding)
    read_x, read_embedding = (t.requires_grad_() for t in rounded(x, embedding))
    expected = by_definition(read_x, read_embedding, targets)
    assert found.dtype == found_embedding.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    logits = (read_x @ read_embedding.T).detach().requires_grad_()
    whole = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum"
    )
    (grad,) = gradients(whole, logits)
    (grad_read,) = rounded(grad.float())
    for ours, exact in (
        (found_x, grad_read @ read_embedding),
        (found_embedding, grad_read.flatten(0, 1).T @ read_x.flatten(0, 1)),
    ):
        # A number of a logit's gradient between two of bfloat16 may be rounded to either.
        assert (ours - exact).abs().max() < 1e-4 * exact.abs().max()
        assert (ours.view(torch.int32) & 0xFFFF).any()
    losses = loss.unembedded_token_losses(x, embedding, targets, bf16=True)
    with torch.no_grad():
        same = loss.unembedded_token_losses(x, embedding, targets, bf16=True)
    assert torch.allclose(same, losses, rtol=1e-5, atol=1e-5)
    assert losses.sum().item() == pytest.approx(expected.item(), rel=1e-6)
    logits = loss.unembed(x, embedding, bf16=True).double()
    assert torch.allclose(logits, read_x @ read_embedding.T, rtol=1e-5, atol=1e-5)


class Made(TorchDispatchMode):
    """Types of what operators make, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.casts: set[tuple[torch.Size, torch.dtype]] = set()
        self.products: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.casts.add((result.shape, result.dtype))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.products.append(str(func))
            assert [a.dtype for a in args[:2]] == [torch.bfloat16] * 2
        return result


def test_the_head_in_bf16_makes_no_float32_copy_of_its_operands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Off the CPU, where products add up bfloat16 in float32; meta stands for a GPU.
    monkeypatch.setattr(loss, "MAX_LOGIT_BYTES", 0)
    monkeypatch.setattr(loss, "CHUNK_BYTES", {"meta": CHUNK * VOCABULARY * 4})
    x, embedding, targets = (tensor.detach().to("meta") for tensor in made())
    x, embedding = x.bfloat16().requires_grad_(), embedding.requires_grad_()
    with Made() as seen:
        loss.unembedded_loss(x, embedding, targets, bf16=True).backward()
        with torch.no_grad():
            loss.unembedded_token_losses(x, embedding, targets, bf16=True)
    assert len(seen.products) == 4 * 3 + 4
    assert {name.split(".")[2] for name in seen.products} == {"dtype_out"}
    wide = {shape for shape, dtype in seen.casts if dtype == torch.float32}
    assert not wide & {x.shape, x.flatten(0, 1).shape, embedding.shape}
    assert (embedding.shape, torch.bfloat16) in seen.casts


def test_a_models_head_rounds_where_it_is_told_to() -> None:
    model = build_model(rung_spec("mlp", 1, "micro-v1"))
    tokens = torch.randint(1, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    exact = [model(tokens), model(tokens, tokens), model.token_losses(tokens, tokens)]
    model.head_in_bf16 = True
    half = [model(tokens), model(tokens, tokens), model.token_losses(tokens, tokens)]
    for a, b in zip(exact, half, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert torch.allclose(a, b, rtol=0.02, atol=0.02)
    assert half[2].sum().item() == pytest.approx(half[1].item(), rel=1e-6)


@pytest.mark.parametrize("family", family_names())
def test_the_residual_stream_is_float32_under_autocast(family: str) -> None:
    spec = dataclasses.replace(rung_spec(family, 1, "micro-v1"), n_layers=2)
    model = build_model(spec)
    stream: list[torch.dtype] = []
    branches: list[torch.dtype] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: stream.extend((args[0].dtype, out.dtype)))
        block.attention.register_forward_hook(lambda _, args, out: branches.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.ones(1, 5, dtype=torch.int64))
    assert set(stream) == {torch.float32}
    # Else nothing would be computed in bf16 at all.
    assert set(branches) == {torch.bfloat16}


def test_the_estimate_knows_the_chunks() -> None:
    assert memory.MAX_LOGIT_BYTES == loss.MAX_LOGIT_BYTES
    assert memory.CHUNK_BYTES == loss.CHUNK_BYTES["cuda"] >= loss.CHUNK_BYTES["cpu"]


PEAK_OF_A_HEAD = """
import sys, torch
from isoflop.model import loss
from isoflop.train.memory import peak_bytes, reset_peak
torch.set_num_threads(1)
cpu = torch.device("cpu")
if sys.argv[1] == "whole":
    loss.MAX_LOGIT_BYTES = 2**60
x = torch.randn(1, 1536, 64, requires_grad=True)
embedding = torch.randn(50258, 64, requires_grad=True)
targets = torch.randint(1, 50258, (1, 1536))
loss.unembedded_loss(x[:, :2], embedding, targets[:, :2]).backward()
reset_peak(cpu)
before = peak_bytes(cpu)
loss.unembedded_loss(x, embedding, targets).backward()
print(peak_bytes(cpu) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_large_vocabulary_takes_a_fraction_of_its_logits() -> None:
    logits = 1536 * 50258 * 4
    peaks = {
        kind: int(
            subprocess.run(
                [sys.executable, "-c", PEAK_OF_A_HEAD, kind],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for kind in ("whole", "chunks")
    }
    assert peaks["whole"] > 2 * logits
    # With what the matrix library sets up at first use.
    assert peaks["chunks"] < 0.5 * logits


def test_checkpointing_recomputes_the_same_gradients_bit_for_bit() -> None:
    tokens = torch.randint(1, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    for family in family_names():
        model: Transformer = build_model(rung_spec(family, 2, "micro-v1"))
        kept = gradients(model(tokens, tokens), *model.parameters())
        model.checkpoint_activations = True
        calls: list[int] = []
        model.blocks[0].attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        recomputed = gradients(model(tokens, tokens), *model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True)), family
        assert len(calls) == 2, family
        with torch.no_grad():
            model(tokens, tokens)
        assert len(calls) == 3, family
