"""The operators of isoflop_kernels against their plain references, in one run.

One thread, process CPU time, median of the repeats. Selection is also timed against two plain
`torch.topk` calls, which keep no rule on ties.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from isoflop_kernels import gathered_linear, product_key_topk, use_implementation

LAYERS = [
    {"T": 2048, "D": 16, "C": 4, "K": 4, "E": 144},
    {"T": 2048, "D": 32, "C": 4, "K": 4, "E": 256},
    {"T": 2048, "D": 64, "C": 4, "K": 4, "E": 576},
    {"T": 2048, "D": 128, "C": 16, "K": 8, "E": 784},
]
SUBKEYS = [12, 16, 20, 28]


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of CPU time of one call, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return 1000 * statistics.median(times)


def expert_layer(T: int, D: int, C: int, K: int, E: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    x, score, w_in, w_out = made(T, D), made(T, C, K), made(C, E, D), made(C, E, D)
    idx = torch.randint(0, E, (T, C, K), generator=generator, dtype=torch.int32)
    dy = torch.randn(T, D, generator=generator)

    def work() -> None:
        for tensor in (x, score, w_in, w_out):
            tensor.grad = None
        gathered_linear(x, idx, score, w_in, w_out).backward(dy)

    return work


def two_topk(sim: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, keys = sim.topk(k)
    sums = values[:, 0, :, :, None] + values[:, 1, :, None, :]
    score, pair = sums.flatten(-2).topk(k)
    first = keys[:, 0].gather(-1, pair // k)
    return score, first * sim.shape[-1] + keys[:, 1].gather(-1, pair % k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("gathered_linear, forward and backward, ms of CPU time")
    print(f"{'shape':34s} {'reference':>10s} {'bag':>8s} {'ratio':>6s}")
    for shape in LAYERS:
        times = {}
        for name in ("reference", "bag"):
            with use_implementation(name):
                times[name] = cpu_ms(expert_layer(**shape), repeats)
        label = " ".join(f"{key} {value}" for key, value in shape.items())
        ratio = times["reference"] / times["bag"]
        print(f"{label:34s} {times['reference']:10.1f} {times['bag']:8.2f} {ratio:6.1f}")
    print("\nproduct_key_topk, forward, T 2048 C 4 k 4, ms of CPU time")
    print(f"{'N':>3s} {'reference':>10s} {'two torch.topk':>15s} {'bag':>6s} {'topk / bag':>11s}")
    for num_subkeys in SUBKEYS:
        sim = torch.randn(2048, 2, 4, num_subkeys, generator=torch.Generator().manual_seed(0))
        with use_implementation("reference"):
            reference = cpu_ms(lambda sim=sim: product_key_topk(sim, 4), repeats)
        plain = cpu_ms(lambda sim=sim: two_topk(sim, 4), repeats)
        ours = cpu_ms(lambda sim=sim: product_key_topk(sim, 4), repeats)
        print(f"{num_subkeys:3d} {reference:10.1f} {plain:15.2f} {ours:6.2f} {plain / ours:11.2f}")


if __name__ == "__main__":
    main()
