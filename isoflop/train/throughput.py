"""Rates that training achieves, and how they compare with the hardware's peak."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from isoflop.accounting.conventions import get_convention
from isoflop.plan.runs import run_ledger
from isoflop.spec import RunSpec

# Side of the square matrices whose product measures a peak: large enough on a GPU, under a second
# on a core.
_SIDE = {"cpu": 1024, "cuda": 8192}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_REPEATS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Achieved:
    """What some training steps came to."""

    tokens_per_s: float
    flops_per_s: float
    """Training FLOPs by the study's convention."""
    share_of_peak: float | None
    """``flops_per_s`` / peak; None where the peak is not known."""

    def __str__(self) -> str:
        rates = f"{self.tokens_per_s:,.0f} tokens/s, {prefixed_flops(self.flops_per_s)}/s"
        if self.share_of_peak is None:
            return rates
        return f"{rates} ({self.share_of_peak:.1%} of peak)"


def achieved(
    tokens: int, seconds: float, flops_per_token: float, peak_flops: float | None
) -> Achieved:
    """Return rates of ``tokens`` trained on in ``seconds``.

    Args:
        tokens: of all ranks.
        seconds: wall-clock, more than 0.
        flops_per_token: see :func:`training_flops_per_token`.
        peak_flops: per second, of all devices together; None: not known.
    """
    rate = tokens * flops_per_token / seconds
    return Achieved(
        tokens_per_s=tokens / seconds,
        flops_per_s=rate,
        share_of_peak=None if peak_flops is None else rate / peak_flops,
    )


def training_flops_per_token(spec: RunSpec, convention: str = "paper") -> int:
    """Return FLOPs that a study's convention counts for a token of training.

    Raises:
        UserError: no such convention.
    """
    return get_convention(convention)(run_ledger(spec))


def measured_peak(device: torch.device, precision: str) -> float:
    """Return FLOP/s of a large matrix product, the best of five; on the CPU of the threads set.

    About half a second on a CPU core. Hardware profiles have a vendor's figure for some devices
    (isoflop.plan.estimate.hardware).
    """
    side = _SIDE.get(device.type, _SIDE["cpu"])
    a = torch.ones(side, side, device=device, dtype=_DTYPES[precision])
    out = torch.empty_like(a)
    best = float("inf")
    # The first one warms up.
    for _ in range(_REPEATS + 1):
        wait_for(device)
        begin = time.perf_counter()
        torch.mm(a, a, out=out)
        wait_for(device)
        best = min(best, time.perf_counter() - begin)
    return 2.0 * side**3 / best


def prefixed_flops(flops: float) -> str:
    """Return three digits with a decimal prefix: 12.3 GFLOP."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if flops >= size:
            return f"{flops / size:.3g} {prefix}FLOP"
    return f"{flops:.3g} FLOP"


def wait_for(device: torch.device) -> None:
    """Return once the device has done all it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
