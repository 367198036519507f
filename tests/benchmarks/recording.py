"""What recording costs beside the plain evaluation of the same text, and the bytes it writes.

Both in turn in one process, several times; times are medians. Untrained models of rungs of the
micro ladder on random tokens: what is chosen does not matter for the time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses

import numpy as np

from isoflop.data.tokenizers.encoders import ByteTokenizer
from isoflop.families import get_spec
from isoflop.interpret.load import LoadedRun
from isoflop.interpret.recorder import record, windows_at_a_time
from isoflop.model.transformer import build_model
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.evaluate import evaluate

FAMILIES = ("sgatlin", "peer", "moe")
CASES = {"byte": (2, 256), "50k": (8, 50_258)}
"""Rung and vocabulary."""
SEQ_LEN = 128


class Heldout:
    """Windows of one document each, without padding."""

    begin_id = 1

    def __init__(self, num_windows: int, vocab_size: int) -> None:
        rng = np.random.default_rng(0)
        tokens = rng.integers(2, vocab_size, (num_windows, SEQ_LEN))
        self.tokens = tokens.astype(np.uint16)
        self.document_index = np.arange(num_windows)
        self.num_bytes = self.tokens.size


def run_of(family: str, case: str, num_tokens: int) -> LoadedRun:
    recipe = get_recipe("micro-v1")
    size, vocab_size = CASES[case]
    shape = recipe.shape(size)
    spec = RunSpec(
        family=family,
        config=dataclasses.asdict(get_spec(family).ladder(recipe, size)),
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        vocab_size=vocab_size,
        seq_len=SEQ_LEN,
        batch_size=32,
        steps=100,
        data_id="made",
        tokenizer_hash="made",
        seed=0,
        recipe=recipe.name,
        precision="fp32",
    )
    heldout = Heldout(num_tokens // SEQ_LEN, vocab_size)
    return LoadedRun.from_model(spec, build_model(spec), ByteTokenizer(), heldout=heldout)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(family: str, case: str, num_tokens: int, repeats: int) -> None:
    loaded = run_of(family, case, num_tokens)
    spec = loaded.spec

    def plain() -> object:
        micro_batch = windows_at_a_time(spec.batch_size, spec.seq_len)
        return evaluate(
            loaded.model,
            loaded.heldout,
            batch_size=spec.batch_size,
            precision="fp32",
            micro_batch=micro_batch,
        )

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        assert record(loaded, out) == plain()
        pairs = [(seconds(plain), seconds(lambda: record(loaded, out))) for _ in range(repeats)]
        num_bytes = sum(path.stat().st_size for path in out.iterdir())
    plain_s, record_s = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = [recorded / evaluated for evaluated, recorded in pairs]
    print(
        f"| {family} | {case} | {spec.d_model} | {spec.n_layers} | {num_tokens / plain_s:,.0f} | "
        f"{num_tokens / record_s:,.0f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {num_bytes / num_tokens:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(
        "| family | vocabulary | D | layers | evaluate, tokens/s | record, tokens/s | ratio | "
        "bytes/token |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        for family in FAMILIES:
            measure(family, case, options.tokens, options.repeats)


if __name__ == "__main__":
    main()
