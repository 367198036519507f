"""A checkpoint's tensors in several files, of which every rank writes its own rows.

The files are those of torch's own safetensors storage (torch.distributed.checkpoint, since 2.7: the
offset of each part is in the header of its file), so that HuggingFaceStorageReader reads them, too:

    weights-00001-of-00008.safetensors    parameters by name, the rows that rank 0 has of them
    optimizer-00001-of-00008.safetensors  likewise `NAME/exp_avg`; rank 0 adds what is not per row

Torch's writer is not used: it makes a second copy of a rank's whole part in memory, sends pickled
plans between the ranks, and has neither digests nor a moment from which a checkpoint is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isoflop.files import fsync_path, sha256_file

if TYPE_CHECKING:
    from isoflop.train.ranks import Ranks

# Torch's names: see torch/distributed/checkpoint/_hf_utils.py.
_SHARDING, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_HEADER = {"DCP_VERSION": "1.0", "format": "pt"}
KINDS = ("weights", "optimizer")
# Of a file, as the ranks tell each other: its size and the 32 bytes of its digest.
_FIGURES = 33
# Of what went wrong, where the system has no number for it.
_UNKNOWN = -1.0


class Rows(NamedTuple):
    """Consecutive rows of a tensor: its entries along the first axis."""

    first: int
    """Number of the first row in the whole tensor."""
    values: Tensor


Parts = Mapping[str, Rows]
FileRecord = dict[str, Any]
"""`num_bytes` and `sha256`."""
Names = tuple[str | None, str]
"""Of a rank's file of weights, where it has one, and of optimizer state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What one rank writes of a checkpoint; a tensor that all ranks have is in one rank's alone."""

    weights: Parts
    optimizer: Parts
    has_whole_weights: bool = False
    """Whether the main rank has all weights here, and the others none."""

    def with_whole_weights(self, weights: Mapping[str, Tensor]) -> Shard:
        """Return the same with all weights on the main rank, which alone is given any."""
        parts = {name: Rows(0, value) for name, value in weights.items()}
        return Shard(weights=parts, optimizer=self.optimizer, has_whole_weights=True)


def shard_names(kind: str, num_shards: int) -> list[str]:
    """Return the files of ``weights`` or ``optimizer``, by rank."""
    ranks = range(1, num_shards + 1)
    return [f"{kind}-{rank:05}-of-{num_shards:05}.safetensors" for rank in ranks]


def write_together(
    folder: Path, names: Sequence[Names], parts: tuple[Parts, Parts], ranks: Ranks
) -> dict[str, FileRecord]:
    """Write this rank's files of weights and optimizer state; all ranks call this together.

    Args:
        folder: the same on all ranks; it is there.
        names: by rank; None: no file of weights.
        parts: this rank's weights and optimizer state.
        ranks: the processes.

    Returns:
        All ranks' files, once all are written and flushed.

    Raises:
        OSError: a rank could not write one.
    """
    written: list[FileRecord | None] = []
    code, trouble = 0.0, None
    try:
        for name, tensors in zip(names[ranks.rank], parts, strict=True):
            written.append(None if name is None else _write(folder / name, tensors))
    except (OSError, SafetensorError) as error:
        code, trouble = float(getattr(error, "errno", None) or _UNKNOWN), error
        written = [None] * len(parts)
    codes, records = _exchanged(code, written, ranks)
    if trouble is not None:
        raise trouble
    for rank, other in enumerate(codes):
        if other:
            why = "it could not write" if other == _UNKNOWN else os.strerror(int(other))
            raise OSError(f"rank {rank}: {why}")
    flat_names = [name for of_rank in names for name in of_rank]
    return {n: r for n, r in zip(flat_names, records, strict=True) if n is not None and r}


def described(path: Path) -> FileRecord:
    """Return the size and the digest of a file."""
    return {"num_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _write(path: Path, parts: Parts) -> FileRecord:
    """Write one file of rows, to the disk; a part without any is left out."""
    there = {name: part for name, part in parts.items() if part.values.numel()}
    offsets = {
        name: {_OFFSETS: [part.first, *[0] * (part.values.ndim - 1)][: part.values.ndim]}
        for name, part in there.items()
    }
    header = {_SHARDING: json.dumps(offsets), **_HEADER}
    save_file({n: part.values.contiguous() for n, part in there.items()}, path, metadata=header)
    fsync_path(path)
    return described(path)


def _exchanged(
    code: float, written: Sequence[FileRecord | None], ranks: Ranks
) -> tuple[list[float], list[FileRecord | None]]:
    """Return all ranks' codes, and the records of all their files.

    As sums of numbers: each place has one rank's and zeros of the others, bytes of digests
    included, so that nothing is rounded.
    """
    own = [code]
    for record in written:
        figures = [] if record is None else [record["num_bytes"], *bytes.fromhex(record["sha256"])]
        own += [*map(float, figures), *[0.0] * (_FIGURES - len(figures))]
    width = len(own)
    sent = [0.0] * (width * ranks.size)
    sent[ranks.rank * width : (ranks.rank + 1) * width] = own
    figures_of_all = ranks.sum(sent)
    starts = range(0, len(sent), width)
    got = [figures_of_all[start : start + width] for start in starts]
    records: list[FileRecord | None] = []
    for of_rank in got:
        for begin in range(1, width, _FIGURES):
            num_bytes, *digest = map(int, of_rank[begin : begin + _FIGURES])
            record = {"num_bytes": num_bytes, "sha256": bytes(digest).hex()}
            records.append(record if num_bytes else None)
    return [of_rank[0] for of_rank in got], records


class StoredTensors(Mapping[str, Tensor]):
    """The whole tensors of several files, read when they are asked for; :meth:`rows` reads less.

    Args:
        paths: all files of one kind that :func:`write_together` wrote.

    Raises:
        SafetensorError: a file is none of these, or rows of a tensor are missing.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._parts: dict[str, list[_Part]] = {}
        for path in paths:
            file = safe_open(path, framework="pt")
            for name, first in _offsets(file, path).items():
                self._parts.setdefault(name, []).append(_Part(file, name, first))
        for name, parts in self._parts.items():
            parts.sort(key=lambda part: part.rows.start)
            ends = [0, *(part.rows.stop for part in parts)]
            if [part.rows.start for part in parts] != ends[:-1]:
                raise SafetensorError(f"{name}: rows are missing")

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, name: str) -> Tensor:
        parts = self._parts[name]
        if len(parts) == 1:
            return parts[0].whole()
        return self.rows(name, range(parts[-1].rows.stop))

    def take(self, prefix: str) -> dict[str, Tensor]:
        """Return what has a name with a prefix, and have it here no longer."""
        found = {name: self[name] for name in self._parts if name.startswith(prefix)}
        for name in found:
            del self._parts[name]
        return found

    def rows(self, name: str, rows: range) -> Tensor:
        """Return some rows of a tensor, of which only these are read; or a single number."""
        parts = self._parts[name]
        if parts[0].is_number:
            return parts[0].whole()
        read = [part.read(rows) for part in parts if _overlap(part.rows, rows)]
        # A rank without rows gets none of the first part's.
        return torch.cat(read) if read else parts[0].read(range(0))


def stored_rows(tensors: Mapping[str, Tensor], name: str, rows: range | None) -> Tensor:
    """Return some rows of a tensor; all of it for None, and where it is a single number."""
    if rows is not None and isinstance(tensors, StoredTensors):
        return tensors.rows(name, rows)
    tensor = tensors[name]
    return tensor if rows is None or tensor.ndim == 0 else tensor[rows.start : rows.stop]


class _Part:
    """One file's rows of a tensor."""

    def __init__(self, file: Any, name: str, first: int) -> None:
        self._file, self._name = file, name
        shape = file.get_slice(name).get_shape()
        self.is_number = not shape
        self.rows = range(first, first + (shape[0] if shape else 1))

    def whole(self) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self._name)
        return tensor

    def read(self, rows: range) -> Tensor:
        begin = max(rows.start, self.rows.start) - self.rows.start
        end = min(rows.stop, self.rows.stop) - self.rows.start
        tensor: Tensor = self._file.get_slice(self._name)[begin : max(begin, end)]
        return tensor


def _overlap(a: range, b: range) -> bool:
    return max(a.start, b.start) < min(a.stop, b.stop)


def _offsets(file: Any, path: Path) -> dict[str, int]:
    """Return the first row of each tensor in a file, as its header says."""
    try:
        offsets = json.loads(file.metadata()[_SHARDING])
        return {name: int(([*offsets[name][_OFFSETS], 0])[0]) for name in file.keys()}  # noqa: SIM118
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SafetensorError(f"{path.name}: its header does not say which rows it has") from error
