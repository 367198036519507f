"""Tokenizers by name: ``byte``, ``bpe:V``, ``bpe-tinystories:V``, ``gpt2``, ``hf:PATH``.

For every tokenizer: id 0 is the pad and is never text; text never becomes the pad or the
end-of-text id, whatever it spells; nothing is added to a document (whoever concatenates documents
adds the end-of-text). Importing this package loads neither numpy nor ``tokenizers``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from isoflop.data.storage import default_data_dir
from isoflop.data.tokenizers.spec import (
    BEGIN_ID,
    PAD_ID,
    TOKENIZER_FILE,
    TOKENIZERS,
    TokenizerSpec,
)
from isoflop.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BEGIN_ID",
    "PAD_ID",
    "TOKENIZER_FILE",
    "Tokenizer",
    "get_tokenizer",
    "open_tokenizer",
    "tokenizer_spec",
    "vocabulary_size",
]

NAMES = "byte, gpt2, bpe:V, bpe-tinystories:V or hf:PATH"
TRAINED = ("bpe", "bpe-tinystories")


class Tokenizer(Protocol):
    """Text to token ids and back; may be handed to another process."""

    @property
    def spec(self) -> TokenizerSpec:
        """Definition, sizes and special ids; its ``hash`` is the tokenizer's identity."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """How ids are stored, little-endian: uint16 while they fit, else uint32."""

    @property
    def file(self) -> bytes | None:
        """The ``tokenizer.json`` that :func:`open_tokenizer` needs beside the spec, if any."""

    def encode(self, text: str, *, what: str = "text") -> NDArray[Any]:
        """Return token ids [T] of ``text``; ``what`` names it in an error.

        Raises:
            UserError: the text would become a special id, or is no Unicode (a lone surrogate).
        """

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Return :meth:`encode` of each text."""

    def decode(self, tokens: NDArray[np.integer]) -> str:
        """Return the text of ids [T], pads and end-of-text left out; a cut character is U+FFFD.

        Raises:
            UserError: an id is not in the vocabulary.
        """


def get_tokenizer(
    name: str, *, sample: Iterable[bytes] | None = None, data_dir: Path | None = None
) -> Tokenizer:
    """Return the tokenizer called ``name``.

    Args:
        name: ``byte``; ``gpt2``; ``bpe:V`` or ``bpe-tinystories:V``, trained on ``sample`` unless
            cached; ``hf:PATH``, a ``tokenizer.json`` or its folder, ``hf:PATH#TOKEN`` to name the
            token that ends a text.
        sample: training documents in order, for a trained one; only the first 10 MB are read.
        data_dir: trained tokenizers are cached in its ``tokenizers``;
            :func:`isoflop.data.storage.default_data_dir` if None.

    Raises:
        UserError: no such tokenizer, a package or file is missing or not what it should be.
    """
    kind, _, rest = name.partition(":")
    if kind in TRAINED:
        from isoflop.data.tokenizers.trained import train

        size = vocabulary_size(name)
        if sample is None:
            raise UserError("tokenizer", name, "trained on a corpus", "give training documents")
        return train(kind, size, sample, (data_dir or default_data_dir()) / "tokenizers")
    spec = tokenizer_spec(name)
    if kind == "hf":
        from isoflop.data.tokenizers.spec import read_tokenizer_file

        return _from_file(spec, read_tokenizer_file(rest))
    return open_tokenizer(spec, Path())


def open_tokenizer(spec: TokenizerSpec, folder: Path) -> Tokenizer:
    """Return the tokenizer of a prepared folder, from the manifest's spec and ``tokenizer.json``.

    Raises:
        UserError: the file is missing or not the one in the spec; ``gpt2`` is not installed.
    """
    if spec == TOKENIZERS["byte"]:
        from isoflop.data.tokenizers.encoders import ByteTokenizer

        return ByteTokenizer()
    if spec == TOKENIZERS["gpt2"]:
        from isoflop.data.tokenizers.encoders import open_gpt2

        return open_gpt2()
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise UserError("tokenizer file", str(path), "an existing file", "prepare the data again")
    return _from_file(spec, path.read_bytes())


def tokenizer_spec(name: str) -> TokenizerSpec:
    """Return the spec of a tokenizer that needs no training, without loading any library.

    Raises:
        UserError: no such tokenizer, the file of ``hf:`` is unusable, or it has to be trained.
    """
    kind, _, rest = name.partition(":")
    if name in TOKENIZERS:
        return TOKENIZERS[name]
    if kind == "hf" and rest:
        from isoflop.data.tokenizers.spec import read_spec

        return read_spec(rest)
    if kind in TRAINED:
        vocabulary_size(name)
        raise UserError("tokenizer", name, "known once it is trained", "prepare the data first")
    raise UserError("tokenizer", name, NAMES, "choose one of them")


def vocabulary_size(name: str) -> int:
    """Return V of ``bpe:V``.

    Raises:
        UserError: V is no whole number from 258 (256 bytes, pad, end-of-text).
    """
    _, _, size = name.partition(":")
    if not (size.isascii() and size.isdigit() and 258 <= int(size) <= 2**31):
        raise UserError("tokenizer", name, "followed by :V with V at least 258", "write bpe:4096")
    return int(size)


def _from_file(spec: TokenizerSpec, data: bytes) -> Tokenizer:
    from isoflop.data.tokenizers.encoders import LibraryTokenizer

    return LibraryTokenizer.from_file(spec, data)
