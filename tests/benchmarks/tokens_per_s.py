"""Training speed of every family on the CPU, against three figures.

One shape (width 128, 2 layers, 2 heads, sequences of 128, batch 16, vocabulary 256), forward,
backward, clipping and AdamW. Beside our own tokens/s: a plain PyTorch model of the same weights
(plain_model.py), its loss checked to be equal, one step of each in turns; what the roofline of
isoflop.plan.estimate predicts; and, as a fixed figure, what the official implementation reached on
two cores of another day (issue 5). With `--parts` also where the time goes, from torch's profiler.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "2")

import dataclasses

import torch
from plain_model import PlainModel
from torch.profiler import ProfilerActivity, profile

from isoflop.families import config_from_mapping
from isoflop.model import Transformer, build_model
from isoflop.plan.estimate import estimate_run, load_hardware
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.batch import made_batch, rank_batch
from isoflop.train.memory import keep_freed_memory
from isoflop.train.optimizer import recipe_adamw, set_learning_rate
from isoflop.train.step import gradients_of_batch
from isoflop.train.throughput import measured_peak
from isoflop_kernels import use_implementation

ROUTED = {"num_channels": 8, "num_neighbours": 8, "num_experts": 784, "router_width": 64}
CONFIGS = {
    "mlp": {"hidden_width": 256},
    "swiglu": {"hidden_width": 256},
    "moe": {"num_experts": 8, "num_active": 2, "hidden_width": 128},
    "peer": ROUTED,
    "sgatlin": ROUTED,
}
# Official implementation, tokens/s on two cores, and how many times that is aimed at.
OFFICIAL = {"mlp": (14_100, 3), "moe": (5_660, 6), "sgatlin": (2_220, 20)}
WARM_UP = 3
CPU = torch.device("cpu")


def spec_of(family: str) -> RunSpec:
    return RunSpec(
        family=family,
        config=dataclasses.asdict(config_from_mapping(family, CONFIGS[family])),
        d_model=128,
        n_layers=2,
        n_heads=2,
        vocab_size=256,
        seq_len=128,
        batch_size=16,
        steps=100,
        data_id="made",
        tokenizer_hash="made",
        seed=0,
        recipe="micro-v1",
        precision="fp32",
    )


def our_step(spec: RunSpec, model: Transformer) -> Callable[[], float]:
    recipe = get_recipe(spec.recipe)
    optimizer = recipe_adamw(model, recipe)
    set_learning_rate(optimizer, recipe.peak_lr)
    targets_BT = made_batch(spec)

    def step() -> float:
        done = gradients_of_batch(
            model, targets_BT, clip_norm=recipe.clip_norm, precision=spec.precision
        )
        optimizer.step()
        return done.loss

    return step


def plain_step(spec: RunSpec, weights: dict[str, torch.Tensor]) -> Callable[[], float]:
    recipe = get_recipe(spec.recipe)
    model = PlainModel(spec, weights)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.peak_lr,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
    )
    batch = rank_batch(made_batch(spec))

    def step() -> float:
        optimizer.zero_grad()
        loss = model(batch.inputs_RT, batch.targets_RT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        return loss.item()

    return step


def in_turns(steps: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Least seconds of each: whatever else the machine does only adds to them."""
    seconds = defaultdict(list)
    for _ in range(WARM_UP + repeats):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return {name: min(values[WARM_UP:]) for name, values in seconds.items()}


def compare(family: str, repeats: int) -> None:
    spec = spec_of(family)
    model = build_model(spec)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    steps = {"plain": plain_step(spec, weights), "ours": our_step(spec, model)}
    other = build_model(spec)
    compiled_kernels = our_step(spec, other)

    def with_cpp() -> float:
        with use_implementation("cpp"):
            return compiled_kernels()

    if family in ("peer", "sgatlin", "moe"):
        steps["cpp"] = with_cpp
    first = {name: step() for name, step in steps.items()}
    assert all(abs(loss / first["plain"] - 1) < 1e-5 for loss in first.values()), first
    seconds = in_turns(steps, repeats)
    tokens = spec.batch_size * spec.seq_len
    roofline_s = estimate_run(spec, load_hardware("cpu2")).step_s
    assert roofline_s is not None
    official, aim = OFFICIAL.get(family, (None, None))
    against = "" if official is None else f"{tokens / seconds['ours'] / official:7.1f} ({aim})"
    cpp = f"{tokens / seconds['cpp']:9,.0f}" if "cpp" in seconds else f"{'':9s}"
    print(
        f"{family:8s} {tokens / seconds['plain']:9,.0f} {tokens / seconds['ours']:9,.0f} "
        f"{seconds['plain'] / seconds['ours']:6.2f} {cpp} {tokens / roofline_s:10,.0f} "
        f"{roofline_s / seconds['ours']:6.2f} {against}"
    )


def print_parts(family: str, steps: int = 10) -> None:
    """Self time per operator of ours, ms per step; what takes less than 2 % is summed up."""
    spec = spec_of(family)
    step = our_step(spec, build_model(spec))
    for _ in range(WARM_UP):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    rest = total
    print(f"{family}: {total / steps / 1e3:.1f} ms per step in operators")
    for event in sorted(events, key=lambda e: -e.self_cpu_time_total):
        if event.self_cpu_time_total < 0.02 * total:
            break
        rest -= event.self_cpu_time_total
        share = event.self_cpu_time_total
        print(f"  {event.key:48s} {event.count / steps:5.0f} x {share / steps / 1e3:6.2f} ms")
    print(f"  {'the rest':48s} {'':7s} {rest / steps / 1e3:6.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--families", nargs="+", default=list(CONFIGS))
    parser.add_argument("--parts", action="store_true")
    given = parser.parse_args()
    # As training does; the plain model profits too.
    keep_freed_memory()
    for threads in given.threads:
        torch.set_num_threads(threads)
        peak = measured_peak(CPU, "fp32") / 1e9
        print(f"\n{threads} thread(s), matrix products reach {peak:.0f} GFLOP/s; tokens/s")
        print(
            f"{'family':8s} {'plain':>9s} {'ours':>9s} {'ratio':>6s} {'C++':>9s} "
            f"{'roofline':>10s} {'share':>6s} x official (aim)"
        )
        for family in given.families:
            compare(family, given.steps)
        if given.parts:
            for family in given.families:
                print_parts(family)


if __name__ == "__main__":
    main()
