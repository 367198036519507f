"""The tokens of a split as one sequence, and where its documents lie in it."""

# M documents of a split

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer[Any]]
"""uint16 where the vocabulary fits into it, else uint32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """The documents of a split, in the order of their tokens."""

    token_offset_M: NDArray[np.int64]
    """Index of the first token in the split."""
    num_tokens_M: NDArray[np.int64]
    """Its end-of-text included."""
    num_bytes_M: NDArray[np.int64]
    """Of text."""

    @staticmethod
    def from_rows(rows: Sequence[dict[str, Any]]) -> Documents:
        """From rows of a manifest."""
        return Documents(
            token_offset_M=_column(row["token_offset"] for row in rows),
            num_tokens_M=_column(row["num_tokens"] for row in rows),
            num_bytes_M=_column(row["num_bytes"] for row in rows),
        )

    @staticmethod
    def from_table(table: Any) -> Documents:
        """From a pyarrow table with the same columns."""
        return Documents(
            token_offset_M=table["token_offset"].to_numpy(),
            num_tokens_M=table["num_tokens"].to_numpy(),
            num_bytes_M=table["num_bytes"].to_numpy(),
        )

    def __len__(self) -> int:
        return self.num_tokens_M.size

    def groups(self, num_tokens: int) -> Iterator[tuple[int, int]]:
        """Ranges of successive documents of at most ``num_tokens`` together, or of a longer one."""
        first = 0
        ends_M = self.token_offset_M + self.num_tokens_M
        while first < len(self):
            limit = self.token_offset_M[first] + num_tokens
            end = max(first + 1, int(np.searchsorted(ends_M, limit, side="right")))
            yield first, end
            first = end


class TokenStream:
    """Shards read as one memory-mapped sequence."""

    def __init__(
        self,
        paths: Sequence[Path],
        dtype: np.dtype[Any],
    ) -> None:
        self.dtype = dtype
        self._shards = [np.memmap(path, dtype=dtype, mode="r") for path in paths]
        sizes = [shard.size for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.num_tokens = int(self._starts[-1])

    def read(self, start: int, count: int) -> Tokens:
        """Return a copy of tokens [start, start + count)."""
        out = np.empty(count, dtype=self.dtype)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: Tokens) -> None:
        """Copy tokens [start, start + out.size) to ``out``, across shards where needed."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < out.size:
            at = start + done - int(self._starts[shard])
            part = self._shards[shard][at : at + out.size - done]
            out[done : done + part.size] = part
            done += part.size
            shard += 1


def _column(values: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)
