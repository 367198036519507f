from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from isoflop.data import synthetic
from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions, RawDocument
from isoflop.data.synthetic import synthetic_source


def first(seed: str, number: int) -> list[RawDocument]:
    return list(islice(synthetic_source(f"synthetic:{seed}", endless=True).parts[0].read(), number))


def test_the_texts_of_a_seed_are_pinned() -> None:
    digest = hashlib.sha256(b"\n".join(document.text for document in first("0", 50)))
    assert digest.hexdigest() == "5ba0e25d3d92634bd660d713a32739dd382812aa455c46026e6c5a378c72cd50"
    texts = [document.text for seed in ("0", "1", "7") for document in first(seed, 5)]
    assert len(set(texts)) == len(texts)


def test_facts_are_where_they_are_said_to_be_and_consistent() -> None:
    documents = first("3", 200)
    facts = synthetic_source("synthetic:3", endless=False).facts(200)
    said: dict[str, set[str]] = {}
    for fact in facts:
        text = documents[int(fact["document"])].text[fact["position"] :].decode()
        assert text.startswith(f"The {fact['noun']} was {fact['adjective']}.")
        said.setdefault(fact["noun"], set()).add(fact["adjective"])
    assert all(len(adjectives) == 1 for adjectives in said.values())
    assert len(said) > 150
    assert len(facts) == sum(document.text.count(b" was ") for document in documents)


def test_the_background_follows_zipf_and_a_chain() -> None:
    words = b" ".join(document.text for document in first("0", 300)).decode().lower()
    words = words.replace(".", "").split()
    counts = Counter(words).most_common()
    # Frequencies fall over orders of magnitude, yet no word is most of the text.
    assert counts[0][1] > 20 * counts[500][1]
    assert counts[0][1] < 0.2 * len(words)
    pairs = Counter(pairwise(words))
    common = {word for word, _ in counts[:50]}
    # Drawn apart, no rarer word would follow one word in a twentieth of its places.
    word, count = counts[20]
    assert max(n for (one, two), n in pairs.items() if one == word and two not in common) > (
        0.05 * count
    )


def test_prepared_with_its_facts_beside_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(synthetic, "NUM_DOCUMENTS", 30)
    folder = prepare("synthetic:5", "byte", tmp_path, options=PrepareOptions())
    facts = json.loads((folder / "facts.json").read_text())
    assert facts == synthetic_source("synthetic:5", endless=False).facts(30)
    manifest = json.loads((folder / "manifest.json").read_text())
    (listed,) = manifest["extra_files"]
    assert listed["file"] == "facts.json"
    assert listed["sha256"] == hashlib.sha256((folder / "facts.json").read_bytes()).hexdigest()
    ids = [
        name
        for split in ("train", "heldout")
        for name in pq.read_table(folder / f"documents-{split}.parquet")["id"].to_pylist()
    ]
    assert sorted(ids, key=int) == [str(number) for number in range(30)]
    assert manifest["corpus"]["licence"].startswith("CC0")


def test_as_many_tokens_as_are_asked_for(tmp_path: Path) -> None:
    folder = prepare("synthetic:5", "byte", tmp_path, options=PrepareOptions(tokens=50_000))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert 50_000 <= manifest["splits"]["train"]["num_tokens"] < 53_000


@pytest.mark.parametrize("seed", ["", "-1", "x", "1.5", str(2**64)])
def test_a_seed_is_a_whole_number(tmp_path: Path, refused, seed: str) -> None:
    with refused("synthetic:SEED"):
        prepare(f"synthetic:{seed}", "byte", tmp_path, options=PrepareOptions())
