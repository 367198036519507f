"""Small made-up data with the interface of prepared data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class MadeHeldout:
    """Windows [W, T] padded with 0, and the document of each."""

    begin_id = 1

    def __init__(self, tokens: NDArray[np.uint16], documents: list[int], num_bytes: int) -> None:
        self.tokens = tokens
        self.document_index = np.array(documents)
        self.num_bytes = num_bytes

    def thinned(self, most_tokens: int) -> MadeHeldout:
        """All of them: they are few."""
        return self


class MadeTraining:
    begin_id = 1

    def __init__(self, seq_len: int) -> None:
        self.seq_len = seq_len

    def batch(self, step: int, batch_size: int, seed: int) -> NDArray[np.uint16]:
        rng = np.random.default_rng((seed, step))
        return rng.integers(97, 105, (batch_size, self.seq_len)).astype(np.uint16)


class MadeData:
    """Uniform letters of eight: the loss of a perfect model is log(8)."""

    end_of_text_id = 1

    def train_windows(self, seq_len: int) -> MadeTraining:
        return MadeTraining(seq_len)

    def heldout(self, seq_len: int) -> MadeHeldout:
        tokens = np.random.default_rng(9).integers(97, 105, (6, seq_len)).astype(np.uint16)
        tokens[-1, 3:] = 0
        return MadeHeldout(tokens, [0, 0, 1, 2, 2, 2], num_bytes=5 * seq_len)
