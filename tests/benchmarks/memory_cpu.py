"""Predicted against measured peak memory of an optimizer step on the CPU.

Each shape in a process of its own: what is resident before the model is built, subtracted from the
peak of four steps, against the estimate for the same shape. The shapes are wide or long enough that
their parts differ: activations, logits, or tables with gradients and moments. Measured twice: with
the C library's allocator as it is, which keeps freed memory, and told to give it back at once,
which leaves what is alive.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from isoflop.families import get_spec
from isoflop.placement import Placement
from isoflop.plan.estimate.memory import estimate_memory, model_shape
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.calibrate import measure_step
from isoflop.train.memory import peak_bytes, reset_peak

FAMILIES = ("mlp", "swiglu", "moe", "peer", "sgatlin")
# What is large: batch, sequence length, vocabulary, and changes of the routed layers.
CASES = {
    "activations": {"batch_size": 32, "seq_len": 256, "vocab_size": 256},
    "logits": {"batch_size": 8, "seq_len": 128, "vocab_size": 16384},
    "tables": {"batch_size": 2, "seq_len": 128, "vocab_size": 256},
}
CPU = torch.device("cpu")
# Of the GNU C library; others ignore them.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def spec_of(family: str, case: str) -> RunSpec:
    recipe = get_recipe("micro-v1")
    shape = recipe.shape(8)
    config = dataclasses.asdict(get_spec(family).ladder(recipe, 8))
    if case == "tables" and "num_channels" in config:
        config["num_experts"] = 128**2
    elif case == "tables":
        config["hidden_width"] *= 16
    return RunSpec(
        family=family,
        config=config,
        d_model=shape.d_model,
        n_layers=4,
        n_heads=shape.n_heads,
        steps=100,
        data_id="made",
        tokenizer_hash="made",
        seed=0,
        recipe=recipe.name,
        precision="fp32",
        **CASES[case],
    )


def child(family: str, case: str) -> None:
    """Prints the bytes by which four steps raise the process's peak."""
    torch.set_num_threads(1)
    # What torch itself sets up at first use is not the model's.
    small = dataclasses.replace(spec_of(family, "activations"), batch_size=1, seq_len=8, n_layers=1)
    measure_step(small, Placement(), steps=1)
    reset_peak(CPU)
    before = peak_bytes(CPU)
    after = measure_step(spec_of(family, case), Placement(), steps=1).peak_mem_bytes
    assert before is not None
    assert after is not None
    print(after - before)


def rise_of_peak(family: str, case: str, setting: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, __file__, "--child", family, case],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | setting,
    )
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    print(
        f"{'large':12s} {'family':8s} {'predicted MB':>12s} {'measured':>9s} {'ratio':>6s} "
        f"{'given back':>11s} {'ratio':>6s}"
    )
    for case in CASES:
        for family in FAMILIES:
            spec = spec_of(family, case)
            memory = estimate_memory(model_shape(spec), micro_batch=spec.batch_size)
            row = f"{case:12s} {family:8s} {memory.peak_bytes / 1e6:12.0f}"
            for setting, width in (({}, 9), (GIVE_BACK, 11)):
                measured = rise_of_peak(family, case, setting)
                row += f" {measured / 1e6:{width}.0f} {memory.peak_bytes / measured:6.2f}"
            print(row)


if __name__ == "__main__":
    main()
