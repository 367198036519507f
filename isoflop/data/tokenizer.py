"""The byte tokenizer: a token id is a byte of UTF-8; 0 and 1 are reserved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoflop.data.catalog import TOKENIZERS
from isoflop.errors import UserError

TOKEN_DTYPE = np.dtype("<u2")
"""How token ids are stored: little-endian, whatever the machine."""

PAD_ID = TOKENIZERS["byte"].pad_id
END_OF_TEXT_ID = TOKENIZERS["byte"].end_of_text_id
BEGIN_ID = TOKENIZERS["byte"].begin_id


class ByteTokenizer:
    """Text to bytes and back. Adds no special tokens: whoever concatenates documents does."""

    name = "byte"
    vocab_size = TOKENIZERS["byte"].vocab_size
    hash = TOKENIZERS["byte"].hash

    def encode(self, text: str | bytes, *, what: str = "text") -> NDArray[np.uint16]:
        """Token ids [T] of ``text``; ``what`` names it in an error.

        Raises:
            UserError: the text holds byte 0 (pad) or 1 (end-of-text and begin).
        """
        data = text.encode() if isinstance(text, str) else text
        reserved = [at for at in (data.find(PAD_ID), data.find(END_OF_TEXT_ID)) if at >= 0]
        if reserved:
            at = min(reserved)
            raise UserError(
                what,
                data[at : at + 1],
                f"without bytes 0 and 1, which are special tokens (byte {at})",
                "remove them from the text",
            )
        return np.frombuffer(data, dtype=np.uint8).astype(TOKEN_DTYPE)

    def decode_bytes(self, tokens: NDArray[np.integer]) -> bytes:
        """The bytes of token ids [T], without pads and end-of-text tokens.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        tokens = np.asarray(tokens)
        outside = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if outside.size:
            raise UserError(
                "token", int(outside[0]), f"in [0, {self.vocab_size})", "decode byte tokens only"
            )
        return tokens[(tokens != PAD_ID) & (tokens != END_OF_TEXT_ID)].astype(np.uint8).tobytes()

    def decode(self, tokens: NDArray[np.integer]) -> str:
        """The text of token ids [T]; characters cut by a window's edge become U+FFFD."""
        return self.decode_bytes(tokens).decode(errors="replace")
