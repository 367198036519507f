"""Small models to look into: untrained ones of any family, and a study whose runs are finished."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.data.tokenizers.encoders import ByteTokenizer
from isoflop.data.windows import open_data
from isoflop.interpret.load import LoadedRun
from isoflop.launch.execute import execute
from isoflop.launch.local import begin, open_session
from isoflop.model.transformer import build_model
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_data import MadeHeldout
from made_studies import micro
from made_training import made_spec

ROUTERS = ("product_dense", "product_key_value", "dense", "key_value")
BATCH_SIZE, SEQ_LEN = 4, 16

SGATLIN = {
    "num_channels": 3,
    "num_neighbours": 4,
    "num_experts": 36,
    "router_width": 8,
    "router": "product_dense",
    "activation": "identity",
    "gate_order": "gate_then_act",
}
PEER = {"num_channels": 3, "num_neighbours": 4, "num_experts": 36, "router_width": 8}
MOE = {"num_experts": 4, "num_active": 2, "hidden_width": 8}
CONFIGS = {"sgatlin": SGATLIN, "peer": PEER, "moe": MOE}


def untrained_run(
    family: str = "sgatlin", *, heldout: MadeHeldout | None = None, **changes: Any
) -> LoadedRun:
    """A fresh model of two layers and width 16; ``changes`` are of its configuration."""
    spec = made_spec(
        family,
        config={**CONFIGS[family], **changes},
        d_model=16,
        n_layers=2,
        n_heads=1,
        seq_len=SEQ_LEN,
        batch_size=BATCH_SIZE,
    )
    heldout = made_heldout(9) if heldout is None else heldout
    return LoadedRun.from_model(spec, build_model(spec), ByteTokenizer(), heldout=heldout)  # type: ignore[arg-type]


def made_heldout(num_windows: int) -> MadeHeldout:
    """Documents of one to three windows, the last of each ragged."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(97, 105, (num_windows, SEQ_LEN)).astype(np.uint16)
    documents = np.sort(rng.integers(0, max(1, num_windows // 2), num_windows))
    documents = np.unique(documents, return_inverse=True)[1]
    last = np.append(documents[1:] != documents[:-1], True)
    for window in np.flatnonzero(last):
        tokens[window, rng.integers(1, SEQ_LEN) :] = 0
    return MadeHeldout(tokens, documents.tolist(), num_bytes=int((tokens != 0).sum()))


def inputs_BT(num_windows: int = 3, length: int = 11) -> torch.Tensor:
    """Token ids, of a length that divides nothing."""
    return torch.randint(97, 105, (num_windows, length), generator=torch.Generator().manual_seed(5))


def write_texts(folder: Path, seed: int = 1) -> str:
    """Short documents, one a file; the source that reads them."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(seed)
    for number in range(60):
        words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(rng.randint(5, 30))]
        (folder / f"{number:02}.txt").write_text(" ".join(words))
    return f"files:{folder}/*.txt"


def run_study(folder: Path, source: str, **changes: Any) -> None:
    """Trains a run of mlp, moe, peer and sgatlin each in this process, and keeps their weights."""
    values: dict[str, Any] = {
        "name": "looked-into",
        "source": source,
        "budgets": (65 * 10**6,),
        "batch_size": 2,
        "seq_len": 24,
        "archs": ("mlp", "moe", "peer", "sgatlin"),
        "sizes": (1,),
        "keep_weights": "all",
    }
    study = micro(**(values | changes))
    prepare(source, study.tokenizer, None, options=PrepareOptions())
    write_plan(make_plan(study), folder)
    session = open_session(folder)
    begin(folder, session.plan, (job.run_id for job in session.jobs))
    for job in session.jobs:
        ending = execute(job, open_data(Path(job.data_folder)))
        assert ending.status == "done", ending
