"""Peak memory of the head's loss and gradients: logits in chunks against whole logits.

Vocabulary 50,258 and 64 sequences of 1024 tokens, as in the paper's runs; width 64, to keep it to a
minute. Each case is a process of its own: what it holds before the head runs, subtracted from its
peak. Whole logits of this batch would take three times 13 GB, so they are measured at batch 2 and 4
(0.41 and 0.82 GB each) and predicted at 64: 12 bytes per token and vocabulary entry.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from isoflop.model import loss
from isoflop.plan.estimate.memory import LOGIT_BYTES
from isoflop.train.memory import peak_bytes, reset_peak

VOCABULARY, LENGTH, WIDTH = 50_258, 1024, 64
CPU = torch.device("cpu")


def child(kind: str, batch: int) -> None:
    """Prints the bytes by which the head raises the peak, and its seconds."""
    torch.set_num_threads(1)
    x = torch.randn(batch, LENGTH, WIDTH, requires_grad=True)
    embedding = (torch.randn(VOCABULARY, WIDTH) * WIDTH**-0.5).requires_grad_()
    targets = torch.randint(1, VOCABULARY, (batch, LENGTH))
    loss.MAX_LOGIT_BYTES = 0 if kind == "chunks" else 2**60
    # What torch itself sets up at first use is not the head's.
    loss.unembedded_loss(x[:1, :8], embedding, targets[:1, :8]).backward()
    x.grad = embedding.grad = None
    reset_peak(CPU)
    before, begin = peak_bytes(CPU), time.perf_counter()
    (loss.unembedded_loss(x, embedding, targets) / targets.numel()).backward()
    seconds, after = time.perf_counter() - begin, peak_bytes(CPU)
    assert before is not None
    assert after is not None
    print(after - before, seconds)


def run(kind: str, batch: int) -> tuple[int, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, str(batch)],
        check=True,
        capture_output=True,
        text=True,
    )
    num_bytes, seconds = done.stdout.split()
    return int(num_bytes), float(seconds)


def predicted(kind: str, batch: int) -> int:
    tokens = batch * LENGTH
    if kind == "whole":
        return tokens * VOCABULARY * LOGIT_BYTES
    # Two gradients each of the embedding and of the input: as made, and scaled.
    return loss.CHUNK_BYTES["cpu"] + 2 * 4 * WIDTH * (VOCABULARY + tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], int(given.child[1]))
        return
    print(f"{'logits':8s} {'batch':>5s} {'predicted MB':>12s} {'measured MB':>12s} {'seconds':>8s}")
    for kind, batch in (("whole", 2), ("whole", 4), ("chunks", 4), ("chunks", given.batch)):
        num_bytes, seconds = run(kind, batch)
        print(
            f"{kind:8s} {batch:5d} {predicted(kind, batch) / 1e6:12,.0f} "
            f"{num_bytes / 1e6:12,.0f} {seconds:8.1f}"
        )
    whole = predicted("whole", given.batch) / 1e6
    print(f"whole logits at batch {given.batch}: {whole:,.0f} MB predicted")


if __name__ == "__main__":
    main()
