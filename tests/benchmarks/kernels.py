"""The CPU implementations of isoflop_kernels against their plain references, in one run.

One thread, process CPU time, median of the repeats. The layer is also timed against a dense one of
equal counted FLOPs, selection against plain `torch.topk` calls, which keep no rule on ties.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from isoflop_kernels import gathered_linear, product_key_topk, stable_topk, use_implementation

IMPLEMENTATIONS = ("reference", "bag", "cpp")
LAYERS = [
    {"T": 1024, "D": 16, "C": 4, "K": 4, "E": 144},
    {"T": 1024, "D": 32, "C": 4, "K": 4, "E": 256},
    {"T": 1024, "D": 48, "C": 4, "K": 4, "E": 400},
    {"T": 2048, "D": 64, "C": 4, "K": 4, "E": 576},
    {"T": 2048, "D": 128, "C": 16, "K": 8, "E": 784},
]
# [T, 2, C, N] and k, then [rows, N] and k
PRODUCT_KEYS = [
    (2048, 2, 4, 12, 4),
    (2048, 2, 4, 20, 4),
    (2048, 2, 4, 28, 4),
    (2048, 2, 4, 28, 8),
    (2048, 2, 4, 56, 8),
    (2048, 2, 4, 88, 8),
]
PLAIN = [(8192, 144, 4), (8192, 400, 4), (8192, 784, 4)]
# The reference sorts N * N sums of every row: beyond this N it takes seconds.
SLOW_REFERENCE = 28


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


def dense_mlp(T: int, D: int, C: int, K: int, **_: int) -> Callable[[], None]:
    """A dense layer of the same counted FLOPs: C * K hidden units."""
    generator = torch.Generator().manual_seed(0)
    x, w_in, w_out = (
        torch.randn(shape, generator=generator).requires_grad_()
        for shape in ((T, D), (D, C * K), (C * K, D))
    )
    dy = torch.randn(T, D, generator=generator)

    def work() -> None:
        for tensor in (x, w_in, w_out):
            tensor.grad = None
        (torch.nn.functional.gelu(x @ w_in) @ w_out).backward(dy)

    return work


def two_topk(sim: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, keys = sim.topk(k)
    sums = values[:, 0, :, :, None] + values[:, 1, :, None, :]
    score, pair = sums.flatten(-2).topk(k)
    first = keys[:, 0].gather(-1, pair // k)
    return score, first * sim.shape[-1] + keys[:, 1].gather(-1, pair % k)


def plain_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    chosen, positions = values.topk(k)
    return chosen, positions


def print_row(label: str, times: dict[str, float], *ratios: tuple[str, str]) -> None:
    cells = " ".join(f"{name} {ms:8.2f}" for name, ms in times.items())
    quotients = " ".join(f"{a}/{b} {times[a] / times[b]:5.1f}" for a, b in ratios)
    print(f"{label:34s} {cells}  {quotients}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("ms of CPU time; cpp is bag where no compiler is found")
    print("\ngathered_linear, forward and backward")
    for shape in LAYERS:
        work, times = expert_layer(**shape), {"mlp": cpu_ms(dense_mlp(**shape), repeats)}
        for name in IMPLEMENTATIONS:
            with use_implementation(name):
                times[name] = cpu_ms(work, repeats)
        label = " ".join(f"{key} {value}" for key, value in shape.items())
        print_row(label, times, ("reference", "bag"), ("bag", "cpp"), ("cpp", "mlp"))
    selections = (
        ("product_key_topk", product_key_topk, two_topk, PRODUCT_KEYS),
        ("stable_topk", stable_topk, plain_topk, PLAIN),
    )
    for title, ours, plain, shapes in selections:
        print(f"\n{title}, forward")
        for *shape, k in shapes:
            values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            times = {"topk": cpu_ms(partial(plain, values, k), repeats)}
            for name in IMPLEMENTATIONS:
                if (title, name) == ("product_key_topk", "reference") and shape[
                    -1
                ] > SLOW_REFERENCE:
                    continue
                with use_implementation(name):
                    times[name] = cpu_ms(partial(ours, values, k), repeats)
            print_row(f"{shape} k {k}", times, ("topk", "bag"), ("topk", "cpp"))


if __name__ == "__main__":
    main()
