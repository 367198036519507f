"""Tokens as text that a person can read, and excerpts around them.

Letters: T recorded tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoflop.data.tokenizers import PAD_ID, Tokenizer
from isoflop.interpret.recording import RecordedTokens

LEFT_CHARACTERS = 32
RIGHT_CHARACTERS = 20

_CUT = "\ufffd"


class TokenText:
    """Token ids as text, each id decoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._labels: dict[int, str] = {}

    def label(self, token: int) -> str:
        """The text of one token; its number in angle brackets where it is no text by itself."""
        if token not in self._labels:
            self._labels[token] = self._decode(token)
        return self._labels[token]

    def _decode(self, token: int) -> str:
        spec = self._tokenizer.spec
        special = {spec.begin_id: "⟨begin⟩", spec.end_of_text_id: "⟨end⟩", PAD_ID: "⟨pad⟩"}
        if token in special:
            return special[token]
        text = self._tokenizer.decode(np.array([token]))
        # Of white space the page marks these; others, such as a form feed, would not be seen.
        is_text = text and _CUT not in text and (text.isprintable() or not text.strip(" \n\t"))
        return text if is_text else f"⟨{token}⟩"

    def label_of_input(self, token: int, position: int) -> str:
        """As :meth:`label`; only position 0 has the begin token, which may end texts too."""
        spec = self._tokenizer.spec
        begins = position == 0 and token == spec.begin_id
        return "⟨begin⟩" if begins else self.label(token)

    def join(self, tokens: NDArray[np.int32]) -> str:
        """Return the text of successive tokens, special ones left out, cut characters too."""
        spec = self._tokenizer.spec
        kept = tokens[tokens != spec.begin_id] if tokens.size else tokens
        return self._tokenizer.decode(kept).strip(_CUT)


def excerpt(text: TokenText, tokens: RecordedTokens, row: int) -> tuple[str, str, str]:
    """Return what stands before a recorded token in its window, the token, and what comes after.

    At most :data:`LEFT_CHARACTERS` and :data:`RIGHT_CHARACTERS` of text around it.
    """
    first, end = tokens.window_rows(row)
    # A token has at least one byte and a character at most four.
    left = tokens.input_T[max(first, row - 4 * LEFT_CHARACTERS) : row]
    right = tokens.target_T[row : min(end, row + 4 * RIGHT_CHARACTERS)]
    token = text.label_of_input(int(tokens.input_T[row]), int(tokens.position_T[row]))
    return text.join(left)[-LEFT_CHARACTERS:], token, text.join(right)[:RIGHT_CHARACTERS]
