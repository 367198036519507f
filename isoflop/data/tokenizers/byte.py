"""The byte tokenizer: a token id is a byte of UTF-8; 0 and 1 are reserved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.tokenizers.library import encode_utf8, kept_ids, token_dtype
from isoflop.data.tokenizers.spec import TOKENIZERS
from isoflop.errors import UserError


class ByteTokenizer:
    """Text to bytes and back; see :class:`isoflop.data.tokenizers.Tokenizer`."""

    spec = TOKENIZERS["byte"]
    dtype = token_dtype(spec.vocab_size)
    file: bytes | None = None

    def encode(self, text: str | bytes, *, what: str = "text") -> NDArray[Any]:
        """Return token ids [T] of ``text``; ``what`` names it in an error.

        Raises:
            UserError: the text holds byte 0 (pad) or 1 (end-of-text and begin), or is no Unicode.
        """
        data = encode_utf8(text, what) if isinstance(text, str) else text
        special = (self.spec.pad_id, self.spec.end_of_text_id)
        reserved = [at for at in map(data.find, special) if at >= 0]
        if reserved:
            at = min(reserved)
            raise UserError(
                what,
                data[at : at + 1],
                f"without bytes 0 and 1, which are special tokens (byte {at})",
                "remove them from the text",
            )
        return np.frombuffer(data, dtype=np.uint8).astype(self.dtype)

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[NDArray[Any]]:
        """Return :meth:`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode_bytes(self, tokens: NDArray[np.integer]) -> bytes:
        """Return the bytes of token ids [T], without pads and end-of-text tokens.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        return kept_ids(self.spec, tokens).astype(np.uint8).tobytes()

    def decode(self, tokens: NDArray[np.integer]) -> str:
        """Return the text of token ids [T]; characters cut by a window's edge become U+FFFD."""
        return self.decode_bytes(tokens).decode(errors="replace")
