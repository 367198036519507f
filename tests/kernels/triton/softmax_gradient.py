"""The gradient of cross-entropy in Triton's interpreter; run by `test_triton_interpreter.py`."""

# R tokens, V vocabulary

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from isoflop.model import loss
from isoflop_kernels import cross_entropy, use_implementation

VOCABULARY, WIDTH = 97, 12


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Blocks of which a row has several, the last one short."""
    monkeypatch.setattr(cross_entropy, "BLOCK", 32)
    monkeypatch.setattr(loss, "MAX_LOGIT_BYTES", 0)
    monkeypatch.setattr(loss, "CHUNK_BYTES", {"cpu": 5 * VOCABULARY * 4})


def made(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logit_RV = scale * torch.randn(9, VOCABULARY, generator=generator)
    target_R = torch.randint(1, VOCABULARY, (9,), generator=generator)
    target_R[2] = 0
    target_R[3] = VOCABULARY - 1
    return logit_RV, target_R


def exact(logit_RV, target_R):
    logit_RV = logit_RV.double().requires_grad_()
    loss_R = F.cross_entropy(logit_RV, target_R, ignore_index=0, reduction="none")
    loss_R.sum().backward()
    return loss_R.detach(), logit_RV.grad


# 1,000: exponentials that would overflow unshifted, and logits all alike.
@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_in_place_and_in_memory_with_gaps(scale, block, monkeypatch):
    monkeypatch.setattr(cross_entropy, "BLOCK", block)
    logit_RV, target_R = made(scale)
    expected_R, expected_RV = exact(logit_RV, target_R)
    apart = torch.full((9, 128), torch.nan)[:, :VOCABULARY]
    apart.copy_(logit_RV)
    loss_R = cross_entropy.losses_and_gradient(apart, target_R, apart, ignored=0)
    torch.testing.assert_close(loss_R.double(), expected_R, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(apart.double(), expected_RV, rtol=1e-5, atol=1e-6)
    assert loss_R[2] == 0
    assert not apart[2].any()
    half_RV = torch.empty_like(logit_RV, dtype=torch.float16)
    cross_entropy.losses_and_gradient(logit_RV, target_R, half_RV, ignored=0)
    torch.testing.assert_close(half_RV.double(), expected_RV, rtol=1e-3, atol=1e-4)


def test_a_nan_among_logits_is_seen():
    logit_RV, target_R = made(1.0)
    logit_RV[1, 50] = torch.nan
    loss_R = cross_entropy.losses_and_gradient(logit_RV, target_R, logit_RV, ignored=0)
    assert loss_R.isnan().tolist() == [False, True, *[False] * 7]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_chunked_loss_takes_it_and_is_the_same(bf16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 7, WIDTH, generator=generator)
    embedding = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = torch.randint(0, VOCABULARY, (2, 7), generator=generator)
    found = []
    for name in ("bag", "triton"):
        leaves = [t.clone().requires_grad_() for t in (x, embedding)]
        with use_implementation(name):
            value = loss.unembedded_loss(*leaves, targets, bf16=bf16)
        value.backward()
        found.append((value.detach(), leaves[0].grad, leaves[1].grad))
    # The interpreter cuts bfloat16 off instead of rounding it.
    tolerance = 8e-3 if bf16 else 1e-6
    for torchs, ours in zip(*found, strict=True):
        assert float((ours - torchs).norm()) <= tolerance * float(torchs.norm())
