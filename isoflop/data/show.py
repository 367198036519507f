"""What is prepared, and what is in a prepared set; for ``isoflop data list`` and ``show``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.data.catalog import SOURCE_PATTERNS, is_source, prepare_command
from isoflop.data.corpus import CORPORA
from isoflop.data.hub import DATASETS
from isoflop.data.storage import DELETE_IT, MANIFEST, PREPARED_SCHEMAS, read_manifest, split_source
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.data.tokenizers import Tokenizer
    from isoflop.data.windows import TokenData

LOOK = "run `isoflop data list` to see what there is"

_SOTU_LICENCE = "public domain; transcriptions by the American Presidency Project"
_SHOWN = ("data_id", "source", "tokenizer", "tokenizer_hash", "vocab_size", "dtype")
_DATA_ID = re.compile(r"[0-9a-f]{4,16}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A prepared folder."""

    folder: Path
    manifest: dict[str, Any] | None
    """None: it cannot be read."""
    problem: str | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; without a manifest only folder and problem."""
        if self.manifest is None:
            return {"folder": str(self.folder), "problem": self.problem}
        return {
            "folder": str(self.folder),
            **{key: self.manifest[key] for key in _SHOWN},
            "train_tokens": self.manifest["splits"]["train"]["num_tokens"],
            "heldout_tokens": self.manifest["splits"]["heldout"]["num_tokens"],
        }

    def answers_to(self, name: str, tokenizer: str | None) -> bool:
        """Return whether ``name`` is its folder's name, its data id's beginning, or its source."""
        if self.folder.name == name:
            return True
        if self.manifest is None:
            return False
        if tokenizer is not None and not _is_tokenizer(self.manifest, tokenizer):
            return False
        data_id, source = self.manifest["data_id"], self.manifest["source"]
        if _DATA_ID.fullmatch(name) and data_id.startswith(name):
            return True
        wanted, digits = split_source(name)
        return source == name or (source == wanted and data_id.startswith(digits))


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSummary:
    """One side of the split."""

    num_documents: int
    num_tokens: int
    """End-of-text tokens included."""
    num_bytes: int
    """Of text."""
    median_tokens: float
    """Of a document."""
    longest_tokens: int
    longest_document: str

    @property
    def bytes_per_token(self) -> float:
        """Of text, end-of-text tokens not counted."""
        return self.num_bytes / max(1, self.num_tokens - self.num_documents)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A prepared set in numbers."""

    about: Mapping[str, Any]
    """What it is and where it is from, as in the manifest."""
    splits: Mapping[str, SplitSummary]
    num_duplicates: int
    """Training documents whose text an earlier one has."""
    num_dropped: Mapping[str, int]
    """Documents that were left out, by the reason."""

    def epochs(self, num_tokens: int) -> float:
        """Return how often a run of ``num_tokens`` reads the training tokens."""
        return num_tokens / self.splits["train"].num_tokens

    def to_json(self, needs: Sequence[int]) -> dict[str, Any]:
        """Return plain JSON values; ``needs`` are tokens of runs, given back with their epochs."""
        splits = {
            name: {**dataclasses.asdict(split), "bytes_per_token": split.bytes_per_token}
            for name, split in self.splits.items()
        }
        return {
            **self.about,
            "splits": splits,
            "num_duplicates": self.num_duplicates,
            "num_dropped": dict(self.num_dropped),
            "epochs": [{"tokens": need, "epochs": self.epochs(need)} for need in needs],
        }


def scan(data_dir: Path) -> Iterator[Prepared]:
    """Yield every prepared folder of ``data_dir``, damaged ones too, by name."""
    for path in sorted(data_dir.glob(f"*-{'[0-9a-f]' * 16}/{MANIFEST}")):
        try:
            manifest = read_manifest(path.parent, PREPARED_SCHEMAS, DELETE_IT)
        except UserError as error:
            yield Prepared(folder=path.parent, manifest=None, problem=str(error))
        else:
            yield Prepared(folder=path.parent, manifest=manifest, problem=None)


def find_folder(name: str, tokenizer: str | None, data_dir: Path) -> Path:
    """Return the prepared folder that a person means.

    Args:
        name: a folder, or in ``data_dir`` a source, ``SOURCE@ID``, or the beginning of a data id.
        tokenizer: which of a source's sets, where there are several.
        data_dir: where prepared sets are.

    Raises:
        UserError: there is none, or more than one.
    """
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    found = [each for each in scan(data_dir) if each.answers_to(name, tokenizer)]
    if not found:
        wanted = name if tokenizer is None else f"{name} / {tokenizer}"
        do = LOOK
        if is_source(split_source(name)[0]):
            do = f"run `{prepare_command(name, tokenizer or 'byte')}` first"
        raise UserError("data", wanted, f"a folder or a set prepared in {data_dir}", do)
    if len(found) > 1:
        listed = ", ".join(_label(each) for each in found)
        do = "name it so" if tokenizer else "name it so, or add --tokenizer"
        raise UserError("data", name, f"one of {len(found)} sets ({listed})", do)
    return found[0].folder


def _is_tokenizer(manifest: Mapping[str, Any], name: str) -> bool:
    from isoflop.data.tokenizers import TRAINED, tokenizer_spec

    if name == manifest["tokenizer"]:
        return True
    # A trained one is known by its name; a file by its content, wherever it lies.
    trained = name.partition(":")[0] in TRAINED
    return not trained and bool(tokenizer_spec(name).hash == manifest["tokenizer_hash"])


def _label(prepared: Prepared) -> str:
    if prepared.manifest is None:
        return prepared.folder.name
    manifest = prepared.manifest
    return f"{manifest['source']}@{manifest['data_id']} with {manifest['tokenizer']}"


def summarise(data: TokenData) -> Summary:
    """Return the counts of an open set."""
    manifest = data.manifest
    corpus = manifest["corpus"]
    return Summary(
        about={
            "folder": str(data.folder),
            **{key: manifest[key] for key in _SHOWN},
            "licence": corpus["licence"],
            "origin": corpus["origin"],
            "split_rule": manifest["split_rule"],
            "num_shards": sum(len(split["shards"]) for split in manifest["splits"].values()),
        },
        splits={name: _summarise_split(data, name) for name in manifest["splits"]},
        num_duplicates=_num_duplicates(manifest),
        num_dropped=manifest.get("dropped", {}),
    )


def _summarise_split(data: TokenData, split: str) -> SplitSummary:
    import numpy as np

    documents = data.documents(split)
    longest = int(documents.num_tokens_M.argmax())
    return SplitSummary(
        num_documents=len(documents),
        num_tokens=int(documents.num_tokens_M.sum()),
        num_bytes=int(documents.num_bytes_M.sum()),
        median_tokens=float(np.median(documents.num_tokens_M)),
        longest_tokens=int(documents.num_tokens_M[longest]),
        longest_document=data.document_names(split, longest, longest + 1)[0],
    )


def _num_duplicates(manifest: dict[str, Any]) -> int:
    """Return the number of training documents whose text an earlier one has."""
    if "num_train_duplicates" in manifest:
        return int(manifest["num_train_duplicates"])
    rows = manifest["splits"]["train"]["documents"]
    return len(rows) - len({row["sha256"] for row in rows})


def sample(data: TokenData, num_tokens: int) -> list[tuple[str, str]]:
    """Return the text around the end of the first training document.

    Returns:
        (document's name, decoded text) of the last tokens of the first document and the first of
        those that follow, ``num_tokens`` in all where there are as many.
    """
    import numpy as np

    tokenizer = open_folder_tokenizer(data)
    documents = data.documents("train")
    stream = data.stream("train")
    start = max(0, int(documents.num_tokens_M[0]) - num_tokens // 2)
    end = min(start + num_tokens, stream.num_tokens)
    num_rows = int(np.searchsorted(documents.token_offset_M, end)) if end > start else 0
    parts = []
    for row, name in enumerate(data.document_names("train", 0, num_rows)):
        offset = int(documents.token_offset_M[row])
        first = max(start, offset)
        last = min(end, offset + int(documents.num_tokens_M[row]))
        parts.append((name, tokenizer.decode(stream.read(first, last - first))))
    return parts


def open_folder_tokenizer(data: TokenData) -> Tokenizer:
    """Return the tokenizer that a prepared set was made with.

    Raises:
        UserError: what it needs is missing, or is not what the manifest lists.
    """
    from isoflop.data.tokenizers import open_tokenizer

    return open_tokenizer(data.tokenizer_spec(), data.folder)


def source_rows() -> list[dict[str, str | None]]:
    """Return ``name``, ``about`` (with its size), ``licence`` and ``needs`` of each source."""
    rows = [
        {"name": name, "about": about, "licence": _SOTU_LICENCE, "needs": None}
        for name, about in CORPORA.items()
    ]
    rows += [
        {
            "name": dataset.name,
            "about": dataset.about,
            "licence": dataset.licence,
            "needs": f"internet ({dataset.hub_name}), or a copy of its files: --from GLOB",
        }
        for dataset in DATASETS.values()
    ]
    return rows + [
        {"name": name, "about": about, "licence": None, "needs": None}
        for name, about in SOURCE_PATTERNS.items()
    ]
