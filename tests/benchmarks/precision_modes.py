"""What rounding costs: losses of the same training with operands rounded in other ways.

State of the Union messages as bytes, 300 steps of bf16 runs, on the CPU by emulation: TF32 keeps 10
bits of an operand's mantissa, bf16 7, sums are float32 either way. Compared are the head's products
(`--head`), forward and backward, and the rows of experts' tables; differences are paired, of runs
of one seed, against the spread between seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.corpus import builtin
from isoflop.families import get_spec
from isoflop.families._shared.module import ExpertTables
from isoflop.model import build_model, loss
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.optimizer import recipe_adamw, set_learning_rate
from isoflop.train.step import compute_type, gradients_of_batch, tables_cast

CPU = torch.device("cpu")
RECIPE = get_recipe("micro-v1")
WARM_UP = 30
NUM_HELDOUT = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Mode:
    """A way of rounding; `before` is what bf16 runs were until both were the paper's."""

    precision: str = "bf16"
    rows: str = "bf16"
    head: str = "fp32"


BEFORE = Mode(rows="fp32")
MODES = {
    "mlp": {
        "head fp32": Mode(),
        "head tf32": Mode(head="tf32"),
        "head bf16": Mode(head="bf16"),
        "all fp32": Mode(precision="fp32"),
    },
    "sgatlin": {
        "rows fp32, head fp32": BEFORE,
        "rows bf16, head fp32": Mode(),
        "rows bf16, head tf32": Mode(head="tf32"),
        "rows bf16, head bf16": Mode(head="bf16"),
        "all fp32": Mode(precision="fp32"),
    },
}


@functools.cache
def text() -> NDArray[np.uint8]:
    files = sorted(builtin("corpora", "sotu_1981_2026").rglob("*.txt"))
    whole = b"\n".join(path.read_bytes() for path in files)
    assert len(whole) > 1_000_000
    # No byte of a text is 0, the id of padding.
    return np.frombuffer(whole.replace(b"\0", b" "), dtype=np.uint8)


def windows(source: NDArray[np.uint8], count: int, length: int, seed: int) -> NDArray[np.uint16]:
    starts = np.random.default_rng(seed).integers(0, len(source) - length, count)
    return source[starts[:, None] + np.arange(length)].astype(np.uint16)


def in_tf32(x: Tensor) -> Tensor:
    """The nearest number of 10 mantissa bits, ties to even, as the tensor cores' operands."""
    bits = x.contiguous().view(torch.int32)
    half_up = 0xFFF + ((bits >> 13) & 1)
    return ((bits + half_up) & ~0x1FFF).view(torch.float32)


@contextmanager
def rounding(mode: Mode) -> Iterator[None]:
    """Emulates a mode; all take the logits in chunks, so that sums are in one order."""
    product, add_product = loss._product, loss._add_product
    patches = [mock.patch.object(loss, "MAX_LOGIT_BYTES", 0)]
    if mode.head == "tf32":

        def rounded(a: Tensor, b: Tensor, out: Tensor) -> None:
            product(in_tf32(a), in_tf32(b), out)

        def rounded_sum(a: Tensor, b: Tensor, total: Tensor) -> None:
            add_product(in_tf32(a), in_tf32(b), total)

        patches.append(mock.patch.object(loss, "_product", rounded))
        patches.append(mock.patch.object(loss, "_add_product", rounded_sum))
    if mode.rows == "fp32":
        patches.append(mock.patch.object(ExpertTables, "rows_read", return_value=None))
        patches.append(mock.patch.object(ExpertTables, "tokens_read", lambda self, x_TD: x_TD))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Of the models and their training."""

    steps: int = 300
    seeds: int = 5
    rung: int = 2
    layers: int | None = None
    """None: as the ladder has them."""
    length: int = 64


def spec_of(family: str, seed: int, precision: str, sizes: Sizes) -> RunSpec:
    shape = RECIPE.shape(sizes.rung)
    return RunSpec(
        family=family,
        config=dataclasses.asdict(get_spec(family).ladder(RECIPE, sizes.rung)),
        d_model=shape.d_model,
        n_layers=sizes.layers or shape.n_layers,
        n_heads=shape.n_heads,
        vocab_size=256,
        seq_len=sizes.length,
        batch_size=8,
        steps=1,
        data_id="bytes",
        tokenizer_hash="bytes",
        seed=seed,
        recipe=RECIPE.name,
        precision=precision,
    )


def train(family: str, mode: Mode, seed: int, sizes: Sizes) -> list[float]:
    """Loss of each step and, last, that of held-out windows, in nats per byte."""
    # Once for all runs; the text is part of the package.
    source = text()
    source, heldout = source[: len(source) * 9 // 10], source[len(source) * 9 // 10 :]
    length = sizes.length
    spec = spec_of(family, seed, mode.precision, sizes)
    model = build_model(spec)
    model.head_in_bf16 = mode.head == "bf16"
    optimizer = recipe_adamw(model, RECIPE)
    found = []
    with rounding(mode):
        for step in range(sizes.steps):
            batch = windows(source, spec.batch_size, length, seed * 100_000 + step)
            done = gradients_of_batch(
                model, batch, clip_norm=RECIPE.clip_norm, precision=spec.precision
            )
            set_learning_rate(optimizer, RECIPE.peak_lr * min(1.0, (step + 1) / WARM_UP))
            optimizer.step()
            found.append(done.loss)
        last = torch.from_numpy(windows(heldout, NUM_HELDOUT, length + 1, 0).astype(np.int64))
        with torch.no_grad(), tables_cast(model, mode.precision), compute_type(mode.precision, CPU):
            total = model(last[:, :-1].contiguous(), last[:, 1:].contiguous())
    return [*found, float(total) / (NUM_HELDOUT * length)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A mode against the first of its family, in nats per byte of held-out text."""

    family: str
    mode: str
    loss: float
    """Mean over the seeds."""
    paired: tuple[float, ...]
    """Mode minus baseline, by seed."""
    seed_spread: float
    """Standard deviation of the baseline's loss over the seeds."""
    largest_step: float
    """Of all steps of all seeds: the largest difference of a training loss."""


def measure(family: str, names: list[str], sizes: Sizes) -> list[Difference]:
    """Differences of the modes that are named from the first of them."""
    torch.set_num_threads(1)
    curves = {
        name: np.array(
            [train(family, MODES[family][name], seed, sizes) for seed in range(sizes.seeds)]
        )
        for name in names
    }
    baseline = curves[names[0]]
    return [
        Difference(
            family=family,
            mode=name,
            loss=float(curve[:, -1].mean()),
            paired=tuple(float(d) for d in (curve - baseline)[:, -1]),
            seed_spread=statistics.stdev(float(one) for one in baseline[:, -1]),
            largest_step=float(np.abs(curve - baseline)[:, :-1].max()),
        )
        for name, curve in curves.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    sizes = Sizes(**vars(parser.parse_args()))
    print("| family | mode | loss | mean difference | largest | largest of a step | seeds' sd |")
    print("|---|---|---|---|---|---|---|")
    for family, modes in MODES.items():
        for row in measure(family, [*modes], sizes):
            print(
                f"| {row.family} | {row.mode} | {row.loss:.4f} "
                f"| {statistics.mean(row.paired):+.5f} | {max(map(abs, row.paired)):.5f} "
                f"| {row.largest_step:.4f} | {row.seed_spread:.4f} |"
            )


if __name__ == "__main__":
    main()
