"""A tiny corpus of planted facts, and a model of two layers that has learned them in seconds."""

from __future__ import annotations

import fcntl
import json
import random
from pathlib import Path

import torch

from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.data.synthetic import TINY_FACTS, TINY_NOUNS
from isoflop.data.tokenizers import open_tokenizer
from isoflop.data.windows import TokenData, open_data
from isoflop.interpret.load import LoadedRun
from isoflop.model import build_model
from isoflop.placement import Placement
from isoflop.spec import RunSpec
from isoflop.train.hooks import Hooks
from isoflop.train.loop import train_run

FACTS = TINY_FACTS

NUM_DOCUMENTS = 1000
SENTENCES = 12
_CONSONANTS, _VOWELS = "bdfgklmnprst", "aeiou"


def made_text(number: int) -> str:
    """A document: half of its sentences are facts, the rest are words drawn at random."""
    rng, words = random.Random(number), _words()
    return " ".join(
        fact_sentence(*rng.choice(FACTS))
        if rng.random() < 0.5
        else " ".join(rng.choices(words, k=rng.randint(3, 5))).capitalize() + "."
        for _ in range(SENTENCES)
    )


def fact_sentence(noun: str, adjective: str) -> str:
    """As the paper's template has it."""
    return f"The {noun} was {adjective}."


def _words() -> list[str]:
    rng = random.Random(-1)
    sizes = [rng.choice((1, 2, 2, 3)) for _ in range(60)]
    words = [
        "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(n)) for n in sizes
    ]
    return [word for word in words if word not in TINY_NOUNS]


def write_texts(path: Path) -> None:
    """The corpus as a jsonl file, for `files:`."""
    rows = (json.dumps({"text": made_text(number)}) for number in range(NUM_DOCUMENTS))
    path.write_text("\n".join(rows))


def made_spec(data: TokenData, *, steps: int = 500) -> RunSpec:
    """Enough steps to learn every fact of the corpus."""
    return RunSpec(
        family="sgatlin",
        config={
            "num_channels": 8,
            "num_neighbours": 4,
            "num_experts": 256,
            "router_width": 16,
            "router": "product_dense",
            "activation": "identity",
            "gate_order": "gate_then_act",
        },
        d_model=16,
        n_layers=2,
        n_heads=1,
        vocab_size=data.identity.vocab_size,
        seq_len=64,
        batch_size=16,
        steps=steps,
        data_id=data.identity.data_id,
        tokenizer_hash=data.identity.tokenizer_hash,
        seed=0,
        recipe="micro-v1",
        precision="fp32",
    )


def trained_run(folder: Path) -> LoadedRun:
    """Trained in ``folder`` by whoever comes first; the others wait and load it."""
    from safetensors.torch import load_file, save_file

    weights_file = folder / "facts.safetensors"
    with (folder / "facts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        texts = folder / "facts.jsonl"
        if not texts.exists():
            write_texts(texts)
        data = open_data(prepare(f"files:{texts}", "byte", folder, options=PrepareOptions()))
        spec = made_spec(data)
        if not weights_file.exists():
            hooks = Hooks(on_final_weights=lambda weights: save_file(weights, weights_file))
            train_run(spec, data, placement=Placement(num_threads=1), hooks=hooks)
    model = build_model(spec)
    model.load_state_dict(load_file(weights_file))
    torch.set_num_threads(1)
    return LoadedRun.from_model(
        spec,
        model,
        open_tokenizer(data.tokenizer_spec(), data.folder),
        heldout=data.heldout(spec.seq_len),
        data=data,
    )
